"""What came out, for eyes and for programs: a table, a picture, JSON; and what a run is, in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.simulate.environments import EnvironmentSpec
from envs.simulate.scores import Reference
from transformer.runs.checkpoint import parse_json


def score_table(results: Sequence[Any], reference: Reference | None) -> str:
    """Asked, achieved, normalised, episodes: one line a target; below it what the score is measured against."""
    lines = [f"{'asked':>10} {'achieved':>10} {'± std':>8} {'normalised':>11} {'episodes':>9}"]
    for result in results:
        score = "-" if result.normalized_score is None else f"{result.normalized_score:.1f}"
        lines.append(
            f"{result.target_return:>10.5g} {result.mean_return:>10.5g} {result.std_return:>8.4g} "
            f"{score:>11} {len(result.returns):>9}"
            + (f"  and {len(result.failures)} failed" if result.failures else "")
        )
    if reference is not None:
        lines.append(f"normalised: 0 is {reference.minimum:g}, 100 is {reference.maximum:g}; {reference.source}")
    return "\n".join(lines)


def results_document(
    results: Sequence[Any],
    *,
    dataset: str,
    environment: EnvironmentSpec,
    versions: dict[str, str],
    reference: Reference | None,
    checkpoint: str,
    seed: int,
    temperature: float,
) -> dict[str, Any]:
    """The JSON of `dt evaluate`, schema 1. `environment_spec` is for `EnvironmentSpec.from_json`."""
    return {
        "schema": 1,
        "dataset": dataset,
        "environment": environment.id,
        "environment_spec": {**environment.to_json(), "max_episode_steps": environment.step_limit},
        "checkpoint": checkpoint,
        "seed": seed,
        "temperature": temperature,
        "reference": vars(reference) if reference else None,
        "versions": versions,
        "results": [result.to_json() for result in results],
    }


def held_out_document(result: Any, *, dataset: str, checkpoint: str, versions: dict[str, str]) -> dict[str, Any]:
    """The JSON of `dt evaluate` where there is no environment, schema 1."""
    return {
        "schema": 1,
        "dataset": dataset,
        "checkpoint": checkpoint,
        "versions": versions,
        "held_out": result.to_json(),
    }


def plot_asked_against_achieved(results: Sequence[Any], path: Path, title: str, data_maximum: float | None) -> None:
    """A picture: what was asked along, what came up; single episodes faint, means with two standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [result for result in results if result.returns]  # where every episode failed there is nothing to draw
    asked = np.array([result.target_return for result in results])
    means = np.array([result.mean_return for result in results])
    errors = np.array([2 * result.std_return / len(result.returns) ** 0.5 for result in results])
    figure, axes = pyplot.subplots(figsize=(6.4, 5), layout="constrained")
    for result in results:
        axes.plot([result.target_return] * len(result.returns), result.returns, "o", color="C0", alpha=0.2, ms=4, mew=0)
    axes.errorbar(
        asked, means, yerr=errors, fmt="o-", color="C0", capsize=3, label="achieved: mean ± 2 standard errors"
    )
    corners = [min(asked.min(), means.min(), 0.0), max(asked.max(), means.max())]
    axes.plot(corners, corners, "--", color="0.5", lw=1, label="achieved = asked")
    if data_maximum is not None:
        axes.axvline(data_maximum, color="C3", lw=1, ls=":", label="best return in the data")
    axes.set(xlabel="return asked for", ylabel="return achieved", title=title)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def describe_run(run: Any) -> str:
    """What a run is and how it scored."""
    model, training = run.config.model, run.config.training
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    counts = f", {run.dataset['episodes']} episodes, {run.dataset['steps']} steps" if "episodes" in run.dataset else ""
    trained = (
        f"{training.steps} steps of {training.batch_size}, learning rate {training.learning_rate:g} "
        f"({training.schedule}), {training.precision}, seed {training.seed}"
    )
    lines = [
        f"run           {run.folder} (checkpoint {run.checkpoint.name}, {parameters:,} parameters)",
        f"dataset       {run.dataset['name']}{counts}",
        f"environment   {run.environment.id if run.environment else 'none: nothing to evaluate in'}",
        f"model         {model.conditioning}, K {model.context_length}, width {model.width}, "
        f"{model.num_layers} layers, return scale {run.model.return_scale.item():g}",
        f"training      {f'not here: imported from {run.imported}' if run.imported else trained}",
    ]
    return "\n".join(lines + [_results_line(path) for path in sorted((run.folder / "results").glob("*.json"))])


def _results_line(path: Path) -> str:
    """The best of a file of results; a file cut short, or someone else's, is no reason to say nothing of the run."""
    try:
        document = parse_json(path.read_text(encoding="utf-8"))
        if "held_out" in document:
            loss, constant = (
                document["held_out"]["loss"],
                sum(each["baseline"] for each in document["held_out"]["leaves"]),
            )
            return f"results       {path.stem}: held-out error {loss:.4f}, of a constant answer {constant:.4f} ({path})"
        results = [result for result in document["results"] if result["mean_return"] is not None]
        best = max(results, key=lambda result: result["mean_return"])
        return f"results       {path.stem}: {best['mean_return']:.1f} asked for {best['target_return']:.1f} ({path})"
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return f"results       {path.stem}: not the results of an evaluation ({path})"
