"""Rows and files that people write by mistake: each is noted, or refused in one line with a way out that works."""

import gzip
from datetime import datetime, timedelta

import h5py
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_readers import problem

from envs import from_episodes, load

LENGTHS = (5, 7, 4, 6)
STEPS = sum(LENGTHS)
STEP = np.concatenate([np.arange(length) for length in LENGTHS])
EPISODE = np.arange(len(LENGTHS)).repeat(LENGTHS)


def recording() -> dict:
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(STEPS, 2)),
        "actions": rng.integers(1, 4, STEPS),
        "rewards": 0.5 + rng.random(STEPS),
        "episode": EPISODE,
    }


def columns(arrays: dict) -> dict:
    others = {name: values for name, values in arrays.items() if name != "observations"}
    return {f"observation_{i}": arrays["observations"][:, i] for i in range(2)} | others


def text(arrays: dict, delimiter: str = ",") -> str:
    """A CSV of these arrays."""
    found = columns(arrays)
    rows = [list(found), *zip(*(values.tolist() for values in found.values()), strict=True)]
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


# Numbers and names of episodes.


@pytest.mark.parametrize(("kind", "first"), [(np.float64, 2**53), (np.float32, 2**24)])
@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_numbers_of_episodes_that_floats_round_are_refused(tmp_path, suffix, kind, first):
    arrays = recording()
    arrays["episode"] = (first + EPISODE).astype(kind)
    path = tmp_path / f"log.{suffix}"

    def write():
        if suffix == "npz":
            np.savez(path, **arrays)
        else:
            parquet.write_table(pyarrow.table(columns(arrays)), path)
        return path

    problem(lambda: load(write()), "episode: ", "may fall together", "as whole numbers or as text")
    arrays["episode"] = first + EPISODE
    assert load(write()).lengths.tolist() == list(LENGTHS)
    arrays["episode"] = EPISODE + kind(0.5)
    assert load(write()).lengths.tolist() == list(LENGTHS)


# Clocks of arrays.


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
@pytest.mark.parametrize("name", ["time", "timestamp", "stamp_ns", "time_ms", "ts", "epoch_ms"])
def test_times_in_arrays_show_the_order_of_rows(tmp_path, name, suffix):
    path = tmp_path / f"log.{suffix}"

    def write(arrays):
        if suffix == "npz":
            np.savez(path, **arrays)
        else:
            with h5py.File(path, "w") as file:
                file.update(arrays)
        return path

    uneven = np.cumsum(np.random.default_rng(0).integers(1, 9, STEPS)) + 1_700_000_000_000_000_000
    arrays = {**recording(), name: uneven}
    assert load(write(arrays)).lengths.tolist() == list(LENGTHS)
    arrays[name][[1, 2]] = arrays[name][[2, 1]]
    problem(lambda: load(write(arrays)), f"{name!r}: episode 0, step 2 (row 3) does not rise", "--columns step=none")
    assert load(path, columns={"step": "none"}).num_episodes == len(LENGTHS)


# Rows that are one too late, or missing.


@pytest.mark.parametrize("field", ["rewards", "actions"])
def test_numbers_of_the_row_before_are_noted(tmp_path, field):
    arrays, path = recording(), tmp_path / "log.npz"
    np.savez(path, **arrays)
    assert not any("move" in note for note in load(path).notes)
    arrays[field] = np.where(STEP == 0, 0, np.roll(arrays[field], 1))
    np.savez(path, **arrays)
    (note,) = (note for note in load(path).notes if "move" in note)
    assert note.startswith(f"{field} are 0 in the first row of every episode")
    arrays[field] = np.where(np.arange(STEPS) % 3, 0, arrays[field]) * (STEP > 0)  # zeros are usual
    np.savez(path, **arrays)
    assert not any("move" in note for note in load(path).notes)


def test_cells_that_are_empty_in_first_rows_are_named(tmp_path):
    arrays = recording()
    arrays["rewards"] = np.array(["" if step == 0 else "1" for step in STEP])
    (tmp_path / "log.csv").write_text(text(arrays))
    problem(lambda: load(tmp_path / "log.csv"), "row 1, column 'rewards': nothing there (in each episode's first row")


def test_an_episode_without_its_first_rows_is_noted(tmp_path):
    arrays, path = {**recording(), "step": STEP}, tmp_path / "part-1.csv"
    path.write_text(text(arrays))
    assert not any("begins at step" in note for note in load(path).notes)
    path.write_text(text({name: values[2:] for name, values in arrays.items()}))
    assert any("episode 0 begins at step 2, others at 0: rows before it are missing" in n for n in load(path).notes)
    arrays["step"] = np.arange(STEPS)  # a count of all steps
    path.write_text(text(arrays))
    assert not any("begins at step" in note for note in load(path).notes)


# Flags in words.


@pytest.mark.parametrize("name", ["finished", "game_over", "last_one"])
def test_words_in_an_unread_column_may_mark_the_ends(tmp_path, name):
    arrays, path = recording(), tmp_path / "log.csv"
    del arrays["episode"]
    arrays[name] = np.where(np.append(EPISODE[1:] != EPISODE[:-1], True), "yes", "no")
    path.write_text(text(arrays))
    problem(lambda: load(path), f"{name!r} may: --columns done={name} reads 4 episodes")
    assert load(path, columns={"done": name}).lengths.tolist() == list(LENGTHS)


# Files that are not what their names say.


def test_files_under_another_suffix_are_named_by_their_content(tmp_path):
    arrays = recording()
    parquet.write_table(pyarrow.table(columns(arrays)), tmp_path / "a.csv")
    problem(lambda: load(tmp_path / "a.csv"), "its content is Parquet: name it a.parquet")
    assert load((tmp_path / "a.csv").rename(tmp_path / "a.parquet")).lengths.tolist() == list(LENGTHS)
    (tmp_path / "b.csv").write_bytes(gzip.compress(text(arrays).encode()))
    problem(lambda: load(tmp_path / "b.csv"), "its content is gzip: unpack or rename it")
    for suffix in ("parquet", "npz", "hdf5"):
        (tmp_path / f"c.{suffix}").write_text(text(arrays))
        problem(
            lambda suffix=suffix: load(tmp_path / f"c.{suffix}"), "its content is text: if it is a table, name it c.csv"
        )
    np.savez(tmp_path / "d.npz", **arrays)
    (tmp_path / "d.npz").rename(tmp_path / "d.h5")
    problem(lambda: load(tmp_path / "d.h5"), "its content is a zip archive, as .npz and .xlsx are")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_its_mark_is_read(tmp_path, encoding):
    (tmp_path / "log.csv").write_bytes(text(recording()).encode(encoding))
    dataset = load(tmp_path / "log.csv")
    assert dataset.lengths.tolist() == list(LENGTHS)
    np.testing.assert_array_equal(dataset.observations["value"], recording()["observations"])


def test_a_folder_of_tables_says_how_its_files_are_named_whatever_the_options(tmp_path):
    (tmp_path / "run.csv").write_text(text(recording()))
    problem(lambda: load(tmp_path, columns={"episode": "episode"}), "named one by one", "*.csv")
    problem(lambda: load(tmp_path, file_is_episode=True), "named one by one", "*.csv")


# What Python hands over.


def test_transitions_are_no_episodes():
    problem(lambda: from_episodes([[(np.zeros(2), 0, 1.0)]]), "episode 0: a list, expected a mapping")


def test_objects_in_arrays_have_a_way(tmp_path):
    np.savez(tmp_path / "log.npz", **{**recording(), "observations": np.array([np.zeros(2), np.zeros(3)], object)})
    problem(lambda: load(tmp_path / "log.npz"), "allow_pickle=True", "envs.from_episodes")


# Rows that are there twice, or not at all.


def noted(path, *words) -> bool:
    return any(all(word in note for word in words) for note in load(path).notes)


def with_flags() -> dict:
    """The recording, with flags instead of episodes' numbers."""
    arrays = recording()
    arrays["done"] = np.append(EPISODE[1:] != EPISODE[:-1], True)
    del arrays["episode"]
    return arrays


def test_copies_of_rows_and_episodes_are_noted(tmp_path):
    arrays, path = recording(), tmp_path / "log.npz"
    np.savez(path, **arrays)
    assert not noted(path, "exact copies")
    np.savez(path, **{name: np.insert(values, 6, values[6], axis=0) for name, values in arrays.items()})
    assert noted(path, "1 of 23 rows are exact copies of the row before them, first episode 1, step 2 (row 8)")
    again = {name: np.concatenate([values, values[:12]]) for name, values in arrays.items()}
    np.savez(path, **{**again, "episode": np.concatenate([EPISODE, EPISODE[:12] + 4])})
    assert noted(path, "2 of 6 episodes are exact copies of earlier ones")
    assert not noted(path, "of the row before")
    whole = {"observations": np.arange(STEPS) % 2, "rewards": np.ones(STEPS), "actions": np.zeros(STEPS, int)}
    np.savez(path, **{**arrays, **whole, "observations": np.zeros(STEPS, int)})
    assert not noted(path, "exact copies")  # whole numbers are often the same again


def test_places_of_a_buffer_that_were_never_filled_are_noted(tmp_path):
    arrays, path = with_flags(), tmp_path / "buffer.npz"
    np.savez(path, **{name: np.concatenate([values, np.zeros_like(values)]) for name, values in arrays.items()})
    assert noted(path, f"the last {STEPS} rows, from row {STEPS + 1} on, hold zeros only")
    assert not noted(path, "exact copies")
    np.savez(path, **{name: np.concatenate([values, values[:3]]) for name, values in arrays.items()})
    assert not noted(path, "hold zeros only")


@pytest.mark.parametrize("name", ["step", "time", "timestamp"])
def test_gaps_of_steps_and_times_are_noted(tmp_path, name):
    arrays, path = recording(), tmp_path / "log.csv"
    arrays[name] = STEP if name == "step" else 1.7e9 + np.arange(STEPS) * 0.25
    path.write_text(text(arrays))
    assert not noted(path, "rows may be missing")
    path.write_text(text({each: np.delete(values, 7, axis=0) for each, values in arrays.items()}))
    assert noted(path, f"{name} goes up 2 times as much as usual at episode 1, step 2 (row 8): rows may be missing")
    arrays[name] = np.cumsum(np.random.default_rng(0).integers(1, 9, STEPS))
    path.write_text(text(arrays))
    assert not noted(path, "rows may be missing")


def test_ends_in_row_after_row_are_noted(tmp_path):
    number, steps = 3, 12
    order = np.arange(number * steps).reshape(number, steps).T.reshape(-1)  # a row of each environment in turn
    done = (order % steps) % 4 == 3
    rng = np.random.default_rng(0)
    arrays = {"observations": rng.random((36, 2)), "actions": rng.random(36), "rewards": np.ones(36), "done": done}
    np.savez(tmp_path / "log.npz", **arrays)
    assert noted(tmp_path / "log.npz", "episodes end in 3 rows on end, each time", "sort the rows by environment")
    np.savez(tmp_path / "log.npz", **{name: values[np.argsort(order)] for name, values in arrays.items()})
    assert not noted(tmp_path / "log.npz", "rows on end")


def test_rewards_that_float64_rounds_are_noted(tmp_path):
    arrays = recording()
    np.savez(tmp_path / "log.npz", **{**arrays, "rewards": 2**55 + np.arange(STEPS)})
    assert noted(tmp_path / "log.npz", "rewards: whole numbers beyond 2^53")


@pytest.mark.parametrize("kind", ["sums", "means"])
def test_a_last_row_of_totals_is_refused(tmp_path, kind):
    arrays, path = recording(), tmp_path / "log.csv"
    total = {name: np.asarray((values.sum if kind == "sums" else values.mean)(0)) for name, values in arrays.items()}
    path.write_text(text({name: np.append(values, total[name][None], axis=0) for name, values in arrays.items()}))
    problem(lambda: load(path), f"row {STEPS + 1}, the last, holds the {kind} of the rows above it: delete it")
    rows = text(arrays)
    for last in ("Total,,,,", ",,,3.5,", ",,1,1.5,"):
        path.write_text(f"{rows}{last}\n")
        problem(lambda: load(path), f"row {STEPS + 1}", "if this last row is a total or a comment, delete it")
    path.write_text(rows)
    assert load(path).lengths.tolist() == list(LENGTHS)


def test_the_same_step_twice_is_named(tmp_path):
    arrays, path = {**recording(), "step": STEP}, tmp_path / "log.csv"
    path.write_text(text({name: np.concatenate([values, values]) for name, values in arrays.items()}))
    problem(lambda: load(path), "episode 0, step 0 is in rows 1 and 23", "delete the copy", "ENVIRONMENT,EPISODE")
    both = {name: np.concatenate([values, values]) for name, values in arrays.items()}
    path.write_text(text({**both, "world": np.arange(2).repeat(STEPS)}))
    assert load(path, columns={"episode": ["world", "episode"]}).lengths.tolist() == [*LENGTHS, *LENGTHS]


def test_a_flag_of_first_rows_is_not_one_of_last_rows(tmp_path):
    arrays, path = recording(), tmp_path / "log.csv"
    del arrays["episode"]
    path.write_text(text({**arrays, "done": (STEP == 0).astype(int)}))
    problem(lambda: load(path), "done is true in the first row and not in the last", "--columns episode_start=NAME")
    assert load(path, columns={"episode_start": "done"}).lengths.tolist() == list(LENGTHS)
    assert load(path, columns={"done": "done"}).num_episodes == 5
    path.write_text(text({**recording(), "done": (STEP == 0).astype(int)}))
    problem(lambda: load(path), "true before the episode's last step", "--columns done=none")
    assert load(path, columns={"done": "none"}).lengths.tolist() == list(LENGTHS)


# Names and times.


@pytest.mark.parametrize("name", ["meta_episode_index", "Episode ID", "data/episode_id", "sim_time", "episodeClock"])
def test_the_way_out_is_typed_as_it_is_printed(tmp_path, name):
    arrays, path = recording(), tmp_path / "log.csv"
    del arrays["episode"]
    is_clock = name in ("sim_time", "episodeClock")
    path.write_text(text({**arrays, name: STEP * 0.05 if is_clock else EPISODE}))
    field = "episode_start" if is_clock else "episode"
    said = f"'{field}={name}'" if " " in name else f"{field}={name}"
    problem(lambda: load(path), f"{name!r} may: --columns {said} reads 4 episodes")
    assert load(path, columns={field: name}).lengths.tolist() == list(LENGTHS)


FORMS = ("%d/%m/%Y %H:%M", "%m/%d/%Y %I:%M:%S %p", "%d.%m.%Y %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_times_in_text_show_the_order_of_rows(tmp_path, form, suffix):
    path = tmp_path / f"log.{suffix}"

    def write(order):
        arrays = recording()
        times = [(datetime(2026, 2, 3, 22) + timedelta(hours=int(i))).strftime(form) for i in order]
        if suffix == "csv":
            path.write_text(text({**arrays, "timestamp": np.array(times)}))
        else:
            parquet.write_table(pyarrow.table(columns(arrays) | {"timestamp": times}), path)
        return path

    order = np.arange(STEPS)
    assert load(write(order)).lengths.tolist() == list(LENGTHS)
    order[[6, 8]] = order[[8, 6]]
    problem(lambda: load(write(order)), "'timestamp': episode 1, step 2 (row 8) does not rise", "--columns step=none")
    assert load(path, columns={"step": "none"}).lengths.tolist() == list(LENGTHS)


# Numbers and choices in text.


def test_numbers_that_are_text_are_numbers_and_names_are_listed(tmp_path):
    arrays, path = recording(), tmp_path / "log.parquet"
    choices = pyarrow.array(arrays["actions"].astype(str)).dictionary_encode()
    parquet.write_table(pyarrow.table(columns(arrays) | {"actions": choices}), path)
    np.testing.assert_array_equal(load(path).actions["value"], arrays["actions"])
    names = np.array(["left", "stay", "right"])[arrays["actions"] - 1]
    parquet.write_table(pyarrow.table(columns(arrays) | {"actions": names}), path)
    problem(lambda: load(path), "choices are whole numbers: write 0 for left, 1 for right, 2 for stay")


def test_half_precision_warns_of_nothing(tmp_path, recwarn):
    np.savez(tmp_path / "log.npz", **{**recording(), "observations": recording()["observations"].astype(np.float16)})
    load(tmp_path / "log.npz")
    assert not recwarn.list


def test_rewards_that_only_rise_or_fall_are_noted(tmp_path):
    arrays, path = recording(), tmp_path / "log.npz"
    parts = [arrays["rewards"][i == EPISODE] for i in range(len(LENGTHS))]
    np.savez(path, **arrays)
    assert not noted(path, "rewards only")
    np.savez(path, **{**arrays, "rewards": np.concatenate([np.cumsum(part) for part in parts])})
    assert noted(path, "rewards only rise within each of 4 episodes: if they are a running score")
    np.savez(path, **{**arrays, "rewards": np.concatenate([np.cumsum(part[::-1])[::-1] for part in parts])})
    assert noted(path, "rewards only fall within each of 4 episodes: if they are returns-to-go")


@pytest.mark.parametrize("name", ["run", "worker"])
def test_neighbours_that_share_a_number_are_noted(tmp_path, name):
    arrays, path = {**recording(), name: (EPISODE > 1).astype(int)}, tmp_path / "log.csv"
    path.write_text(text(arrays))
    assert not noted(path, "changes within episodes")
    path.write_text(text({**arrays, "episode": np.array([0, 1, 1, 2])[EPISODE]}))
    assert noted(path, f"{name!r} changes within episodes, first at episode 1, step 7", f"episode={name},NAME")
    assert load(path, columns={"episode": [name, "episode"]}).lengths.tolist() == list(LENGTHS)


@pytest.mark.parametrize("kind", ["mask", "length"])
def test_padding_of_rows_that_are_episodes_is_refused(tmp_path, kind):
    arrays, path, most = recording(), tmp_path / "padded.parquet", max(LENGTHS)
    padded = {
        name: [[*values[i == EPISODE].tolist()] + [values[0].tolist()] * (most - n) for i, n in enumerate(LENGTHS)]
        for name, values in arrays.items()
        if name != "episode"
    }
    real = LENGTHS if kind == "length" else [[j < n for j in range(most)] for n in LENGTHS]
    parquet.write_table(pyarrow.table({**padded, kind: pyarrow.array(real)}), path)
    problem(lambda: load(path), f"{kind!r} says that row 1 has 5 steps, and its lists have 7", "envs.from_episodes")
    whole = [most] * len(LENGTHS) if kind == "length" else [[True] * most] * len(LENGTHS)
    parquet.write_table(pyarrow.table({**padded, kind: pyarrow.array(whole)}), path)
    assert load(path).lengths.tolist() == [most] * len(LENGTHS)
