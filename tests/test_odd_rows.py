"""Rows and files that people write by mistake: each is noted, or refused in one line with a way out that works."""

import gzip

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
