"""What came out, for eyes and for programs: a table, a picture, JSON; and what a run is, in words."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dt.asking.alignment import alignment_error, episode_error, quantile_error, rank_correlation
from envs.simulate.scores import Reference
from envs.simulate.spec import EnvironmentSpec
from transformer.files import parse_json
from transformer.runs.pictures import picture, title_of


def score_table(results: Sequence[Any], reference: Reference | None) -> str:
    """One line for each target, with its error (achieved less target); below it what a normalised score means.

    std is that of the episodes' returns.
    """
    scored = reference is not None
    lines = [f"{'target':>10} {'achieved':>10} {'std':>9} {'error':>9} {'normalised':>11} {'episodes':>9}"]
    if not scored:
        lines = [f"{'target':>10} {'achieved':>10} {'std':>9} {'error':>9} {'episodes':>9}"]
    for result in results:
        error = result.mean_return - result.target_return
        score = "-" if result.normalized_score is None else f"{result.normalized_score:.1f}"
        lines.append(
            f"{result.target_return:>10.5g} {result.mean_return:>10.5g} {result.std_return:>9.4g} {error:>9.3g} "
            + (f"{score:>11} " if scored else "")
            + f"{len(result.returns):>9}"
            + (f"  and {len(result.failures)} failed" if result.failures else "")
        )
    if reference is not None:
        lines.append(f"normalised: 0 is {reference.minimum:g}, 100 is {reference.maximum:g}; {reference.source}")
    return "\n".join(lines)


def calibration_table(calibration: Any, known: Sequence[float]) -> str:
    """What a calibrated run requests for the data's deciles, and what it was seen to earn for that."""
    lines = [f"{'target':>10} {'request':>10} {'guidance':>9} {'seen':>10}"]
    for target in known[::10]:
        request, seen = calibration.request_for(target), calibration.answer_to(target)
        lines.append(f"{target:>10.5g} {request.return_to_go:>10.5g} {request.guidance:>9g} {seen:>10.5g}")
    lines.append(f"{calibration.steps} environment steps; at most {calibration.highest:.5g} was earned")
    return "\n".join(lines)


def measures(results: Sequence[Any], known: Sequence[float], standard: bool) -> dict[str, float]:
    """How well the answers fit the targets, by the name of each measure; empty where the data has no range.

    results: `TargetResult`s.
    known: the data's `percentiles`, empty where they are not known.
    standard: whether targets, seeds and episodes are those that `alignment_error` is defined for. For others the same
        number is called `mean_error`, so that the two are never compared.
    """
    found = {}
    if known and known[-1] > known[0]:
        name = "alignment_error" if standard else "mean_error"
        found[name] = alignment_error(results, known[0], known[-1])
        if standard:
            found["quantile_error"] = quantile_error(results, known[0], known[-1])
        found["episode_error"] = episode_error(results, known[0], known[-1])
    found["rank_correlation"] = rank_correlation(results)
    return {name: value for name, value in found.items() if not math.isnan(value)}


def measure_line(found: Mapping[str, float]) -> str:
    """The measures in one line, such as "alignment error 0.041, rank correlation 1.00"."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in found.items())


def results_document(
    results: Sequence[Any],
    *,
    dataset: str,
    environment: EnvironmentSpec,
    versions: dict[str, str],
    reference: Reference | None,
    checkpoint: str,
    seed: int,
    played: Mapping[str, Any],
    found: Mapping[str, float],
) -> dict[str, Any]:
    """The JSON of `dt evaluate`, schema 1.

    played: how the policy was played: temperature, precision, guidance and so on.
    found: the `measures`.
    `world` is what `EnvironmentSpec.from_json` makes the world again from."""
    return {
        "schema": 1,
        "dataset": dataset,
        "environment": environment.id,
        "environment_spec": {**environment.to_json(), "max_episode_steps": environment.step_limit},
        "checkpoint": checkpoint,
        "seed": seed,
        **played,
        "measures": dict(found),
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


def plot_target_against_achieved(
    results: Sequence[Any],
    path: Path,
    title: str,
    known: Sequence[float] = (),
    uncalibrated: Sequence[tuple[float, float]] = (),
) -> None:
    """A picture: target return along, achieved return up; single episodes faint, means with two standard errors.

    results: `TargetResult`s.
    path: the file; its suffix is the kind of picture.
    known: the data's `percentiles`; their range is shaded.
    uncalibrated: request and mean return in the calibration's own episodes with guidance 1, drawn as such.
    """
    results = [result for result in results if result.returns]  # where every episode failed there is nothing to draw
    targets = np.array([result.target_return for result in results])
    means = np.array([result.mean_return for result in results])
    errors = np.array([2 * result.std_return / len(result.returns) ** 0.5 for result in results])
    with picture(path, 6.4, 5, dpi=130) as figure:
        axes = figure.subplots()
        if known:
            axes.axvspan(known[0], known[-1], color="0.5", alpha=0.1, lw=0, label="range of returns in the data")
        if uncalibrated:
            x, y = np.array(uncalibrated).T
            axes.plot(x, y, "x--", color="C1", ms=5, lw=1, label="without calibration (its own episodes)")
        for result in results:
            along = [result.target_return] * len(result.returns)
            axes.plot(along, result.returns, "o", color="C0", alpha=0.2, ms=4, mew=0)
        axes.errorbar(
            targets, means, yerr=errors, fmt="o-", color="C0", capsize=3, label="achieved: mean ± 2 standard errors"
        )
        ends = [*targets, *known[:1], *known[-1:]]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], "-", color="0.5", lw=1, label="achieved = target")
        axes.set(xlabel="target return", ylabel="achieved return")
        axes.set_title(title_of(title), parse_math=False)
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", fontsize="small")


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
