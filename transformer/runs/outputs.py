"""Where a program is to write: looked at before it works for long, not after."""

import os
from pathlib import Path

from transformer.errors import ConfigError
from transformer.runs.folder import ENTRIES, is_run


def check_place(path: Path, picture: bool = True) -> None:
    """Raise `ConfigError` where no file, or no such picture, can be written, or something else would be lost by it."""
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, a file is meant")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ConfigError(f"{path}: a link, a pipe or a device; a file or a new one is meant")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: its folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path}: its folder may not be written to")
    check_spared(path)
    if picture:
        check_picture(path)


def check_folder(path: Path) -> None:
    """The same for a folder to be filled, where a link may lead to it."""
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: is a file, a folder is meant")
    check_spared(path, Path(os.path.realpath(path)))


def check_spared(path: Path, place: Path | None = None) -> None:
    """Raise `ConfigError` where this is, or lies in, what makes a run a run; its results/ are there to be written.

    place: where it lies without a link; None where a link at its end would itself be replaced.
    """
    place = place or path.parent.resolve() / path.name
    for run in filter(is_run, place.parents):
        if place.relative_to(run).parts[0] in set(ENTRIES) - {"results"}:
            raise ConfigError(f"{path}: a part of the run {run} itself; {run / 'results'} is the place for more")


def check_picture(path: Path) -> None:
    """Raise `ConfigError` unless matplotlib can draw the kind of picture that the file's name ends in."""
    from transformer.runs.pictures import import_matplotlib

    kinds = import_matplotlib().backend_bases.FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ConfigError(f"{path}: no kind of picture; its name must end in one of {', '.join(sorted(kinds))}")
