"""The one place where text leaves for the terminal: what a file calls itself must not command it."""

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def printable(text: str) -> str:
    """A text without what a terminal would take for commands: such signs as Python writes them, like \\x1b."""
    seen = (sign in "\n\t" or unicodedata.category(sign) not in ("Cc", "Cs") for sign in text)  # controls, surrogates
    return "".join(sign if harmless else ascii(sign)[1:-1] for sign, harmless in zip(text, seen, strict=True))


def show(text: str) -> None:
    """Print a result to standard output."""
    _leave(printable(text), sys.stdout)


def tell(text: str) -> None:
    """Print a message to standard error."""
    _leave(printable(text), sys.stderr)


def write(text: str) -> None:
    """Print what a model wrote to standard output: into a file or a pipe as it is, on a terminal `printable`."""
    _leave(printable(text) if sys.stdout.isatty() else text, sys.stdout)


@contextmanager
def help_to_anyone() -> Iterator[None]:
    """Where a parser prints its help and ends: also well where `head` reads it."""
    try:
        yield
    except BrokenPipeError:
        _drop(sys.stdout)
        raise SystemExit(0) from None


def _leave(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:  # its reader has left, as `head` does: the work goes on without a message
        _drop(stream)


def _drop(stream: TextIO) -> None:
    """What is still to be written to a stream goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
