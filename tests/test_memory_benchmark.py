"""The benchmark of memory: its data is of the size it says, and its limit is one."""

from benchmarks import memory
from envs.datasets.loading import load


def test_every_format_holds_the_same_numbers_of_the_size_that_was_asked_for(tmp_path):
    loaded = {}
    for name, write in memory.WRITERS.items():
        path = write(tmp_path / name.strip("."), 2)
        loaded[name] = load(path, cache="off")
    sizes = [sum(array.nbytes for array in (d.observations["value"], d.actions["value"])) for d in loaded.values()]
    assert all(1_500_000 < size < 2_000_000 for size in sizes)
    flat = loaded[".npz"]
    for other in loaded.values():
        assert (other.observations["value"] == flat.observations["value"]).all()
        assert (other.rewards == flat.rewards).all()


def test_peaks_become_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "WRITERS", {".npz": memory.write_npz})
    monkeypatch.setattr(memory, "FRESH", 0)
    monkeypatch.setattr(memory, "learn", lambda source, folder: None)
    found = memory.points([1, 50], tmp_path)  # an array of 50 MB never comes from memory that was freed before
    assert found["first load, .npz"][50] > 40
    memory.draw(found, tmp_path / "memory.png")
    assert (tmp_path / "memory.png").stat().st_size > 5_000


def test_the_limit_stops_an_inspection_that_wants_more(tmp_path, capfd):
    found = memory.inspect(1, 2_000, tmp_path)
    assert found["exit_code"] == 0
    assert 20 < found["peak_megabytes"] < 1_000
    assert "generated/memory-v0" in capfd.readouterr().out
    assert memory.inspect(1, 15, tmp_path)["exit_code"] != 0
