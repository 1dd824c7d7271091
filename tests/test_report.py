"""`dt report`: one HTML file with the numbers of the runs' own files, to which no name and no folder can do harm."""

import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dt.cli import main
from dt.cli.program import _parse
from dt.config import Config
from dt.learning.run import load_run
from dt.learning.training import train
from dt.sharing.html_report import page
from dt.sharing.html_report.charts import Chart, thinned, ticks
from dt.sharing.html_report.command import training_command
from dt.sharing.html_report.files import read_log, read_runs
from dt.sharing.html_report.markup import element, number, text
from dt.sharing.html_report.page import MOST_BYTES, page_of
from dt.statistics import histogram
from envs.datasets.writer import write_minari
from transformer.errors import CheckpointError, ConfigError
from transformer.files import read_json, write_json

MP4 = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256))
QUICK = ["--width", "8", "--num-layers", "1", "--context-length", "3", "--steps", "6", "--log-every", "2"]
QUICK += ["--evaluate-every", "3", "--episodes", "3", "--no-calibration", "--precision", "float32"]


@pytest.fixture(scope="module")
def made(payday, tmp_path_factory):
    """Two seeds of one training, evaluated, with log and results."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        write_minari(payday, "payday/coins-v0")
        assert main(["train-many", "payday/coins-v0", "--seeds", "0", "3", "--output", str(folder), *QUICK]) == 0
    return [folder / f"payday-coins-v0-s{seed}" for seed in (0, 3)]


@pytest.fixture
def runs(made, tmp_path):
    """Copies that a test may change."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in made]


def change(run: Path, **changes):
    """Write other fields into a run.json, those of its dataset too."""
    document = read_json(run / "run.json")
    document["dataset"] |= changes.pop("dataset", {})
    write_json(run / "run.json", {**document, **changes})


def report(*runs: Path) -> str:
    output = runs[0].parent / "report.html"
    assert main(["report", *map(str, runs), "--output", str(output)]) == 0
    return output.read_text()


def embedded(written: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', written, re.DOTALL)[1])


class Elements(HTMLParser):
    """Every element with its attributes, as a browser reads them; and the text outside scripts and styles."""

    def __init__(self, written: str):
        super().__init__()
        self.found, self.text, self._inside = [], "", ""
        self.feed(written)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def rows_of(written: str, heading: str) -> list[list[str]]:
    """The cells of the first table after a heading."""
    table = re.search(r"<table>.*?</table>", written[written.index(f">{heading}") :], re.DOTALL)[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_the_numbers_are_those_of_the_runs_files(runs):
    written = report(*runs)
    found = embedded(written)
    assert [run["name"] for run in found["runs"]] == [run.name for run in runs]
    for run, shown in zip(runs, found["runs"], strict=True):
        last, description = read_json(run / "results" / "last.json"), read_json(run / "run.json")
        assert len(last["results"]) == 5
        assert shown["results"]["last"]["measures"] == last["measures"]
        for result, theirs in zip(shown["results"]["last"]["results"], last["results"], strict=True):
            assert result == {name: theirs[name] for name in result}
            assert {"target_return", "mean_return", "returns", "lengths"} <= result.keys()
        assert shown["dataset"] == description["dataset"]
        assert shown["config"] == description["config"]
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        for kind, name in (("train", "loss"), ("evaluation", "score")):
            theirs = [[line["step"], line[name]] for line in lines if line["kind"] == kind]
            assert shown["curves"][f"{kind}/{name}"] == theirs
            assert len(theirs) >= 2
        table = rows_of(written, f"{run.name}, last checkpoint")
        expected = [[number(each["target_return"]), number(each["mean_return"])] for each in last["results"]]
        assert [row[:2] for row in table[1:]] == expected


def test_seeds_have_means_errors_and_intervals(runs):
    written = report(*runs)
    (group,) = embedded(written)["seeds"]
    files = [read_json(run / "results" / "last.json")["results"] for run in runs]
    for row, *results in zip(group["targets"], *files, strict=True):
        means = [result["mean_return"] for result in results]
        assert row["means"] == means
        assert row["mean"] == row["interquartile_mean"] == pytest.approx(np.mean(means))  # of two nothing is left out
        assert row["standard_error"] == pytest.approx(np.std(means, ddof=1) / 2**0.5)
        assert row["interval"] == pytest.approx(sorted(means))  # of two seeds both ends are drawn
    table = rows_of(written, "payday/coins-v0</h3><div")
    assert table[0] == ["target", "mean over seeds", "standard error", "IQM", "95 % interval", "seeds"]
    assert [row[0] for row in table[1:]] == [number(row["target_return"]) for row in group["targets"]]
    errors = [read_json(run / "results" / "last.json")["measures"]["mean_error"] for run in runs]
    assert rows_of(written, "Mean error, as a share")[1][1:3] == [f"{np.mean(errors):.3f}", f"{max(errors):.3f}"]


def test_one_run_has_no_section_of_seeds(runs):
    written = report(runs[0])
    assert embedded(written)["seeds"] == []
    assert "Several seeds" not in written
    assert "<h1>Report: payday-coins-v0-s0</h1>" in written


def test_data_is_counted_and_its_oddities_are_named(runs, payday):
    described = read_json(runs[0] / "run.json")["dataset"]
    assert described["histograms"]["returns"] == histogram(payday.returns)
    assert described["histograms"]["lengths"] == {"counts": [60], "edges": [9.5, 10.5]}
    assert any("episodes in Payday-v0 last up to 20 steps" in note for note in described["notes"])
    written = Elements(report(runs[0])).text
    assert all(note in written for note in described["notes"])
    assert "60 episodes, 600 steps" in written
    change(runs[0], dataset={"notes": []})
    assert "Nothing odd was found in it." in report(runs[0])


def test_a_run_of_an_earlier_version_says_what_it_lacks(runs):
    document = read_json(runs[0] / "run.json")
    for name in ("histograms", "notes"):
        del document["dataset"][name]
    write_json(runs[0] / "run.json", document)
    written = report(runs[0])
    assert "This run has no histograms" in written
    assert "Oddities" not in written


def test_an_imported_run_says_what_it_lacks(runs):
    change(runs[0], imported="somewhere", versions={})
    write_json(
        runs[0] / "run.json", {**read_json(runs[0] / "run.json"), "dataset": {"name": "theirs-v0", "targets": []}}
    )
    shutil.rmtree(runs[0] / "results")
    (runs[0] / "log.jsonl").unlink()
    written = report(runs[0])
    assert "Not trained here: imported from somewhere." in written
    assert "There is no log: nothing was trained here." in written
    assert "Trained on theirs-v0, played in Payday-v0." in written


def test_the_page_loads_nothing_from_elsewhere(runs):
    make_films(runs[0], "5")
    written = report(*runs)
    elements = Elements(written)
    for name, attributes in elements.found:
        assert name not in ("link", "iframe", "object", "embed", "img", "base", "form", "a"), name
        for key in ("src", "href", "srcset", "poster", "action", "data", "style"):
            assert attributes.get(key, "data:").startswith(
                "data:video/mp4;base64,"[: len(attributes.get(key, "data:"))]
            )
        assert not [key for key in attributes if key.startswith("on")]
    style = re.search(r"<style>(.*?)</style>", written, re.DOTALL)[1]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(each["content"] for _, each in elements.found if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    script = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


def test_its_pictures_are_well_formed(runs):
    pictures = re.findall(r"<svg.*?</svg>", report(*runs), re.DOTALL)
    assert len(pictures) >= 6
    for picture in pictures:
        tree = ElementTree.fromstring(picture.replace(" hidden ", ' hidden="" ').replace(" hidden>", ' hidden="">'))
        numbers = [
            float(value)
            for each in tree.iter()
            for name, value in each.attrib.items()
            if name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height")
        ]
        assert numbers
        assert all(math.isfinite(value) and -1 <= value <= 461 for value in numbers)


HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\ud800</style><img src=x onerror=alert(2)>"


def name_everything(run: Path, name: str, imported: bool) -> None:
    """Put a text wherever a run's files may hold one."""
    part = {"name": name, "source": name, "fingerprint": name, "fraction": 0.5, "columns": {"actions": [name]}}
    change(
        run,
        environment={"id": name, "kwargs": {"x": name}},
        **({"imported": name} if imported else {}),
        versions={name: name},
        dataset={"name": name, "notes": [name], "parts": [part, part]},
    )
    path = run / "results" / "last.json"
    write_json(path, {**read_json(path), "checkpoint": name, "measures": {name: 1.0, "mean_error": 0.5}})
    leaf = {"leaf": name, "measure": name, "error": 1.0, "baseline": 2.0}
    write_json(run / "results" / "held-out.json", {"checkpoint": name, "held_out": {"loss": 1.0, "leaves": [leaf]}})


@pytest.mark.parametrize("imported", [True, False])
def test_every_name_stays_text(runs, tmp_path, imported):
    runs = [runs[0].rename(tmp_path / "<script>folder<!-- & '\""), runs[1]]
    pages = []
    for name in ("plain", HOSTILE):
        for run in runs:
            name_everything(run, name, imported)
        pages.append(report(*runs))
    plain, hostile = map(Elements, pages)
    assert [(name, each.keys()) for name, each in hostile.found] == [(name, each.keys()) for name, each in plain.found]
    assert hostile.text.count(HOSTILE[:12]) == plain.text.count("plain") >= 15
    assert "<script>folder<!-- & '\"" in hostile.text
    assert embedded(pages[1])["runs"][0]["dataset"]["name"] == HOSTILE
    assert "\x1b" not in pages[1]


def test_text_is_escaped_unless_it_is_an_element():
    assert element("td", "<b>", element("i", 1), title='"<') == '<td title="&quot;&lt;">&lt;b&gt;<i>1</i></td>'
    assert text("\x1b") == "\\x1b"
    assert element("input", disabled=True, hidden=False, for_="a") == '<input disabled for="a">'


def make_films(run: Path, *targets: str, size: int = len(MP4)) -> Path:
    folder = run / "results"
    for target in targets:
        (folder / f"target-{target}.mp4").write_bytes(MP4.ljust(size, b"\x00"))
    return folder


def films_of(written: str) -> dict[str, str]:
    """Of each film its caption and the slider's positions at which it is shown."""
    figures = r'<figure data-picks="([\d ]*)"[^>]*class="film"><video[^>]*></video><figcaption>(.*?)</figcaption>'
    return {html.unescape(caption): picks for picks, caption in re.findall(figures, written)}


def test_the_slider_shows_the_nearest_film(runs):
    targets = [each["target_return"] for each in read_json(runs[0] / "results" / "last.json")["results"]]
    folder = make_films(runs[0], f"{targets[0]:.6g}", f"{targets[-1]:.6g}")
    (folder / "target-x.mp4").write_bytes(b"not a number")
    (folder / "target-1e999.mp4").write_bytes(b"not finite")
    (folder / "notes.txt").write_text("of its owner")
    written = report(*runs)
    (slider,) = [each for name, each in Elements(written).found if name == "input"]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "4", "4")
    middle = (targets[0] + targets[-1]) / 2
    near = [i for i, target in enumerate(targets) if target <= middle]
    assert films_of(written) == {
        f"{runs[0].name}: one episode that was asked for {number(targets[0])}": " ".join(map(str, near)),
        f"{runs[0].name}: one episode that was asked for {number(targets[-1])}": " ".join(
            str(i) for i in range(5) if i not in near
        ),
    }
    assert written.count(base64.b64encode(MP4).decode()) == 2
    assert "There are no films" not in written
    make_films(runs[0], "1234")  # a target that no result has gets a position of its own
    (slider,) = [each for name, each in Elements(report(*runs)).found if name == "input"]
    assert slider["max"] == "5"


def test_without_films_it_says_how_to_make_them(runs):
    written = html.unescape(report(*runs))
    assert "There are no films." in written
    assert f"dt evaluate {runs[0]} --video {runs[0]}/results" in written


def test_films_over_the_limit_are_left_out_by_name(runs, monkeypatch):
    make_films(runs[0], "1", "2", "3", size=300_000)
    make_films(runs[0], "9", size=900_000)
    monkeypatch.setattr(page, "MOST_BYTES", 1_000_000)
    written = report(*runs)
    assert len(written.encode()) < 1_000_000
    assert len(films_of(written)) == 2
    words = html.unescape(written)
    assert f"{runs[0].name} at 3 (0.3 MB), {runs[0].name} at 9 (0.9 MB)" in words
    monkeypatch.setattr(page, "MOST_BYTES", 10_000)
    with pytest.raises(ConfigError, match=r"the report would have 0\.\d MB without films.*Report fewer runs"):
        page_of(read_runs(runs))
    assert MOST_BYTES == 10_000_000


def test_a_run_that_was_not_evaluated_says_how_to(runs):
    shutil.rmtree(runs[0] / "results")
    written = html.unescape(report(runs[0]))
    assert f"Not evaluated: {runs[0].name}." in written
    assert f"dt evaluate {runs[0]} --json {runs[0]}/results/last.json --video {runs[0]}/results" in written
    assert "There are no films" not in written


def test_groups_are_named_by_the_settings_that_differ(runs):
    document = read_json(runs[1] / "run.json")
    document["config"]["model"]["conditioning"] = "token"
    write_json(runs[1] / "run.json", document)
    written = report(*runs)
    assert "conditioning single (1 run)" in written
    assert "conditioning token (1 run)" in written
    assert embedded(written)["seeds"] == []
    document["config"]["model"]["conditioning"] = "single"
    document["config"]["training"]["threads"] = 7  # which changes nothing that is learned
    write_json(runs[1] / "run.json", document)
    assert len(embedded(report(*runs))["seeds"]) == 1


def refused(capsys, *arguments: str) -> str:
    assert main(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("dt: ")


def test_runs_that_do_not_belong_together_are_refused(runs, capsys):
    environment = {"id": "Other-v1", "max_episode_steps": 7}
    change(runs[1], environment=environment)
    line = refused(capsys, *map(str, runs), "--output", str(runs[0].parent / "x.html"))
    assert line == (
        f"{runs[1]}: is played in Other-v1 (at most 7 steps), {runs[0]} in Payday-v0 (at most 20 steps). "
        "Write one report for each environment."
    )
    assert not (runs[0].parent / "x.html").exists()
    assert "this run is named twice" in refused(capsys, str(runs[0]), f"{runs[0]}/../{runs[0].name}")
    assert refused(capsys) == "no run named: dt report RUN [RUN ...]"


def results_of(count, value):
    """A file of results with so many targets, each of one episode that returned the value."""
    target = {
        "target_return": 1.0,
        "mean_return": value,
        "std_return": 0.0,
        "returns": [value],
        "lengths": [1],
        "normalized_score": None,
    }
    return json.dumps({"checkpoint": "step-00000001", "results": [target] * count})


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", "[]", "run.json: not a Decision Transformer's run"),
        ("results/last.json", "{", "last.json: cannot be read"),
        ("results/last.json", '{"checkpoint": "x", "results": [{}]}', "last.json: results[0].length"),
        ("results/last.json", f'{{"checkpoint": "{"x" * 10_001}", "results": []}}', "checkpoint has 10001 characters"),
        ("results/last.json", '{"checkpoint": "x", "results": 5}', "last.json: results must be a list, not 5"),
        ("results/best.json", '{"checkpoint": 5, "results": []}', "best.json: checkpoint must be a text, not 5"),
        ("results/held-out.json", '{"checkpoint": "x", "held_out": {"loss": NaN}}', "held-out.json: held_out.leaves"),
        ("log.jsonl", '{"kind": "train", "step": 1, "loss": 1}\n{"kind": "train"}\n', "log.jsonl: line 2 is not one"),
        ("log.jsonl", '{"kind": "<script>", "step": 1, "loss": 1}\n', "log.jsonl: line 1 is not one"),
        ("log.jsonl", '{"kind": "train", "step": 1, "loss": "<script>"}\n', "log.jsonl: line 1 is not one"),
        ("log.jsonl", f'{{"kind": "train", "step": {"9" * 400}, "loss": 1}}\n', "log.jsonl: line 1 is not one"),
        ("log.jsonl", '{"kind": "train", "step": 1, "loss": -1.7e308}\n', "log.jsonl: line 1 is not one"),
        ("results/last.json", results_of(1, 1e308), "last.json: a number beyond 1e+100, which no chart can show"),
        ("results/last.json", results_of(1_001, 1.0), "last.json: 1001 targets, expected at most 1000"),
        ("results/target-1.mp4", "<script>", "target-1.mp4: not an MP4 film; dt evaluate --video writes one"),
    ],
)  # fmt: skip
def test_what_no_training_wrote_is_refused_in_one_line(runs, capsys, file, content, words):
    path = runs[0] / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert words in refused(capsys, str(runs[0]), "--output", str(runs[0].parent / "x.html"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"percentiles": [1.0, 2.0]}, "dataset.percentiles has 2 entries, expected 101"),
        ({"percentiles": ["<script>"]}, "dataset.percentiles[0] must be a finite number"),
        ({"histograms": {"returns": {"counts": [1], "edges": [0, 1]}}}, "dataset.histograms.lengths is missing"),
        (
            {
                "histograms": {
                    "returns": {"counts": [1, 2], "edges": [0, 1]},
                    "lengths": {"counts": [1], "edges": [0, 1]},
                }
            },
            "dataset.histograms.returns: not the counts and edges",
        ),
        ({"notes": ["x" * 10_001]}, "dataset.notes[0] has 10001 characters"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(runs, capsys, changes, words):
    change(runs[0], dataset=changes)
    assert words in refused(capsys, str(runs[0]), "--output", str(runs[0].parent / "x.html"))


def test_links_in_a_run_are_refused_and_places_are_spared(runs, capsys, tmp_path):
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(MP4)
    link = make_films(runs[0]) / "target-1.mp4"
    link.symlink_to(secret)
    assert f"{link}: a link, where only a run's own files" in refused(capsys, str(runs[0]))
    link.unlink()
    inside = str(runs[0] / "run.json")
    assert "run.json: a part of the run" in refused(capsys, str(runs[0]), "--output", inside)
    assert "no such run" in refused(capsys, str(tmp_path / "nothing"))


def test_a_log_that_was_cut_is_read_up_to_there(tmp_path):
    lines = [{"kind": "train", "step": i, "loss": 1 / i if i > 1 else math.nan} for i in (1, 2, 3)]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_log(path) == {"train/loss": [(2, 0.5)]}  # the third has no end, the first is not finite
    assert read_log(tmp_path / "no") == {}
    path.write_text('{"kind": "train", "step": true, "loss": 1}\n')
    with pytest.raises(CheckpointError, match="line 1"):
        read_log(path)


def test_the_command_trains_the_same_again(runs):
    description = read_json(runs[1] / "run.json")
    words = training_command(description).split()
    assert words[:2] == ["dt", "train"]
    assert words[2] == description["dataset"]["parts"][0]["source"]
    assert _parse(words[1:]).config == Config.from_json(description["config"])
    assert "--no-calibration" in words
    assert "--environment" not in words  # a Minari dataset names it


def test_the_command_of_a_flat_file_says_how_it_was_read(runs):
    part = {"name": "a b", "source": "a b.csv", "fingerprint": "", "fraction": 1.0}
    part |= {"columns": {"actions": ["x", "y"]}, "episode_length": 7, "last_row_is_final": True, "reward": "last"}
    change(runs[0], dataset={"parts": [part, {**part, "source": "c.csv", "fraction": 0.5}]})
    command = training_command(read_json(runs[0] / "run.json"))
    assert command.startswith(
        "dt train 'a b.csv' c.csv --fraction 1 0.5 --columns actions=x,y --episode-length 7 --last-row-is-final "
        "--reward last --environment Payday-v0 --max-episode-steps 20 "
    )


def test_a_report_needs_no_torch(runs):
    program = "import sys; from dt.cli import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"
    words = ["report", *map(str, runs), "--output", str(runs[0].parent / "x.html")]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_run_trained_from_python_has_a_report(payday, tmp_path):
    from test_training import small

    train(payday, small(), tmp_path / "run")
    assert load_run(tmp_path / "run").dataset["histograms"]["lengths"]["counts"] == [60]
    assert "dt train payday/coins-v0 " in html.unescape(report(tmp_path / "run"))


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert ticks(-3, 4) == [-2, 0, 2, 4]
    assert ticks(3423.1, 3423.9) == pytest.approx([3423.2, 3423.4, 3423.6, 3423.8])
    for low, high in ((0, 1e-7), (1e12, 1e12 + 5), (-7e8, 3)):
        assert 2 <= len(ticks(low, high)) <= 8


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    curve = [(i, i**0.5) for i in range(5003)]
    assert len(thinned(curve)) == 400
    assert (thinned(curve)[0], thinned(curve)[-1]) == (curve[0], curve[-1])
    assert thinned(curve[:7]) == curve[:7]


def test_a_chart_of_one_value_has_a_range():
    chart = Chart((3, 3), (0, 0), ("x", "y"), "one")
    chart.dots([(3, 0)], "c0")
    assert 'cx="257.0" cy="134.0"' in chart.svg()
