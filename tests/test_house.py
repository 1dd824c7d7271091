"""The house: which package may import which, what an import brings in, and no pickle anywhere."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from envs import Dataset, load

ROOT = Path(__file__).parent.parent
OURS = {"transformer", "envs", "dt", "benchmarks", "tests"}
MAY_IMPORT = {"transformer": set(), "envs": set(), "dt": {"transformer", "envs"}}
FILES = {"transformer": 20, "envs": 20, "dt": 20}
"""So many files each package has at least: a check that looks at fewer does not look into the sub-packages."""


def imported(source: str) -> set[str]:
    """Top-level names of everything a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def sources(package: str) -> list[Path]:
    """Every Python file of a package, in its sub-packages too."""
    return sorted((ROOT / package).rglob("*.py"))


def forbidden(package: str, source: str) -> set[str]:
    return (imported(source) & OURS) - MAY_IMPORT[package] - {package}


MAY_NOT_IMPORT = {
    "transformer/*.py": ("transformer.runs",),
    "transformer/runs/*.py": ("transformer.text", "transformer.language", "transformer.translation"),
    "envs/reading/*.py": ("envs.datasets",),
    "dt/learning/*.py": ("dt.cli",),
    "dt/asking/*.py": ("dt.cli",),
    "dt/sharing/*.py": ("dt.cli",),
    "dt/*.py": ("dt.cli",),
}
"""Rooms, and what they know nothing of: the models of runs, reading of what is made of it, all of the command line."""

DOORS_OF_PACKAGES = {"transformer/__main__.py", "dt/__main__.py"}


def imported_modules(source: str) -> set[str]:
    """Every module that a source imports, by its full name, and each name that it imports from one."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_from(rooms: tuple[str, ...], source: str) -> list[str]:
    """What a source imports from these rooms."""
    return sorted(
        name for name in imported_modules(source) if f"{name}.".startswith(tuple(f"{each}." for each in rooms))
    )


@pytest.mark.parametrize("room", MAY_NOT_IMPORT)
def test_a_room_knows_nothing_of_some_others(room):
    files = [file for file in ROOT.glob(room) if file.relative_to(ROOT).as_posix() not in DOORS_OF_PACKAGES]
    assert len(files) >= 4
    found = {file.name: imported_from(MAY_NOT_IMPORT[room], file.read_text()) for file in files}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_the_check_of_rooms_can_fail():
    rooms = ("transformer.runs", "dt.cli")
    assert imported_from(rooms, "def f():\n    from transformer.runs.log import Log") == ["transformer.runs.log.Log"]
    assert imported_from(rooms, "from dt import cli\nimport dt.cli.sources") == ["dt.cli", "dt.cli.sources"]
    assert imported_from(rooms, "import transformer.runs_of_text, dt.client\nfrom transformer import blocks") == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = sources(package)
    assert len(files) >= FILES[package]
    assert {file: forbidden(package, file.read_text()) for file in files} == {file: set() for file in files}


def test_the_check_of_imports_can_fail():
    assert forbidden("transformer", "def f():\n    from dt.model import interleave") == {"dt"}
    assert forbidden("envs", "import transformer.blocks as b") == {"transformer"}
    assert forbidden("dt", "import envs, transformer, numpy") == set()


def test_envs_knows_no_torch_and_the_core_no_reward():
    assert all("torch" not in imported(file.read_text()) for file in sources("envs"))
    for name in ("attention", "cache", "positions", "blocks", "language", "translation", "generation", "gpt2"):
        words = (ROOT / "transformer" / f"{name}.py").read_text().lower()
        assert not [word for word in ("reward", "return-to-go", "trajector", "gymnasium", "policy") if word in words]


WORLDLY = {
    *("reward", "rewards", "episode", "episodes", "trajectory", "trajectories", "agent", "environment", "gymnasium"),
    *("policy", "policies", "rollout", "decision", "reinforcement", "offline", "minari", "conditioning"),
}
"""Words that whoever came for text should not meet."""


def worldly_words(source: str) -> set[str]:
    words = set(re.findall("[a-z]+", source.lower()))
    return words & WORLDLY | set(re.findall(r"returns?.to.go|target.returns?", source.lower()))


def test_the_four_files_of_the_core_hold_no_word_of_reinforcement_learning():
    for name in ("attention", "positions", "blocks", "language"):
        assert worldly_words((ROOT / "transformer" / f"{name}.py").read_text()) == set()
    assert worldly_words("def reward_of(episodes): return 0  # returns-to-go") == {
        "reward",
        "episodes",
        "returns-to-go",
    }


READER = """
import sys
from importlib.metadata import packages_distributions

torchs_own = "torch functorch torchgen triton nvidia cuda sympy mpmath networkx jinja2 markupsafe fsspec filelock"
kept = {*torchs_own.split(), "typing_extensions", "setuptools", "numpy", "transformer"}
sys.modules |= dict.fromkeys(set(packages_distributions()) - kept)  # None there: an import of it fails
try:
    import safetensors
except ModuleNotFoundError:
    print("alone")
import torch
import transformer

config = transformer.LanguageConfig(width=16, num_layers=1, num_heads=2, vocabulary_size=11, context_length=8)
model = transformer.LanguageModel(config)
print(*model(torch.tensor([[1, 2, 3]])).shape)
print(len(transformer.generate(model, [[1, 2]], 20, transformer.Sampling())[0]))
"""
"""Build a language model, run it and write with it, where torch and numpy alone can be imported."""


def test_the_models_need_torch_and_numpy_alone():
    done = subprocess.run([sys.executable, "-c", READER], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines() == ["alone", "1 3 11", "22"]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import envs", {"torch", "transformer", "dt"}),
        ("import transformer.blocks, transformer.runs.training", {"gymnasium", "minari", "envs", "dt", "h5py"}),
        ("import dt.cli", {"torch", "gymnasium", "minari", "matplotlib"}),
        ("import dt, transformer", {"torch", "gymnasium"}),
        (
            "import dt.sharing.report, envs.datasets.dataset",
            {"torch", "matplotlib"},
        ),  # all that `dt inspect DATASET` needs
    ],
)
def test_an_import_brings_in_no_more_than_it_must(statement, absent):
    program = f"import sys\n{statement}\nprint(*[name for name in sys.modules if name in {absent!r}])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_folder_with_source_is_a_package(package):
    """Without an `__init__.py` mypy and the wheel would pass over it."""
    folders = {file.parent for file in sources(package)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_public_name_can_be_imported():
    import dt
    import envs
    import transformer

    for package in (dt, envs, transformer):
        assert all(getattr(package, name).__doc__ for name in package.__all__)
        with pytest.raises(AttributeError):
            _ = package.no_such_name


PICKLES = {
    "pickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "torch.serialization",
    "torch.jit",
}
OPENERS = {"torch": {"load", "save", "jit", "serialization"}, "numpy": {"load"}}
"""What opens or writes a pickle by these packages; numpy's does only where it is let."""


def pickling(source: str) -> list[str]:
    """What of a source may open a pickle, as it stands there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if any(each.name in PICKLES for each in names):
                found.append(ast.unparse(node))
            case ast.ImportFrom(module=module, names=names) if module in PICKLES or any(
                each.name in OPENERS.get(str(module), ()) for each in names
            ):
                found.append(ast.unparse(node))
            case ast.Attribute(value=ast.Name(id="torch"), attr=name) if name in OPENERS["torch"]:
                found.append(ast.unparse(node))
            case ast.Attribute(attr="read_pickle" | "to_pickle"):
                found.append(ast.unparse(node))
            case ast.keyword(arg="allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "from torch import load as read",
        "torch.serialization.load(path)",
        "np.load(path, allow_pickle=trusted)",
        "np.load(path, allow_pickle=True)",
        "from numpy import load",
        "pandas.read_pickle(path)",
    ],
)
def test_what_pickles_is_noticed(line):
    assert pickling(line)
    assert pickling("np.load(path, allow_pickle=False); torch.save_nothing; model.load(path)") == []


DOORS = {"transformer/runs/console.py", "transformer/text/cli.py"}


def test_text_leaves_by_one_door():
    """Where what would command a terminal is taken out; what a model of text has written is its user's own."""
    for package in ("dt", "envs", "transformer"):
        for file in sources(package):
            if file.relative_to(ROOT).as_posix() not in DOORS:
                assert not re.search(r"(?<![\w.])print\(|std(out|err)\.write", file.read_text()), file


def test_nothing_is_pickled():
    files = [file for package in MAY_IMPORT for file in sources(package)]
    assert len(files) >= sum(FILES.values())
    for file in files:
        assert pickling(file.read_text()) == [], file


STOPS = 31
"""So many functions a source of flat arrays goes through at most, from `load` to the arrays."""


def carries(value, text: str) -> bool:
    """Whether a value is a path or text with this in it, or an object or sequence that holds such."""
    if isinstance(value, str | Path):
        return text in str(value)
    if isinstance(value, list | tuple):
        return any(carries(each, text) for each in value[:20])
    if isinstance(value, Dataset) or not dataclasses.is_dataclass(value):
        return False
    return any(carries(each, text) for each in vars(value).values())


def functions_given(text: str, call) -> set[str]:
    """File and name of each function of envs/ that a call enters with an argument that carries this text."""
    found = set()

    def enter(frame, event, _):
        code = frame.f_code
        if event != "call" or not Path(code.co_filename).is_relative_to(ROOT / "envs") or "<" in code.co_name:
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(carries(frame.f_locals.get(name), text) for name in names):
            found.add(f"{Path(code.co_filename).stem}.{code.co_qualname}")

    sys.setprofile(enter)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_a_source_goes_through_few_functions(tmp_path):
    path = tmp_path / "walked.npz"
    rows = np.arange(6, dtype=np.float32)
    np.savez(path, observations=rows[:, None], actions=rows, rewards=rows, terminals=rows % 3 == 2)
    load(path, cache="off")  # what is set up once does not count
    found = functions_given("walked", lambda: load(path, cache="off"))
    assert {"loading.load", "dispatch.read", "declare.declare", "assemble.assemble", "check.check"} <= found
    assert len(found) <= STOPS, found
