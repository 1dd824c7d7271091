"""Text leaves as its reader can take it: a terminal, a file, a pipe whose reader has left, a poor encoding."""

import os
import subprocess
import sys

import pytest

from transformer.runs.console import printable


def run(program, **environment):
    """A program's ends, its standard output a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, "-c", program],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            check=False,
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("bad\udcff", r"bad\udcff"),
        ("Grüße, 世界", "Grüße, 世界"),
    ],
)
def test_what_would_command_a_terminal_is_written_out(text, seen):
    assert printable(text) == seen


def test_work_goes_on_when_the_reader_has_left():
    program = "from transformer.runs.console import show, tell; show('a'); show('b'); tell('still here')"
    ended = run(program)
    assert (ended.returncode, ended.stderr) == (0, "still here\n")


def test_a_command_whose_reader_has_left_has_not_failed(tmp_path):
    (tmp_path / "data.csv").write_text("episode,observation,action,reward\n0,1.5,0,1\n0,2.5,1,1\n1,1.0,1,0\n")
    ended = run(f"import sys; from dt.cli import main; sys.exit(main(['inspect', {str(tmp_path / 'data.csv')!r}]))")
    assert ended.returncode == 0
    assert "pipe" not in ended.stderr.lower()


@pytest.mark.parametrize("module", ["dt.cli", "transformer.text.cli"])
def test_help_whose_reader_has_left_has_not_failed(module):
    ended = run(f"import sys; from {module} import main; sys.exit(main(['--help']))")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_an_encoding_cannot_say_is_written_out():
    program = "from transformer.runs.console import show; show('Grüße')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert said.stdout == b"Gr\\xfc\\xdfe\n"
