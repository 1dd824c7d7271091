"""Every malformed input of the library meets one line and exit status 2, quickly, and nothing is written."""

import json
import re
import subprocess
import sys
import textwrap

import pytest
from malformed import CASES
from test_cli import files

from dt.cli import main

ALL = [(reader, name) for reader, cases in CASES.items() for name in cases]


@pytest.mark.parametrize(("reader", "name"), ALL, ids=[f"{reader}: {name}" for reader, name in ALL])
def test_a_malformed_input_is_one_line_and_nothing_written(tmp_path, monkeypatch, capsys, reader, name):
    case, folder = CASES[reader][name], tmp_path / "input"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    arguments, before = case.make(folder), files(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("dt: ")
    assert reader == "options" or line.startswith(f"dt: {arguments[1]}")
    for word in case.words:
        assert word in line
    assert files(tmp_path) == before


def test_the_library_is_wide():
    kinds = {reader: {re.sub(r"\d+", "#", case.words[0]) for case in cases.values()} for reader, cases in CASES.items()}
    assert len(ALL) >= 130
    assert min(map(len, kinds.values())) >= 5
    assert len(set.union(*kinds.values())) >= 60


MEASURED = """
    import json, re, sys, time
    from dt.cli import main
    for arguments in json.loads(sys.argv[1]):
        start = time.process_time()
        assert main(arguments) == 2
        assert time.process_time() - start < 2, arguments
    assert "torch" not in sys.modules
    print(int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) >> 10)
"""


@pytest.mark.parametrize("command", ["inspect", "train", "train-many"])
def test_a_refusal_is_quick_and_small_and_needs_no_torch(tmp_path, command):
    """All of a reader's, in one process of their own: what one costs is less."""
    arguments = []
    for reader, cases in CASES.items():
        for number, case in enumerate(cases.values()):
            if reader != "options":
                (folder := tmp_path / reader / str(number)).mkdir(parents=True)
                arguments.append([command, *case.make(folder)[1:]])
    assert_quick_and_small(arguments, tmp_path)


@pytest.mark.parametrize("command", ["train", "evaluate", "train-many", "record", "import-huggingface"])
def test_a_refusal_of_options_is_quick_and_small_and_needs_no_torch(tmp_path, command):
    arguments = []
    for number, case in enumerate(CASES["options"].values()):
        (folder := tmp_path / str(number)).mkdir()
        arguments.append(case.make(folder))
    arguments = [each for each in arguments if each[0] == command]
    assert len(arguments) > 10
    assert_quick_and_small(arguments, tmp_path)


def assert_quick_and_small(arguments, folder):
    script = [sys.executable, "-c", textwrap.dedent(MEASURED), json.dumps(arguments)]
    done = subprocess.run(script, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 500  # MB


@pytest.mark.parametrize("arguments", [["inspect"], ["train"], ["import"]])
def test_a_refusal_of_the_installed_command(tmp_path, arguments):
    folder = CASES["minari hdf5"]["T observations"].make(tmp_path)[1]
    script = "import sys; from dt.cli import main; sys.exit(main(sys.argv[1:]))"
    more = ["new/dataset-v0"] if arguments == ["import"] else []
    before = files(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, folder, *more],
        cwd=tmp_path,
        env={"MINARI_DATASETS_PATH": str(tmp_path / "root"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "episode_1/observations: shape (5, 7), expected (6, 7)" in done.stderr
    assert files(tmp_path) == before
