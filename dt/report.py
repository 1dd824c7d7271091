"""What came out, for eyes and for programs: a table, a picture, JSON; and what a dataset or a run is, in words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.datasets import Dataset
from envs.scores import Reference
from envs.spaces import leaf_spaces


def score_table(results: Sequence[Any], reference: Reference | None) -> str:
    """Asked, achieved, normalised, episodes: one line a target; below it what the score is measured against."""
    lines = [f"{'asked':>10} {'achieved':>10} {'± std':>8} {'normalised':>11} {'episodes':>9}"]
    for result in results:
        score = "-" if result.normalized_score is None else f"{result.normalized_score:.1f}"
        lines.append(
            f"{result.target_return:>10.5g} {result.mean_return:>10.5g} {result.std_return:>8.4g} "
            f"{score:>11} {len(result.returns):>9}"
        )
    if reference is not None:
        lines.append(f"normalised: 0 is {reference.minimum:g}, 100 is {reference.maximum:g}; {reference.source}")
    return "\n".join(lines)


def results_document(
    results: Sequence[Any],
    *,
    dataset: str,
    environment: str,
    versions: dict[str, str],
    reference: Reference | None,
    checkpoint: str,
    seed: int,
    temperature: float,
) -> dict[str, Any]:
    """The JSON of `dt evaluate`, schema 1."""
    return {
        "schema": 1,
        "dataset": dataset,
        "environment": environment,
        "checkpoint": checkpoint,
        "seed": seed,
        "temperature": temperature,
        "reference": vars(reference) if reference else None,
        "versions": versions,
        "results": [result.to_json() for result in results],
    }


def plot_asked_against_achieved(results: Sequence[Any], path: Path, title: str, data_maximum: float) -> None:
    """A PNG: what was asked along, what came up; single episodes faint, means with two standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

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
    axes.axvline(data_maximum, color="C3", lw=1, ls=":", label="best return in the data")
    axes.set(xlabel="return asked for", ylabel="return achieved", title=title)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def return_histogram(returns: Sequence[float], bins: int = 10, width: int = 40) -> str:
    """A histogram of returns in text, one line a bin."""
    counts, edges = np.histogram(returns, bins=bins)
    longest = max(int(counts.max()), 1)
    lines = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(width * count / longest) or ("▏" if count else "")
        lines.append(f"{low:>10.1f} to {high:>9.1f} {count:>6} {bar}")
    return "\n".join(lines)


def describe_dataset(dataset: Dataset) -> str:
    """What one wants to know of a dataset before training."""
    returns, lengths = dataset.returns, dataset.lengths
    quantiles = " ".join(f"{np.quantile(returns, q):.1f}" for q in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1))
    lines = [
        f"dataset       {dataset.name} ({dataset.source})",
        f"environment   {_environment(dataset)}",
        *_space_lines("observations", dataset.observation_space),
        *_space_lines("actions", dataset.action_space),
        f"episodes      {dataset.num_episodes}, {dataset.num_steps} steps, "
        f"lengths {lengths.min()} to {lengths.max()} (mean {lengths.mean():.0f})",
        f"ends          {int(dataset.terminated.sum())} terminated, {int(dataset.truncated.sum())} truncated",
        f"returns       mean {returns.mean():.1f}; minimum, 10, 30, 50, 70, 90 %, maximum: {quantiles}",
        return_histogram(list(returns)),
    ]
    notes = list(dataset.notes)
    if dataset.num_episodes < 2 or np.quantile(returns, 0.9) - np.quantile(returns, 0.1) < 1e-6:
        notes.append("all episodes earn the same: there is no return to choose, a policy here is behaviour cloning")
    return "\n".join(lines + [f"note          {note}" for note in notes])


def describe_run(run: Any) -> str:
    """What a run is and how it scored."""
    model, training = run.config.model, run.config.training
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    lines = [
        f"run           {run.folder} (checkpoint {run.checkpoint.name}, {parameters:,} parameters)",
        f"dataset       {run.dataset['name']}, {run.dataset['episodes']} episodes, {run.dataset['steps']} steps",
        f"environment   {run.environment.id if run.environment else 'none: nothing to evaluate in'}",
        f"model         {model.conditioning}, K {model.context_length}, width {model.width}, "
        f"{model.num_layers} layers, return scale {run.model.return_scale.item():g}",
        f"training      {training.steps} steps of {training.batch_size}, learning rate {training.learning_rate:g} "
        f"({training.schedule}), {training.precision}, seed {training.seed}",
    ]
    for path in sorted((run.folder / "results").glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        best = max(document["results"], key=lambda result: result["mean_return"])
        lines.append(
            f"results       {path.stem}: {best['mean_return']:.1f} asked for {best['target_return']:.1f} ({path})"
        )
    return "\n".join(lines)


def _space_lines(label: str, space: Any) -> list[str]:
    leaves = leaf_spaces(space)
    if len(leaves) == 1:
        return [f"{label:<13} {_one_line(space)}"]
    return [f"{label:<13} {name}: {_one_line(leaf)}" for name, leaf in leaves.items()]


def _one_line(space: Any) -> str:
    return " ".join(str(space).split())


def _environment(dataset: Dataset) -> str:
    spec = dataset.environment
    if spec is None:
        return "none named: trains, and evaluates with --environment"
    limit = f", at most {spec.max_episode_steps} steps" if spec.max_episode_steps else ""
    return f"{spec.id}{limit}"
