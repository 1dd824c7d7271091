"""The house: which package may import which, what an import brings in, and no pickle anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"transformer", "envs", "dt", "benchmarks", "tests"}
MAY_IMPORT = {"transformer": set(), "envs": set(), "dt": {"transformer", "envs"}}


def imported(source: str) -> set[str]:
    """Top-level names of everything a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def forbidden(package: str, source: str) -> set[str]:
    return (imported(source) & OURS) - MAY_IMPORT[package] - {package}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).glob("*.py"))
    assert len(files) >= 6
    assert {file.name: forbidden(package, file.read_text()) for file in files} == {file.name: set() for file in files}


def test_the_check_of_imports_can_fail():
    assert forbidden("transformer", "def f():\n    from dt.model import interleave") == {"dt"}
    assert forbidden("envs", "import transformer.blocks as b") == {"transformer"}
    assert forbidden("dt", "import envs, transformer, numpy") == set()


def test_envs_knows_no_torch_and_the_core_no_reward():
    assert all("torch" not in imported(file.read_text()) for file in (ROOT / "envs").glob("*.py"))
    for name in ("attention", "positions", "blocks", "language", "translation", "generation", "huggingface"):
        words = (ROOT / "transformer" / f"{name}.py").read_text().lower()
        assert not [word for word in ("reward", "return-to-go", "trajector", "gymnasium", "policy") if word in words]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import envs", {"torch", "transformer", "dt"}),
        ("import transformer.blocks, transformer.training", {"gymnasium", "minari", "envs", "dt", "h5py"}),
        ("import dt.cli", {"torch", "gymnasium", "minari", "matplotlib"}),
        ("import dt, transformer", {"torch", "gymnasium"}),
        ("import dt.report, envs.datasets", {"torch", "matplotlib"}),  # all that `dt inspect DATASET` needs
    ],
)
def test_an_import_brings_in_no_more_than_it_must(statement, absent):
    program = f"import sys\n{statement}\nprint(*[name for name in sys.modules if name in {absent!r}])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_every_public_name_can_be_imported():
    import dt
    import envs
    import transformer

    for package in (dt, envs, transformer):
        assert all(getattr(package, name).__doc__ for name in package.__all__)
        with pytest.raises(AttributeError):
            _ = package.no_such_name


def test_nothing_is_pickled():
    for package in MAY_IMPORT:
        for file in (ROOT / package).glob("*.py"):
            source = file.read_text()
            assert not imported(source) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
            assert "torch.load" not in source
            assert "torch.save" not in source
            assert "allow_pickle=True" not in source
