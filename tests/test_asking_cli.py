"""The commands that ask for returns: targets in words, guidance, calibration, and what is refused."""

import hashlib
import json
import shutil

import pytest
from conftest import Payday  # noqa: F401 (registers Payday-v0)

from dt.cli import main
from envs.datasets.writer import write_minari
from transformer.files import write_json

SMALL = "--steps 40 --width 16 --num-layers 1 --num-heads 2 --context-length 3 --evaluate-every 0 --precision float32"


@pytest.fixture(scope="module")
def run(payday, tmp_path_factory):
    """A run that `dt train` has calibrated."""
    root = tmp_path_factory.mktemp("asking")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        write_minari(payday, "payday/asked-v0")
        words = ["train", "payday/asked-v0", "--output", str(root / "run"), *SMALL.split()]
        assert main([*words, "--calibration-steps", "4000", "--episodes", "3"]) == 0
        yield root / "run"


def evaluated(run, path, capsys, *words):
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", str(path), "--episodes", "2", *words]) == 0
    out, err = capsys.readouterr()
    return json.loads(path.read_text()), out, err


def test_training_calibrates_and_ends_with_the_measures(run):
    document = json.loads((run / "results" / "last.json").read_text())
    assert document["guidance"] == "calibrated"
    assert set(document["measures"]) == {"mean_error", "episode_error", "rank_correlation"}  # 3 episodes, not 20
    assert len(document["requests"]) == len(document["results"]) == 5
    assert (run / "results" / "target-against-achieved.png").stat().st_size > 10_000


def test_targets_are_said_in_words(run, tmp_path, capsys):
    document, _, err = evaluated(run, tmp_path / "a.json", capsys, "--target-return", "3", "p50", "max", "1.2x")
    assert [result["target_return"] for result in document["results"]] == pytest.approx([3, 4.5, 10, 12], abs=1)
    assert "outside the data's returns, 0 to 10" in err
    assert "is more than this run was seen to earn" in err


def test_the_standard_targets_have_an_alignment_error(run, tmp_path, capsys):
    document, out, _ = evaluated(run, tmp_path / "b.json", capsys)
    assert "mean_error" in document["measures"]
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert "alignment error" in capsys.readouterr().out
    assert "alignment error" not in out


def test_guidance_and_no_calibration_play_without_the_calibration(run, tmp_path, capsys):
    guided = evaluated(run, tmp_path / "c.json", capsys, "--guidance", "2.5")[0]
    plain = evaluated(run, tmp_path / "d.json", capsys, "--no-calibration")[0]
    one = evaluated(run, tmp_path / "e.json", capsys, "--guidance", "1")[0]
    assert (guided["guidance"], plain["guidance"], one["guidance"]) == (2.5, 1.0, 1.0)
    assert plain["results"] == one["results"]
    assert "requests" not in guided


def test_a_calibration_is_made_again_and_said_where_it_does_not_hold(run, tmp_path, capsys):
    before = (run / "calibration-last.json").read_text()
    capsys.readouterr()
    assert main(["calibrate", str(run), "--calibration-steps", "4000"]) == 0
    out = capsys.readouterr().out
    assert "request" in out and "guidance" in out  # noqa: PT018
    assert f"dt evaluate {run}" in out
    assert (run / "calibration-last.json").read_text() == before
    _, _, err = evaluated(run, tmp_path / "f.json", capsys, "--temperature", "1")
    assert "not used: it was measured with a different temperature 1.0 (calibrated with 0.0); dt calibrate" in err


def test_auto_plays_each_curves_best_request(run, tmp_path, capsys):
    document, out, _ = evaluated(run, tmp_path / "g.json", capsys, "--target-return", "auto")
    guidances = [result["guidance"] for result in document["sweep"]["results"]]
    assert guidances[-1] == 1.0  # the maximum itself
    assert guidances[:-1] == sorted(set(guidances[:-1]))
    assert "earned most; scored on other seeds" in out
    assert document["measures"] == {}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "{run}", "--target-return", "p101"], "a percentile is p0 to p100"),
        (["evaluate", "{run}", "--target-return", "most"], "expected a number, p90, max or 1.2x"),
        (["evaluate", "{run}", "--guidance", "-1"], "guidance must be at least 0"),
        (["evaluate", "{run}", "--eval-context-length", "9"], "context_length must be 1 to 3"),
        (["evaluate", "{run}", "--seed", "4000010"], "give another seed"),
        (["evaluate", "{run}", "--seed", "1000000"], "give another seed"),
        (["calibrate", "{run}", "--calibration-steps", "100"], "give --calibration-steps 260 or more"),
        (["calibrate", "{run}x"], "no such run"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(run, capsys, words, expected):
    capsys.readouterr()
    assert main([word.format(run=run) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err.strip().splitlines()[-1]


def test_a_clone_cannot_be_calibrated(run, tmp_path, capsys):
    source = str(run.parent / "payday" / "asked-v0")
    words = ["train", source, "--output", str(tmp_path / "clone"), *SMALL.split(), "--conditioning", "none"]
    assert main([*words, "--episodes", "1"]) == 0
    assert not list((tmp_path / "clone").glob("calibration*"))
    capsys.readouterr()
    assert main(["calibrate", str(tmp_path / "clone")]) == 2
    assert "conditioning none does not depend on a target return" in capsys.readouterr().err


def forgetful(run, folder):
    """A copy of a run as an earlier version wrote it: without its data's returns, and without a calibration."""
    shutil.copytree(run, folder)
    (folder / "calibration-last.json").unlink()
    for path in folder.rglob("run.json"):
        document = json.loads(path.read_text())
        del document["dataset"]["percentiles"]
        write_json(path, document)
        if (manifest := path.parent / "manifest.json").exists():
            entries = json.loads(manifest.read_text())
            entries["sha256"]["run.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
            write_json(manifest, entries)
    return folder


def test_a_run_of_before_is_calibrated_by_its_data(run, tmp_path, capsys):
    old = forgetful(run, tmp_path / "old")
    capsys.readouterr()
    assert main(["calibrate", str(old), "--calibration-steps", "4000"]) == 0
    ours, theirs = (json.loads((folder / "calibration-last.json").read_text()) for folder in (run, old))
    assert theirs["curves"] == ours["curves"]
    assert evaluated(old, tmp_path / "h.json", capsys, "--target-return", "4")[0]["guidance"] == "calibrated"


def test_a_run_of_before_whose_data_is_gone_asks_for_it(run, tmp_path, capsys, monkeypatch):
    old = forgetful(run, tmp_path / "old")
    source = run.parent / "payday" / "asked-v0"
    moved = source.rename(tmp_path / "moved")
    try:
        capsys.readouterr()
        assert main(["calibrate", str(old), "--calibration-steps", "4000"]) == 2
        assert "--dataset says where payday/asked-v0 lies now" in capsys.readouterr().err
        words = ["calibrate", str(old), "--calibration-steps", "4000", "--dataset", str(moved)]
        assert main(words) == 0
    finally:
        moved.rename(source)
