"""What the documents promise: their Python runs, their commands exist, their links lead somewhere."""

import contextlib
import inspect
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import dt
import envs
import transformer
from docs.draw import PAGE, draw, run_page

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


RUN_BY_A_TEST = {
    "README.md": "test_the_readmes_python_runs",
    "python.md": "test_the_page_on_python_runs",
    "recording.md": "test_the_recording_runs",
    "huggingface.md": "test_gpt2_goes_in_and_out",
    "from-attention-to-decisions.md": "test_the_learning_path_runs_and_prints_what_it_shows",
    "tracking.md": "test_the_page_on_tracking_runs_against_stubs",
}
"""Pages with Python, and the test that runs all of it."""

NEEDS_UNPUBLISHED_DATA = {"results.md"}


def test_every_page_with_python_is_run_by_a_test():
    with_python = {document.name for document in DOCUMENTS if blocks(document, "python")}
    assert with_python == set(RUN_BY_A_TEST) | NEEDS_UNPUBLISHED_DATA
    assert set(RUN_BY_A_TEST.values()) <= set(globals())


def test_python_that_needs_unpublished_data_compiles():
    for name in NEEDS_UNPUBLISHED_DATA:
        for source in blocks(ROOT / "docs" / name, "python"):
            compile(source, name, "exec")


def test_the_readmes_python_runs(tmp_path, monkeypatch):
    (source,) = blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(source, "README.md", "exec"), names)
    assert [result.target_return for result in names["results"]] == [500.0, 1500.0]
    assert (tmp_path / "runs" / "readme" / "run.json").exists()


def test_the_page_on_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, outputs = run_page(ROOT / "docs" / "python.md")
    assert len(outputs) == 4
    assert (tmp_path / "runs" / "python" / "run.json").exists()
    assert [result.target_return for result in names["results"]] == [500.0]
    assert names["done"]
    assert (names["logs"].num_episodes, names["logs"].num_steps) == (3, 60)


def test_the_page_on_python_names_errors_that_there_are():
    named = re.findall(r"`dt\.(\w+)` \|", (ROOT / "docs" / "python.md").read_text())
    assert len(named) >= 5
    assert [name for name in named if not issubclass(getattr(dt, name), Exception)] == []


class Tracker:
    """Stands for the modules wandb, mlflow and trackio: keeps what it is given."""

    def __init__(self):
        self.logged, self.config, self.finished = [], None, []

    def init(self, project, config):
        self.config = config
        return self

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self, **how):
        self.finished.append(how)

    @contextlib.contextmanager
    def start_run(self, run_name):
        yield
        self.finish()

    def log_dict(self, config, artifact_file):
        self.config = config

    log_metrics = log


class Optuna:
    """Stands for the module optuna: its second trial is to be pruned after its first report."""

    class TrialPruned(Exception):  # noqa: N818 (the library's name)
        pass

    def __init__(self):
        self.reports, self.values = [], []

    def create_study(self, direction):
        assert direction == "maximize"
        return self

    def optimize(self, objective, n_trials):
        for self.number in range(n_trials):
            try:
                self.values.append(objective(self))
            except self.TrialPruned:
                self.values.append("pruned")

    def suggest_float(self, name, low, high, log):
        return low * 10 ** (1 + self.number)

    def report(self, value, step):
        self.reports.append((self.number, step, value))

    def should_prune(self):
        return self.number == 1


def test_the_page_on_tracking_runs_against_stubs(tmp_path, monkeypatch):
    trackers, optuna = {name: Tracker() for name in ("wandb", "mlflow", "trackio")}, Optuna()
    for name, stub in {**trackers, "optuna": optuna}.items():
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.chdir(tmp_path)
    run_page(ROOT / "docs" / "tracking.md")
    for name, tracker in trackers.items():
        lines = [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]
        expected = [
            (line["step"], {f"{line['kind']}/{key}": line[key] for key in line.keys() - {"kind", "step"}})
            for line in lines
        ]
        assert len(expected) == 6
        assert tracker.logged == expected
        assert dt.config.Config.from_json(tracker.config).training.steps == 20
        assert len(tracker.finished) == 1
    assert [type(value) for value in optuna.values] == [float, str, float]
    assert [report[:2] for report in optuna.reports] == [(0, 10), (0, 20), (1, 10), (2, 10), (2, 20)]
    assert [path.name for path in (tmp_path / "runs" / "trial-1" / "checkpoints").iterdir()] == ["step-00000010"]


def test_examples_of_trackers_have_at_most_twenty_lines():
    examples = blocks(ROOT / "docs" / "tracking.md", "python")
    assert len(examples) == 5
    assert max(len([line for line in example.splitlines() if line]) for example in examples) <= 20


def test_the_recording_runs(tmp_path, monkeypatch):
    (source,) = blocks(ROOT / "docs" / "recording.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(source.replace("300_000", "110").replace("25_000", "100"), "recording.md", "exec"), {})
    assert envs.load("runs/sac/experience").num_steps == 110
    assert (tmp_path / "runs" / "sac" / "rl_model_100_steps.zip").exists()


def test_gpt2_goes_in_and_out(tmp_path, monkeypatch):
    from transformer import LanguageConfig, LanguageModel, save_gpt2

    (source,) = blocks(ROOT / "docs" / "huggingface.md", "python")
    monkeypatch.chdir(tmp_path)
    save_gpt2(LanguageModel(LanguageConfig(vocabulary_size=4000, width=8, activation="gelu")), tmp_path / "gpt2")
    names: dict = {}
    exec(compile(source, "huggingface.md", "exec"), names)
    assert len(names["tokens"]) == 22
    assert (tmp_path / "gpt2-again" / "config.json").exists()


MODULES = {"dt-text": "transformer"}
"""What `python -m` starts a program by, where it is not its name."""


def commands_in(document: Path) -> list[list[str]]:
    """Commands of `dt` and of `dt-text` in a page's plain blocks, as words that begin at the program."""
    lines = [line for block in blocks(document, "") for line in block.replace("\\\n", " ").splitlines()]
    commands = []
    for line in lines:
        if match := re.match(r"(?:.* -m |.* do )?\s*((?:dt|dt-text|transformer) .*)", line):
            commands.append(shlex.split(match[1], comments=True))
    return commands


@cache
def help_of(program: str, command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", MODULES.get(program, program), command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_have_the_options_that_documents_give_them(document):
    for program, command, *arguments in commands_in(document):
        for argument in arguments:
            if argument.startswith("--"):
                assert re.search(rf"{argument}\b", help_of(program, command)), (
                    f"{document.name}: {program} {command} has no {argument}"
                )


def test_commands_are_found_however_they_are_started(tmp_path):
    page = tmp_path / "page.md"
    lines = [
        "dt train a --b  # c",
        "for s in 0; do dt train $s; done",
        "torchrun --d \\\n    -m dt train e",
        "python -m transformer generate",
        "dt-text translate --beams 3",
        "ls",
    ]
    page.write_text("\n".join(["```", *lines, "```", ""]))
    assert commands_in(page) == [
        ["dt", "train", "a", "--b"],
        ["dt", "train", "$s;", "done"],
        ["dt", "train", "e"],
        ["transformer", "generate"],
        ["dt-text", "translate", "--beams", "3"],
    ]
    assert sum(len(commands_in(document)) for document in DOCUMENTS) > 40


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


def files_named(block: str) -> list[str]:
    """The Python files of a tree of folders, one folder or file a line, each level two spaces further to the right."""
    folders: list[str] = []
    named = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        if match := re.match(r" *(\w+)/", line):
            folders[depth:] = [match[1]]
        elif match := re.match(r"( *)((?:\w+\.py ?)+)", line):
            named += ["/".join([*folders[:depth], name]) for name in match[2].split()]
    return named


def test_the_architecture_names_the_files_that_there_are():
    """Those of the packages, in their sub-packages too, each with its role; no other, none twice, and none left out."""
    named = files_named(blocks(ROOT / "docs" / "architecture.md", "")[0])
    there = [path for package in ("transformer", "envs", "dt") for path in (ROOT / package).rglob("*.py")]
    assert len(there) > 60
    expected = sorted(str(path.relative_to(ROOT)) for path in there if path.name != "__init__.py")
    assert sorted(name for name in named if not name.startswith(("docs/", "tests/"))) == expected


def test_the_reading_of_that_tree_can_fail():
    tree = "dt/  on top\n  a.py b.py  two\n  learning/  below\n    c.py     one\n  d.py       after it\nenvs/\n  e.py"
    assert files_named(tree) == ["dt/a.py", "dt/b.py", "dt/learning/c.py", "dt/d.py", "envs/e.py"]


def unshown(outputs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(shown, printed) for shown, printed in outputs if shown != printed]


def misquoted(quotations: list[str]) -> list[str]:
    """Quotations, each begun by `# file`, whose lines do not stand in that file one after the other."""
    wrong = []
    for quotation in quotations:
        name, *lines = quotation.splitlines()
        source = (ROOT / name.removeprefix("# ")).read_text().splitlines()
        windows = (source[i : i + len(lines)] for i in range(len(source)))
        if not any(textwrap.dedent("\n".join(window)) == "\n".join(lines) for window in windows):
            wrong.append(quotation)
    return wrong


@pytest.fixture(scope="module")
def path():
    """What the learning path's Python leaves behind, and for each block what is shown under it and what it printed."""
    return run_page(PAGE)


def test_the_learning_path_runs_and_prints_what_it_shows(path):
    _, outputs = path
    assert unshown(outputs) == []
    assert len(outputs) == len(blocks(PAGE, "python")) >= 15
    assert [shown for shown, _ in outputs if shown] == blocks(PAGE, "text")  # none stands anywhere else
    languages = re.findall(r"^```(.*)\n(?:.*\n)*?```$", PAGE.read_text(), re.MULTILINE)
    assert set(languages) == {"", "python", "text", "py"}


def test_the_learning_path_quotes_the_source():
    quotations = blocks(PAGE, "py")
    assert len(quotations) >= 10
    assert misquoted(quotations) == []


def test_the_learning_paths_pictures_are_those_that_are_drawn(path, tmp_path):
    names, _ = path
    draw(names, tmp_path, dpi=20)
    drawn = {picture.name for picture in tmp_path.iterdir()}
    kept = {picture.name: picture.stat().st_size for picture in (PAGE.parent / "pictures").glob("path-*.png")}
    assert drawn == set(kept) == set(re.findall(r"\(pictures/(path-.*\.png)\)", PAGE.read_text()))
    assert max(kept.values()) < 80_000


def test_the_checks_of_the_learning_path_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 3\n```\n\n```python\nprint(x)\n```\n\n```text\n4\n```\n\n```python\nprint(x)\n```\n"
    )
    assert unshown(run_page(page)[1]) == [("4\n", "3\n"), ("", "3\n")]
    page.write_text("text\n\n```python\nassert 3 == 4\n```\n")
    with pytest.raises(AssertionError) as caught:
        run_page(page)
    assert caught.traceback[-1].lineno == 3  # counted from 0: the page's own fourth line
    assert misquoted(["# dt/model.py\nreturn torch.cat(parts)"]) == ["# dt/model.py\nreturn torch.cat(parts)"]
    assert (
        misquoted(["# dt/model.py\nreturn torch.stack(parts, dim=2).flatten(1, 2)  # (B, T, P, D) -> (B, T P, D)"])
        == []
    )


def described(docstring: str) -> list[str]:
    """Parameters that the `Args:` of a docstring describe."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE)
    return re.findall(r"^    \*{0,2}(\w+): ", section[1], re.MULTILINE) if section else []


def misdescribed(function: Callable[..., object], docstring: str) -> set[str]:
    """Parameters that a function has and its docstring does not describe, and the other way round."""
    parameters = {name for name in inspect.signature(function).parameters if name != "self"}
    return parameters ^ set(described(docstring))


def public_functions() -> Iterator[tuple[str, Callable[..., object], str]]:
    """Functions and methods of the public names, each with the docstring that describes its parameters."""
    for package in (dt, envs, transformer):
        for name in package.__all__:
            thing = getattr(package, name)
            yield f"{package.__name__}.{name}", thing, inspect.getdoc(thing) or ""
            for method, function in vars(thing).items() if isinstance(thing, type) else ():
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{package.__name__}.{name}.{method}", function, inspect.getdoc(function) or ""


def test_docstrings_describe_the_parameters_that_there_are():
    checked = {name: misdescribed(thing, text) for name, thing, text in public_functions() if "Args:" in text}
    assert {name: wrong for name, wrong in checked.items() if wrong} == {}
    functions = [name for name, thing, text in public_functions() if inspect.isfunction(thing) and name.count(".") == 1]
    assert [name for name in functions if name not in checked] == []


def test_the_check_of_docstrings_can_fail():
    def function(one, two):
        """Does a thing.

        Args:
            one: a number.
                It is small: really.
            three: another.
        """

    assert misdescribed(function, inspect.getdoc(function)) == {"two", "three"}
