"""Runs grouped by what they were trained on and how: runs that differ in their seed only are one group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dt.config import Config
from dt.sharing.html_report.files import ReportedRun, ResultsDocument

NOT_COMPARED = (
    *("training.seed", "training.device", "training.threads"),
    *("training.log_every", "training.checkpoint_every", "training.keep_checkpoints"),
    *("evaluation.num_envs", "evaluation.env_timeout"),
)
"""Settings in which the runs of one group may differ."""


@dataclass(frozen=True)
class Group:
    """Runs of one training on one dataset, at several seeds."""

    label: str
    """How it differs from the other groups: settings and dataset."""
    settings: str
    """The settings only: groups of the same settings are one method on several datasets."""
    runs: list[ReportedRun]

    @property
    def documents(self) -> list[ResultsDocument]:
        """Results at the last checkpoint, of the runs that have been evaluated."""
        return [run.results["last"] for run in self.runs if "last" in run.results]


def grouped(runs: Sequence[ReportedRun]) -> list[Group]:
    """The groups of runs, in the order of their first runs."""
    settings = [_settings(run) for run in runs]
    differing = [name for name in settings[0] if any(each.get(name) != settings[0][name] for each in settings)]
    several_datasets = len({_dataset(run) for run in runs}) > 1
    found: dict[tuple[str, tuple[str, str]], Group] = {}
    for run, each in zip(runs, settings, strict=True):
        words = ", ".join(f"{name.split('.')[1]} {each.get(name)}" for name in differing)
        label = ", ".join(filter(None, [_dataset(run)[0] if several_datasets else "", words]))
        group = found.setdefault((words, _dataset(run)), Group(label or _dataset(run)[0], words, []))
        group.runs.append(run)
    return list(found.values())


def flattened(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration's settings by part and name, such as model.width."""
    return {f"{part}.{name}": value for part, settings in config.items() for name, value in settings.items()}


def _settings(run: ReportedRun) -> dict[str, Any]:
    config = Config.from_json(run.description["config"]).to_json()
    return {name: value for name, value in flattened(config).items() if name not in NOT_COMPARED}


def _dataset(run: ReportedRun) -> tuple[str, str]:
    """Name and fingerprint: different data may have one name."""
    data = run.description["dataset"]
    return data["name"], data.get("fingerprint", "")
