"""Finds `transformer` and `envs` next to `dt`, also where a folder of the user has one of these names.

Many projects have an `envs/` or a `transformer/`, and Python takes the first one on its path. In our programs the name
means this package's folder. In a script it means the folder that Python finds, with our modules behind the user's.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parent.parent
"""Where `dt`, `transformer` and `envs` lie."""


def find_siblings() -> None:
    """Make the modules of both packages importable.

    Raises:
        ImportError: a script's own `transformer` or `envs` holds a name that one of our modules has.
    """
    for name in ("transformer", "envs"):
        if name not in sys.modules and _is_ours(name, getattr(find_spec(name), "origin", None)):
            continue
        if name not in sys.modules and _runs_our_program():
            sys.path.insert(0, str(HOME))
            continue
        package = import_module(name)
        if not _is_ours(name, package.__file__):
            _add_ours(package)


def _is_ours(name: str, file: str | None) -> bool:
    return file is not None and Path(file).resolve().parent == HOME / name


def _runs_our_program() -> bool:
    """Whether this is `python -m dt` or the command `dt`: while a module is sought, Python's argument 0 is "-m"."""
    return sys.argv[0] == "-m" or Path(sys.argv[0]).stem == "dt"


def _add_ours(package: ModuleType) -> None:
    """Append our folder to the path of a user's package of the same name."""
    ours, path = HOME / package.__name__, list(getattr(package, "__path__", []))
    modules = {file.stem for file in ours.iterdir() if file.suffix == ".py" or (file / "__init__.py").exists()}
    theirs = {file.stem for folder in map(Path, path) for file in folder.iterdir()} | vars(package).keys()
    if both := sorted((modules & theirs) - {"__init__", "__main__"}):
        raise ImportError(
            f"{package.__file__}: hides the package {package.__name__} that dt needs, and {both[0]} is in both. "
            f"Rename your {package.__name__}, or run the command dt in a terminal."
        )
    if str(ours) not in path:
        package.__path__ = [*path, str(ours)]
