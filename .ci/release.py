"""Check a release before it is uploaded: python .ci/release.py FOLDER [--try] [--steps N] [--tag vX.Y.Z]

FOLDER holds one sdist and one wheel. Their contents are compared with the source tree and pyproject.toml. `--try`
installs the wheel in an empty environment outside the checkout and runs the demo from it. `--tag` is the tag that the
release is made from: the version, the changelog and CITATION.cff must agree with it. `make release` does all of this.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("dt", "transformer", "envs")
LEFTOVER = re.compile(r"^(runs|build|dist)/|(^|/)(__pycache__|\.[\w-]+)(/|$)|\.(pyc|pyo|orig|rej|swp|log)$")
"""What belongs in no archive: caches, hidden files, runs, and what editors leave."""

HIDDEN = (".gitignore", ".ci/", ".github/")
"""Hidden files that an sdist has: its tests read them."""

ONLY_IN_SDIST = (
    ".ci/",
    ".github/",
    "tests/",
    "benchmarks/",
    "docs/",
    "Makefile",
    "mkdocs.yml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
"""What the sdist has beyond the packages, so that its tests and documents can be built from it."""


def source_files() -> set[str]:
    """Files of the packages in the source tree."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    return {name for path in found if not LEFTOVER.search(name := path.relative_to(ROOT).as_posix())}


def wheel_faults(path: Path, project: dict) -> list[str]:
    """What is wrong with a wheel, a line each."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        texts = {name: archive.read(name).decode() for name in names if name.startswith(f"{info}/")}
    ours = {name for name in names if not name.startswith(f"{info}/")}
    faults = [f"leftover: {name}" for name in sorted(names) if LEFTOVER.search(name)]
    faults += [f"not of the packages: {name}" for name in sorted(ours) if name.split("/")[0] not in PACKAGES]
    faults += [f"missing: {name}" for name in sorted(source_files() - ours)]
    faults += [f"missing: {name}" for package in PACKAGES if (name := f"{package}/py.typed") not in ours]
    faults += [f"missing: {info}/{name}" for name in ("METADATA", "RECORD") if f"{info}/{name}" not in texts]
    if not any(name.endswith("/LICENSE") for name in texts):
        faults.append(f"missing: the licence in {info}")
    entries = texts.get(f"{info}/entry_points.txt", "")
    for name, place in project["scripts"].items():
        if f"{name} = {place}" not in entries:
            faults.append(f"missing: the command {name}")
    return faults


def sdist_faults(path: Path, project: dict) -> list[str]:
    """What is wrong with an sdist, a line each."""
    top = f"{project['name'].replace('-', '_')}-{project['version']}/"
    with tarfile.open(path) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    names = {member.name.removeprefix(top) for member in members}
    faults = [f"outside its folder: {member.name}" for member in members if not member.name.startswith(top)]
    faults += [f"not a file: {member.name}" for member in members if not member.isfile()]
    faults += [f"leftover: {name}" for name in sorted(names) if LEFTOVER.search(name) and not name.startswith(HIDDEN)]
    needed = {*source_files(), "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"}
    faults += [f"missing: {name}" for name in sorted(needed - names)]
    faults += [f"missing: {part}" for part in ONLY_IN_SDIST if not any(name.startswith(part) for name in names)]
    return faults


def tag_faults(tag: str, project: dict, changelog: str, citation: str) -> list[str]:
    """Where a tag disagrees with the version, or with what the changelog and CITATION.cff say of it."""
    version = project["version"]
    faults = [] if tag == f"v{version}" else [f"tag {tag}, but pyproject.toml has version {version}"]
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE):
        faults.append(f"CHANGELOG.md: no heading '## {version} (YYYY-MM-DD)'")
    if f"\nversion: {version}\n" not in citation:
        faults.append(f"CITATION.cff: version is not {version}")
    return faults


def one(folder: Path, pattern: str) -> Path:
    """The only file of a pattern in a folder."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} files {pattern}, expected one; empty the folder and build again")
    return found[0]


def try_wheel(wheel: Path, torch: str, steps: int | None) -> None:
    """Install a wheel in an empty environment outside the checkout, and train the demo from it.

    Args:
        wheel: the file.
        torch: the build of torch that is installed first, as pip takes it.
        steps: of the demo's training; None is the whole demo.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        venv.create(place / "env", with_pip=True)
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

        def run(*command: str) -> str:
            print("+", *command, flush=True)
            done = subprocess.run(
                [str(place / "env" / "bin" / command[0]), *command[1:]],
                cwd=place,
                env={**env, "DECISION_TRANSFORMER_CACHE": str(place / "cache")},
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            return done.stdout

        run("python", "-m", "pip", "install", "--quiet", torch)
        run("python", "-m", "pip", "install", "--quiet", f"{wheel.resolve()}[mujoco]")
        home = run("python", "-c", "import dt, envs, transformer; print(dt.__file__, envs.__file__)").split()
        if not all(Path(file).resolve().is_relative_to(place.resolve()) for file in home):
            raise SystemExit(f"the packages were imported from {home}, not from the wheel")
        run("dt", "--help")
        run("dt-text", "--help")
        few = [] if steps is None else ["--steps", str(steps), "--no-calibration", "--episodes", "2"]
        print(run("dt", "train", "hopper/replay-v0", "--preset", "demo", "--output", "run", *few))
        for name in ("last.json", "target-against-achieved.png"):
            if not (place / "run" / "results" / name).is_file():
                raise SystemExit(f"the demo left no results/{name}")


def main() -> None:
    """Run the checks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--try", dest="tried", action="store_true", help="install the wheel and run the demo")
    parser.add_argument("--torch", default="torch", help="the build of torch to install first")
    parser.add_argument("--steps", type=int, help="steps of the demo's training; the whole demo if not given")
    parser.add_argument("--tag", help="the tag that the release is made from")
    given = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wheel, sdist = one(given.folder, "*.whl"), one(given.folder, "*.tar.gz")
    faults = [f"{wheel.name}: {fault}" for fault in wheel_faults(wheel, project)]
    faults += [f"{sdist.name}: {fault}" for fault in sdist_faults(sdist, project)]
    if given.tag is not None:
        texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff")]
        faults += tag_faults(given.tag, project, *texts)
    if faults:
        raise SystemExit("\n".join(faults))
    print(f"{wheel.name} and {sdist.name}: contents as they should be", flush=True)
    if given.tried:
        try_wheel(wheel, given.torch, given.steps)
        print(f"{wheel.name}: installed in an empty environment, and the demo ran from it")


if __name__ == "__main__":
    sys.exit(main())
