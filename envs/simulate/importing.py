"""A user's module that registers environments, imported with care."""

import importlib
import os
import re
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from pkgutil import iter_modules

from envs.errors import EnvError
from envs.simulate.local_env import raised

imported: list[str] = []
"""Modules of the user's that registered environments; another process imports them too."""


def import_environments(module: str) -> None:
    """Import a module of the user's that registers environments."""
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        raise EnvError(f"--import {module}: expected a module's name, such as {_module_name(module)}")
    if os.getcwd() not in sys.path:  # where `python -m` would look first, and an installed command does not
        sys.path.insert(0, os.getcwd())
    try:
        _add_namesake(module.partition(".")[0])
        try:
            importlib.import_module(module)
        except ImportError as error:  # in there, `envs.grid` may be a module of the user's own package `envs`
            if not (error.name and _add_namesake(error.name.partition(".")[0])):
                raise
            importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module of the user's may raise anything, and end the program too
        unknown = isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])
        hint = ". The working folder and the installed packages were searched" if unknown else ""
        raise EnvError(f"--import {module}: {raised(error)}{hint}") from error
    imported.append(module)


def _module_name(text: str) -> str:
    """What a file's name would be as a module's."""
    name = re.sub(r"\W+", ".", text.removesuffix(".py")).strip(".")
    return name if name and all(part.isidentifier() for part in name.split(".")) else "my_environments"


def _add_namesake(name: str) -> bool:
    """Run a package in the working folder that has the name of one of ours, and add its modules; whether there is one.

    Many projects keep their environments in a package `envs`, which is also the name of this one. Raises `EnvError`
    where another package of this name is loaded.
    """
    loaded, found = sys.modules.get(name), PathFinder.find_spec(name, [os.getcwd()])
    if loaded is None or found is None or found.origin == getattr(loaded, "__file__", None):
        return False
    folder = Path(__file__).parents[2] / name
    if loaded.__file__ is None or Path(loaded.__file__).parent != folder:
        if found.loader is not None:
            raise EnvError(f"{loaded.__file__} has this name and is loaded; rename {found.origin}")
        return False
    path, own = [*loaded.__path__], [*(found.submodule_search_locations or ())]
    modules = {each.name for each in iter_modules([str(folder)])}
    if both := sorted(modules & {each.name for each in iter_modules(own)}):
        raise EnvError(f"{name}.{both[0]} is a module of decision-transformer too; rename your {own[0]}")
    loaded.__path__ = [*path, *(each for each in own if each not in path)]
    if found.loader is not None and found.origin not in _namesakes:
        theirs = module_from_spec(found)
        theirs.__path__ = loaded.__path__
        found.loader.exec_module(theirs)
        for key, value in vars(theirs).items():
            vars(loaded).setdefault(key, value)
        _namesakes.append(str(found.origin))
    return True


_namesakes: list[str] = []
"""Files of packages that have run under the name of one of ours."""
