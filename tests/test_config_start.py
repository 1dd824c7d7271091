"""A run's configuration as the start of another: `dt train --print-config` and `--config RUN|FILE`."""

import json

import pytest
from test_cli import QUICK, files, recorded, run, trained  # noqa: F401

from dt.cli import main
from dt.config import Config
from dt.learning.description import read_description


def printed(capsys, *arguments):
    capsys.readouterr()
    assert main(["train", *map(str, arguments), "--print-config"]) == 0
    return capsys.readouterr().out


def configuration(folder):
    return read_description(folder / "run.json")["config"]


def test_the_printed_configuration_is_settled_and_trains_the_run_that_it_describes(recorded, tmp_path, capsys):  # noqa: F811
    quick = [word for word in QUICK if word not in ("--precision", "float32")]
    text = printed(capsys, recorded, "--output", tmp_path / "a", *quick, "--target-return", "2")
    settled = json.loads(text)
    assert settled["training"]["precision"] in ("float32", "bf16")
    assert settled["training"]["threads"] == 1
    assert (settled["data"]["held_out"], settled["data"]["balanced"]) == (0.0, 0.5)
    assert not (tmp_path / "a").exists()
    (tmp_path / "recipe.json").write_text(text)
    assert (
        main(["train", str(recorded), "--output", str(tmp_path / "a"), "--config", str(tmp_path / "recipe.json")]) == 0
    )
    assert configuration(tmp_path / "a") == settled


def test_other_options_change_the_configuration_of_a_run(recorded, run, capsys):  # noqa: F811
    before, there = configuration(run), files(run)
    settled = json.loads(printed(capsys, recorded, "--config", run, "--seed", 3, "--width", 16))
    assert (settled["training"].pop("seed"), settled["model"].pop("width")) == (3, 16)
    assert (before["training"].pop("seed"), before["model"].pop("width")) == (0, 8)
    assert settled == before
    assert json.loads(printed(capsys, recorded, "--config", run / "run.json"))["model"]["width"] == 8
    assert files(run) == there


def test_a_run_to_resume_prints_its_configuration_and_stays_as_it_is(recorded, run, capsys):  # noqa: F811
    there = files(run)
    assert json.loads(printed(capsys, recorded, "--output", run, "--resume")) == configuration(run)
    assert files(run) == there


def test_many_runs_start_from_a_configuration(recorded, run, tmp_path, capsys):  # noqa: F811
    text = printed(capsys, recorded, "--config", run, "--seed", 3, "--steps", 2, "--no-calibration")
    (tmp_path / "recipe.json").write_text(text)
    command = ["train-many", str(recorded), "--output", str(tmp_path / "many"), "--seeds", "5"]
    assert main([*command, "--config", str(tmp_path / "recipe.json"), "--width", "16", "--target-return", "2"]) == 0
    (folder,) = (tmp_path / "many").iterdir()
    settled, kept = json.loads(text), configuration(folder)
    assert (kept["training"].pop("seed"), kept["model"].pop("width")) == (5, 16)
    assert (settled["training"].pop("seed"), settled["model"].pop("width")) == (3, 8)
    assert (kept["model"], kept["training"], kept["data"]) == (settled["model"], settled["training"], settled["data"])
    capsys.readouterr()
    assert main([*command, "--print-config"]) == 2
    assert capsys.readouterr().err == (
        "dt: --print-config: dt train has it. dt train-many --config takes what it prints.\n"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["model"].update(width="wide"), "width"),
        (lambda config: config["model"].update(colour="red"), "colour"),
        (lambda config: config["training"].update(batch_size=0), "batch_size"),
        (lambda config: config.pop("training"), "training"),
        (lambda config: config.update(config={}), "not a Decision Transformer's run"),
    ],
)
def test_a_file_from_elsewhere_is_checked(recorded, tmp_path, capsys, change, said):  # noqa: F811
    config = Config().to_json()
    change(config)
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(config))
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"), [(None, "no such file"), ("{", "cannot be read"), ("[]", "not a configuration"), ("1", "not a")]
)
def test_what_is_no_configuration_is_refused(recorded, tmp_path, capsys, text, said):  # noqa: F811
    path = tmp_path / "theirs.json"
    if text is not None:
        path.write_text(text)
    assert main(["train", str(recorded), "--output", str(tmp_path / "run"), "--config", str(path)]) == 2
    assert f"theirs.json: {said}" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(recorded, tmp_path, capsys):  # noqa: F811
    assert main(["train", str(recorded), "--config", str(tmp_path)]) == 2
    assert "no run.json in it" in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--preset", "demo"], ["--resume", "--output", "somewhere"]])
def test_one_start_is_enough(recorded, run, capsys, other):  # noqa: F811
    assert main(["train", str(recorded), "--config", str(run), *other]) == 2
    assert "each gives a configuration to start from" in capsys.readouterr().err
