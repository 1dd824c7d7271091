"""The notebooks, which are kept as scripts in jupytext's percent format, run and show what they say."""

import re
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "docs" / "notebooks"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a notebook in an empty folder; returns its variables."""
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(NOTEBOOKS / name))


def test_cartpole_from_data_to_a_film(run, tmp_path):
    names = run("cartpole.py")
    low, middle, high = (result.mean_return for result in names["results"])
    assert low < middle < high
    assert high > 150
    assert [film.suffix for film in names["films"]] == [".mp4"] * 3
    assert all((tmp_path / film).stat().st_size > 1000 for film in names["films"])


def test_a_csv_of_your_own(run, capsys):
    names = run("own_csv.py")
    assert "--columns" in capsys.readouterr().out  # the refusal says what to do
    assert names["held_out"]["held_out_accuracy/value"] > names["held_out"]["constant_accuracy/value"] + 0.1
    assert names["decisions"][16.0] == 2
    assert names["decisions"][23.0] == 0


def test_the_transformer_by_itself(run):
    names = run("sorting_digits.py")
    assert names["correct"] > 180
    assert names["weights"].triu(1).eq(0).all()


def test_every_notebook_is_run_and_begins_with_a_title():
    run_here = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text()))
    assert {path.name for path in NOTEBOOKS.glob("*.py")} == run_here
    for path in NOTEBOOKS.glob("*.py"):
        cells = re.split(r"^# %%", path.read_text(), flags=re.MULTILINE)
        assert cells[1].startswith(" [markdown]\n# # ")
        assert f"docs/notebooks/{path.name}" in path.read_text()  # how to run it
