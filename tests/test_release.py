"""What is checked before a release: the contents of wheel and sdist, the tag, and the workflow that publishes."""

import importlib.util
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INFO = f"decision_transformer-{PROJECT['version']}.dist-info"
TOP = f"decision_transformer-{PROJECT['version']}"


def _load():
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = _load()


def in_wheel() -> dict[str, str]:
    """Files of a wheel as hatchling makes it."""
    entries = "[console_scripts]\n" + "".join(f"{name} = {place}\n" for name, place in PROJECT["scripts"].items())
    about = {"METADATA": "", "RECORD": "", "WHEEL": "", "entry_points.txt": entries, "licenses/LICENSE": ""}
    return dict.fromkeys(release.source_files(), "") | {f"{INFO}/{name}": text for name, text in about.items()}


def wheel_faults(tmp_path, files: dict[str, str]) -> list[str]:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return release.wheel_faults(tmp_path / "a.whl", PROJECT)


def in_sdist() -> set[str]:
    more = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore", "tests/test_a.py", "benchmarks/a.py"}
    more |= {".ci/a.py", ".github/a.yml"}
    return {*release.source_files(), *more, "docs/a.md", "Makefile", "mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"}


def sdist_faults(tmp_path, names: set[str]) -> list[str]:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in sorted(names):
            archive.addfile(tarfile.TarInfo(name if name.startswith("/") else f"{TOP}/{name}"))
    return release.sdist_faults(tmp_path / "a.tar.gz", PROJECT)


def test_a_wheel_of_the_packages_is_right(tmp_path):
    files = in_wheel()
    assert wheel_faults(tmp_path, files) == []
    modules = {
        path.relative_to(ROOT).as_posix()
        for name in ("dt", "envs", "transformer")
        for path in (ROOT / name).rglob("*.py")
    }
    assert modules <= files.keys()
    assert {"envs/data/hopper-replay-v0.npz", "dt/py.typed", "dt/runner.py"} <= files.keys()
    assert not [name for name in files if name.startswith(("tests", "benchmarks"))]


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("tests/test_a.py", "not of the packages: tests/test_a.py"),
        ("benchmarks/speed.py", "not of the packages: benchmarks/speed.py"),
        ("dt/__pycache__/a.cpython-311.pyc", "leftover: dt/__pycache__/a.cpython-311.pyc"),
        ("envs/data/.hidden", "leftover: envs/data/.hidden"),
    ],
)
def test_what_does_not_belong_in_a_wheel_is_named(tmp_path, more, fault):
    assert wheel_faults(tmp_path, {**in_wheel(), more: ""}) == [fault]


@pytest.mark.parametrize(
    ("gone", "fault"),
    [
        ("transformer/py.typed", "missing: transformer/py.typed"),
        ("dt/sharing/__init__.py", "missing: dt/sharing/__init__.py"),
        ("envs/data/hopper-replay-v0.npz", "missing: envs/data/hopper-replay-v0.npz"),
        (f"{INFO}/licenses/LICENSE", f"missing: the licence in {INFO}"),
        (f"{INFO}/METADATA", f"missing: {INFO}/METADATA"),
        (f"{INFO}/entry_points.txt", "missing: the command dt"),
    ],
)
def test_what_a_wheel_lacks_is_named(tmp_path, gone, fault):
    files = in_wheel()
    del files[gone]
    assert fault in wheel_faults(tmp_path, files)


def test_an_sdist_is_right_or_its_faults_are_named(tmp_path):
    assert sdist_faults(tmp_path, in_sdist()) == []
    assert sdist_faults(tmp_path, in_sdist() - {"LICENSE"}) == ["missing: LICENSE"]
    assert sdist_faults(tmp_path, in_sdist() - {"docs/a.md"}) == ["missing: docs/"]
    assert sdist_faults(tmp_path, in_sdist() | {"runs/a.json"}) == ["leftover: runs/a.json"]
    assert sdist_faults(tmp_path, in_sdist() | {".env"}) == ["leftover: .env"]
    assert sdist_faults(tmp_path, in_sdist() | {"/etc/a"}) == ["outside its folder: /etc/a"]


def test_a_tag_agrees_with_version_changelog_and_citation():
    version = PROJECT["version"]
    changelog, citation = f"# Changelog\n\n## {version} (2026-12-01)\n", f"title: x\nversion: {version}\nlicense: MIT\n"
    assert release.tag_faults(f"v{version}", PROJECT, changelog, citation) == []
    assert release.tag_faults("v9.9", PROJECT, changelog, citation) == [
        f"tag v9.9, but pyproject.toml has version {version}"
    ]
    unreleased = changelog.replace("2026-12-01", "unreleased")
    assert release.tag_faults(f"v{version}", PROJECT, unreleased, "") == [
        f"CHANGELOG.md: no heading '## {version} (YYYY-MM-DD)'",
        f"CITATION.cff: version is not {version}",
    ]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_only_one_job_may_publish_and_none_holds_a_token():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    workflow = yaml.load(text, yaml.BaseLoader)  # where `on` is a word
    assert workflow["on"] == {"push": {"tags": ["v[0-9]*"]}}
    assert not workflow["permissions"]
    jobs = workflow["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read"},
        "publish": {"id-token": "write"},
    }
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == "release"
    assert [step["uses"] for step in jobs["publish"]["steps"]][-1].startswith("pypa/gh-action-pypi-publish@")
    assert not [step for step in jobs["publish"]["steps"] if "run" in step]
    assert "secrets." not in text
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert commands[0] == ".ci/run"
    assert 'make release TAG="$GITHUB_REF_NAME"' in commands[1]
