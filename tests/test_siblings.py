"""A project's own `envs/` or `transformer/`: ours and theirs are both found, or one line says what is in the way."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
GRID = """
import gymnasium, numpy as np
class Grid(gymnasium.Env):
    observation_space, action_space = gymnasium.spaces.Box(0, 1, (2,), np.float32), gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.random(2, dtype=np.float32), {}
    def step(self, action):
        return self.np_random.random(2, dtype=np.float32), float(action), False, False, {}
"""
REGISTER = """
from gymnasium.envs.registration import register
register("Mine/Grid-v0", "envs.grid:Grid", max_episode_steps=4)
SIZE = 7
"""


@pytest.fixture
def project(tmp_path):
    """A folder with a dataset, a package `envs` that registers an environment, and a command `dt`."""
    rng = np.random.default_rng(0)
    ends = np.arange(40) % 4 == 3
    np.savez(
        tmp_path / "d.npz", observations=rng.random((40, 2)), actions=rng.integers(0, 2, 40), rewards=rng.random(40),
        truncated=ends,
    )  # fmt: skip
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text(REGISTER)
    (tmp_path / "envs" / "grid.py").write_text(GRID)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "dt").write_text(
        "import sys\nfrom dt.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    return tmp_path


def run(project, *words, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MINARI_DATASETS_PATH": str(project / "minari"), **variables}
    done = subprocess.run([sys.executable, *words], cwd=project, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def script(project, text):
    (project / "script.py").write_text(text)
    return run(project, "script.py")


def test_python_m_dt_takes_our_packages_and_runs_nothing_of_theirs(project):
    for name in ("envs", "transformer"):
        (project / name).mkdir(exist_ok=True)
        (project / name / "__init__.py").write_text("open('ran', 'w')")
        (project / name / "config.py").write_text("")
    code, out, err = run(project, "-m", "dt", "inspect", "d.npz")
    assert (code, err) == (0, "")
    assert "10 episodes" in out
    assert not (project / "ran").exists()


def test_import_of_a_package_named_envs_registers_what_it_registers(project):
    for number, words in enumerate((["bin/dt"], ["-m", "dt"])):
        command = [*words, "record", "Mine/Grid-v0", f"mine/grid-v{number}", "--policy", "random", "--episodes", "2"]
        code, _, err = run(project, *command, "--import", "envs", "--env-timeout", "60")
        assert code == 0, err
        assert (project / "minari" / "mine" / f"grid-v{number}").is_dir()


def test_a_module_that_imports_the_projects_envs_is_imported(project):
    (project / "game.py").write_text("import envs.grid\nfrom envs import SIZE\nassert SIZE == 7")
    command = ["inspect", "d.npz", "--environment", "Mine/Grid-v0", "--import", "game"]
    code, out, err = run(project, "bin/dt", *command)
    assert (code, err) == (0, "")
    assert "Mine/Grid-v0, at most 4 steps" in out
    (project / "game.py").write_text("import envs.gird")
    code, _, err = run(project, "bin/dt", *command)
    assert (code, err) == (2, "dt: --import game: ModuleNotFoundError: No module named 'envs.gird'\n")


def test_a_script_has_its_own_envs_and_dt_has_ours(project):
    code, out, err = script(project, "import dt, envs.grid\nprint(dt.load('d.npz').num_episodes, envs.SIZE, envs.grid)")
    assert (code, err) == (0, "")
    assert out.startswith("10 7 <module 'envs.grid'")
    code, out, err = script(project, "import envs\nimport dt\nprint(envs.SIZE, dt.load('d.npz').num_episodes)")
    assert (code, out, err) == (0, "7 10\n", "")


def test_a_script_whose_modules_have_the_names_of_ours_is_refused_by_name(project):
    (project / "envs" / "spaces.py").write_text("")
    code, _, err = script(project, "import dt")
    assert code == 1
    assert err.splitlines()[-1] == (
        f"ImportError: {project}/envs/__init__.py: hides the package envs that dt needs, and spaces is in both. "
        "Rename your envs, or run the command dt in a terminal."
    )
    (project / "envs" / "spaces.py").unlink()
    (project / "envs" / "__init__.py").write_text("from gymnasium import spaces")  # ours would take its place
    assert "and spaces is in both" in script(project, "import dt")[2]
    (project / "envs" / "__init__.py").write_text("raise OSError('no display')")
    assert script(project, "import dt")[2].splitlines()[-1] == "OSError: no display"


def test_one_file_named_envs_is_found_too(project):
    (project / "envs" / "grid.py").rename(project / "grid.py")
    (project / "envs" / "__init__.py").unlink()
    (project / "envs").rmdir()
    (project / "envs.py").write_text(REGISTER.replace("envs.grid", "grid"))
    code, out, err = script(project, "import dt, envs\nprint(dt.load('d.npz').num_episodes, envs.SIZE)")
    assert (code, out, err) == (0, "10 7\n", "")
    command = ["record", "Mine/Grid-v0", "mine/grid-v0", "--policy", "random", "--episodes", "1", "--import", "envs"]
    code, _, err = run(project, "bin/dt", *command)
    assert code == 0, err


def test_a_folder_without_an_init_stays_importable(project):
    (project / "envs" / "__init__.py").unlink()
    code, out, err = script(project, "import dt, envs, envs.grid\nprint(envs.load('d.npz').num_episodes)")
    assert (code, out, err) == (0, "10\n", "")


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("envs", {"envs/spaces.py": ""}, "envs.spaces is a module of decision-transformer too; rename your "),
        ("numpy", {"numpy/__init__.py": ""}, "/numpy/__init__.py has this name and is loaded; rename "),
    ],
)
def test_a_package_that_cannot_be_imported_beside_one_that_is_loaded_is_refused(project, module, content, message):
    for name, text in content.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    command = ["inspect", "d.npz", "--environment", "Mine/Grid-v0", "--import", module]
    code, _, err = run(project, "bin/dt", *command)
    (line,) = err.splitlines()
    assert code == 2
    assert line.startswith(f"dt: --import {module}: ")
    assert message in line
    assert line.endswith(f"{project}/{next(iter(content)) if module == 'numpy' else 'envs'}")


def taken_from_a_package(source: str) -> list[str]:
    """Names that a source takes from `envs` or `transformer` itself, and not from one of their modules."""
    taken = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("envs", "transformer"):
            folder = ROOT / node.module
            taken += [
                each.name
                for each in node.names
                if not ((folder / f"{each.name}.py").exists() or (folder / each.name).is_dir())
            ]
    return taken


def test_our_own_code_needs_only_modules_of_its_packages():
    """A package of a user's that has the name stands in the place of ours; its modules are ours by the path alone."""
    files = [file for package in ("dt", "envs", "transformer") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 60
    assert {str(file): taken_from_a_package(file.read_text()) for file in files} == {str(file): [] for file in files}
    assert taken_from_a_package("from envs import load, spaces") == ["load"]
