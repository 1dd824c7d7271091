"""Pictures: drawn alike whatever the current folder holds, and written atomically."""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer.files import replace_bytes
from transformer.runs.console import printable

LONGEST = 80
"""Characters of a title."""


def import_matplotlib() -> Any:
    """Matplotlib. It obeys a file `matplotlibrc` of the folder that it is imported in, which a run may bring along."""
    with contextlib.chdir(Path(os.__file__).parent):
        import matplotlib.figure
    return matplotlib


@contextlib.contextmanager
def picture(path: Path, width: float, height: float, dpi: int) -> Iterator[Any]:
    """A matplotlib figure to draw on, in inches; it is written to `path` when it is done.

    Raises `OSError` with the path where it cannot be written; a picture that is there already then stays.
    """
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.simplefilter("ignore", UserWarning)  # of signs that the font lacks, which would be printed raw
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix.removeprefix(".").lower(), dpi=dpi)
    replace_bytes(path, content.getvalue())


def title_of(text: str) -> str:
    """A text from a file as a title: one line, not too long. Draw it with parse_math=False: `$` begins no formula."""
    line = " ".join(printable(text).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
