"""What the documents promise: their Python runs, their commands exist, their links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    source, _ = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    assert [result.target_return for result in names["results"]] == [500.0, 1500.0]
    assert names["done"]
    assert (tmp_path / "runs" / "readme" / "run.json").exists()


def test_the_readmes_gpt2_runs(tmp_path, monkeypatch):
    from transformer import LanguageConfig, LanguageModel, save_gpt2

    _, source = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    save_gpt2(LanguageModel(LanguageConfig(vocabulary_size=4000, width=8, activation="gelu")), tmp_path / "gpt2")
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    assert len(names["tokens"]) == 22
    assert (tmp_path / "gpt2-again" / "config.json").exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_have_the_options_that_documents_give_them(document):
    commands = [
        shlex.split(line.replace("\\\n", " "), comments=True)
        for block in blocks(document, "")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith(("dt ", "python -m transformer "))
    ]
    for words in commands:
        program, command, *arguments = ["dt", *words[1:]] if words[0] == "dt" else words[2:]
        done = subprocess.run(
            [sys.executable, "-m", program, command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        for argument in arguments:
            if argument.startswith("--"):
                assert re.search(rf"{argument}\b", done.stdout), (
                    f"{document.name}: {program} {command} has no {argument}"
                )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_files_named_in_the_architecture_exist():
    block = blocks(ROOT / "docs" / "architecture.md", "")[0]
    folder = None
    for line in block.splitlines():
        if match := re.match(r"^(\w+)/", line):
            folder = ROOT / match[1]
            assert folder.is_dir()
        elif re.match(r"^  \w+\.py", line):
            assert folder is not None
            for name in re.findall(r"\w+\.py", line):
                assert (folder / name).exists(), f"{folder.name}/{name}"
