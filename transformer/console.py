"""The one place where text leaves for the terminal: what a file calls itself must not command it."""

import sys


def printable(text: str) -> str:
    """A text without what a terminal would take for commands; its lines and tabs stay."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)


def show(text: str) -> None:
    """Print a result to standard output."""
    print(printable(text), flush=True)


def tell(text: str) -> None:
    """Print a message to standard error."""
    print(printable(text), file=sys.stderr, flush=True)
