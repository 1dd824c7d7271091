"""Where a program is to write: looked at before it works for long, not after."""

import os
from pathlib import Path

from transformer.config import ConfigError


def check_place(path: Path, picture: bool = True) -> None:
    """Raise `ConfigError` where no file, or no such picture, can be written."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, a file is meant")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: its folder may not be written to")
    if picture:
        check_picture(path)


def check_picture(path: Path) -> None:
    """Raise `ConfigError` unless matplotlib can draw the kind of picture that the file's name ends in."""
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(f"{path}: no kind of picture; its name must end in one of {', '.join(sorted(kinds))}")
