"""The model card of a run: README.md with its table, its picture, its film and the commands that use it. No torch."""

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from transformer.runs.console import printable


class Result(TypedDict):
    """What a target earned, as `dt evaluate` writes it."""

    target_return: float
    mean_return: float | None
    std_return: float | None
    returns: list[float]


class Results(TypedDict):
    """Results of `dt evaluate`, as far as a card shows them."""

    checkpoint: str
    environment: str
    seed: int
    results: list[Result]
    partial: NotRequired[Any]
    measures: NotRequired[dict[str, float]]


class Error(TypedDict):
    """An error on held-out episodes."""

    loss: float


class HeldOut(TypedDict):
    """Results where there is no environment, as far as a card shows them."""

    checkpoint: str
    held_out: Error


LONGEST = 200
"""Characters of a name that goes into a card."""


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    name: USER/NAME on the hub.
    document: the run.json.
    checkpoint: the name of the checkpoint, such as step-00001000.
    results: the JSON of `dt evaluate`; None if that checkpoint has none.
    held_out: the same where there is no environment.
    calibrated: whether a calibration is sent too.
    picture: the picture's name in the repository; None if there is none.
    film: the film's.
    """

    name: str
    document: Mapping[str, Any]
    checkpoint: str
    results: Results | None = None
    held_out: HeldOut | None = None
    calibrated: bool = False
    picture: str | None = None
    film: str | None = None

    def text(self) -> str:
        """The README.md."""
        parts = [self._header(), self._opening(), self._scores(), self._use(), self._origin()]
        return "\n\n".join(part for part in parts if part) + "\n"

    @property
    def environment(self) -> str | None:
        """Id of the environment, as a file says it; None where there is none."""
        described = self.document["environment"]
        return described and str(described["id"])

    def _header(self) -> str:
        """The metadata that the hub reads. Each value is JSON, so that no name of a file's can add a line to it."""
        tags = ["reinforcement-learning", "offline-reinforcement-learning", "decision-transformer"]
        tags += [plain(self.environment)] if self.environment else []
        fields: dict[str, Any] = {
            "library_name": "decision-transformer",
            "pipeline_tag": "reinforcement-learning",
            "tags": tags,
        }
        if best := self._best():
            score = {
                "type": "mean_reward",
                "value": f"{best[0]:.2f} ± {best[1]:.2f}",
                "name": "mean_reward",
                "verified": False,
            }
            task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
            place = {"name": plain(self.environment), "type": plain(self.environment)}
            result = {"task": task, "dataset": place, "metrics": [score]}
            fields["model-index"] = [{"name": self.name.partition("/")[2], "results": [result]}]
        lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
        return "\n".join(["---", *lines, "---"])

    def _opening(self) -> str:
        where = f" in {escaped(self.environment)}" if self.environment else ""
        return (
            f"# {escaped(self.name.partition('/')[2])}\n\n"
            f"A [Decision Transformer](https://arxiv.org/abs/2106.01345){where}. "
            "It learned from recorded episodes. Ask it for a return, and it acts so as to earn about that much."
        )

    def _scores(self) -> str:
        if self.results is not None:
            rows = [row(result) for result in self.results["results"]]
            head = "| target return | achieved return | std | episodes |\n| --- | --- | --- | --- |"
            found = self.results.get("measures") or {}
            measured = ", ".join(f"{plain(name).replace('_', ' ')} {value:.3f}" for name, value in found.items())
            seed = f"Episode i of each target starts from environment seed {self.results['seed']} + i."
            lines = ["## Target and achieved returns", "\n".join([head, *rows]), escaped(measured), seed]
        elif self.held_out is not None:
            error = f"{self.held_out['held_out']['loss']:.4f}"
            lines = ["## Error on held-out episodes", f"The error of its actions is {error}. No returns were measured."]
        else:
            lines = ["No scores are published with this checkpoint."]
        if self.picture:
            lines.append(f"![Target and achieved returns]({self.picture})")
        if self.film:
            lines.append(f"[A film of an episode]({self.film})")
        return "\n\n".join(line for line in lines if line)

    def _use(self) -> str:
        source = f"hf://{self.name}"
        targets = self.document["dataset"]["targets"]
        target = f"{targets[len(targets) // 2]:.5g}" if targets else "G"
        if self.environment is None:
            command = f"dt evaluate {source} --download --environment ID --target-return {target}"
        else:
            command = f"dt evaluate {source} --download --target-return {target}"
        python = f'import dt\n\nrun = dt.load_run("{source}", download=True)\npolicy = run.policy()'
        return f"## Use it\n\n```\n{command}\n```\n\n```python\n{python}\n```" + (
            "\n\nIts calibration comes with it: a target return becomes the request that earns it."
            if self.calibrated
            else ""
        )

    def _origin(self) -> str:
        data, config = self.document["dataset"], self.document["config"]
        model, training = config["model"], config["training"]
        versions = self.document.get("versions") or {}
        lines = [
            f"- Dataset: {escaped(data['name'])}"
            + (f", {data['episodes']} episodes, {data['steps']} steps" if "episodes" in data else ""),
            f"- Model: conditioning {model['conditioning']}, context length {model['context_length']}, "
            f"width {model['width']}, {model['num_layers']} layers",
            f"- Training: {training['steps']} steps of {training['batch_size']} windows, seed {training['seed']}; "
            f"this is checkpoint {self.checkpoint}",
            f"- Versions: {escaped(', '.join(f'{name} {version}' for name, version in versions.items()))}",
        ]
        if "imported" in self.document:
            lines[2] = f"- Imported from {escaped(self.document['imported'])}"
        return "## How it was made\n\n" + "\n".join(lines if versions else lines[:-1])

    def _best(self) -> tuple[float, float] | None:
        """Mean and std of the returns at the target that earned most."""
        rows = self.results["results"] if self.results else []
        pairs = ((result["mean_return"], result["std_return"]) for result in rows)
        return max(((mean, std) for mean, std in pairs if mean is not None and std is not None), default=None)


def row(result: Result) -> str:
    """A target's row of the table."""
    mean, std = result["mean_return"], result["std_return"]
    if mean is None or std is None:
        return f"| {result['target_return']:.5g} | every episode failed | | 0 |"
    numbers = result["target_return"], mean, std
    return "| " + " | ".join(f"{number:.5g}" for number in numbers) + f" | {len(result['returns'])} |"


def plain(text: Any) -> str:
    """A name from a file as one line without control codes, cut where it is long."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"


def escaped(text: Any) -> str:
    """The same for Markdown, where it has no link, no HTML and no table of its own."""
    return re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", html.escape(plain(text), quote=False))
