"""Score a run: play its targets, print the table, and leave results and picture behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from typing import Any

from dt.asking.calibrated_policy import policy_of
from dt.asking.guidance import MODULATED, Request
from dt.asking.targets import default_targets_of, resolve
from dt.config import FINAL_SEED, SWEEP_OFFSET, EvaluationConfig
from dt.errors import InterruptedEvaluation
from dt.evaluation import TargetResult, best_target, check_environment, conditions_of, evaluate, failures
from dt.learning.run import Run, versions
from dt.policy import ReturnConditionedPolicy
from dt.sharing.report import (
    measure_line,
    measures,
    plot_target_against_achieved,
    results_document,
    score_table,
)
from transformer.errors import ConfigError
from transformer.files import write_json
from transformer.runs import distributed
from transformer.runs.console import show, tell
from transformer.runs.progress import progress
from transformer.runs.signals import stop_signals

STANDARD_EPISODES = 20
"""Episodes at each target of the alignment error."""

SWEEP_ABOVE = (1.15, 1.3)
"""Targets above the data that `--target-return auto` tries, as shares of its range."""

PLAIN_SWEEP_GUIDANCE = (1.0, 2.0)
"""Guidances that `--target-return auto` tries where a run has no calibration."""


@dataclass(frozen=True)
class Scores:
    """What a run earned at each target.

    results: one for each target.
    sweep: what chose a target, in episodes of its own: guidance and result of each candidate; empty where it was given.
    found: the measures, by name.
    played: how the policy was played, as it goes into the JSON.
    notes: what makes the returns depend on how they were played.
    stopped: number of the signal that stopped the evaluation, 0 if none did. The results are then those of the episodes
        that were over.
    """

    results: list[TargetResult]
    sweep: list[tuple[float, TargetResult]] = field(default_factory=list)
    found: Mapping[str, float] = field(default_factory=dict)
    played: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    stopped: int = 0

    @property
    def episodes(self) -> tuple[int, int]:
        """Episodes that were played to their end or failed, and all that were planned."""
        played = sum(len(result.returns) + len(result.failures) for result in self.results)
        return played, played + sum(result.missing for result in self.results)

    def check_complete(self) -> None:
        """Raise `InterruptedEvaluation` where a signal stopped it; to be called once the results are safe."""
        if self.stopped:
            raise InterruptedEvaluation(self.stopped, *self.episodes)

    @property
    def chosen(self) -> tuple[float, float]:
        """Guidance and request of the candidate that earned most, the first of equals."""
        best = best_target([result for _, result in self.sweep])
        return next((w, best) for w, result in self.sweep if result.target_return == best)


def score(run: Run, config: EvaluationConfig, seed: int, policy: ReturnConditionedPolicy, which: str) -> Scores:
    """Play a run's targets.

    run: with the environment that it is played in.
    config: the targets, and how many episodes of each.
    seed: episode i of each target starts from environment seed `seed + i`.
    policy: the run's.
    which: the name of its checkpoint.
    """
    assert run.environment is not None
    known = run.dataset.get("percentiles", [])
    targets = resolve(config.named_targets or run.dataset["targets"], known)
    if not targets:
        raise ConfigError(f"{run.folder}: it does not know its data's returns; give --target-return G")
    check_environment(run.environment, run.model, config.env_timeout)
    sweep: list[tuple[float, TargetResult]] = []
    found: dict[str, float] = {}
    with stop_signals("stopping; the episodes that are over are reported") as received:
        evaluator = Evaluator(run, policy, config, received)
        if config.target_return == "auto":
            sweep = _sweep(evaluator, known, targets, seed + SWEEP_OFFSET)
            if evaluator.is_stopped():  # nothing is chosen by a part of the candidates
                results, sweep = [result for _, result in sweep], []
            else:
                top = max(sweep, key=lambda each: (each[1].mean_return, -each[1].target_return))
                results = evaluator.evaluate([Request(top[1].target_return, top[0]), max(targets)], seed)
        else:
            results = evaluator.evaluate(targets, seed)
        stopped = distributed.all_max(received[0] if received else 0)
    if config.target_return != "auto" and not stopped:
        standard = (
            (seed, config.episodes, which, policy.cached) == (FINAL_SEED, STANDARD_EPISODES, "last", False)
            and policy.precision == ("bf16" if run.config.training.precision == "bf16" else "float32")
            and targets == default_targets_of(known)
        )
        found = measures(results, known, standard)
    scores = Scores(results, sweep, found, _how(policy, results), tuple(evaluator.notes), stopped)
    if not any(result.returns for result in results):
        scores.check_complete()
    return scores


class Evaluator:
    """Evaluates a run at targets until a signal comes. notes: what `evaluate` notes, each once."""

    def __init__(self, run: Run, policy: ReturnConditionedPolicy, config: EvaluationConfig, received: Sequence[int]):
        assert run.environment is not None
        self.run, self.environment, self.policy, self.config = run, run.environment, policy, config
        self._received = received
        self.notes: dict[str, None] = {}

    def is_stopped(self) -> bool:
        """Whether a signal came, to any of the processes."""
        return distributed.all_max(len(self._received)) > 0

    def evaluate(self, targets: Sequence[float | Request], seed: int) -> list[TargetResult]:
        """Evaluate at each target, from this seed on."""
        distinct = set(conditions_of(self.policy, targets))
        mine = len(distributed.shard(range(len(distinct) * self.config.episodes)))
        with progress("evaluate", mine, "episode") as bar:
            return evaluate(
                self.policy,
                self.environment,
                targets,
                episodes=self.config.episodes,
                seed=seed,
                num_envs=self.config.num_envs,
                env_timeout=self.config.env_timeout,
                reference=self.run.reference,
                on_episode=lambda _: bar.update(),
                stop=lambda: bool(self._received),
                on_note=lambda note: self.notes.update({note: None}),
            )


def _sweep(
    evaluator: Evaluator, known: Sequence[float], targets: Sequence[float], seed: int
) -> list[tuple[float, TargetResult]]:
    """Play the candidates of `--target-return auto`: each curve's best request, or targets up to beyond the data."""
    run, policy, config = evaluator.run, evaluator.policy, evaluator.config
    if policy.calibration is not None:
        candidates = [Request(curve.best_request, curve.guidance) for curve in policy.calibration.curves]
        candidates.append(Request(max(targets)))
    else:
        modulated = run.config.model.conditioning in MODULATED
        fixed = (policy.guidance,) if config.guidance != "auto" or not modulated else PLAIN_SWEEP_GUIDANCE
        above = [known[0] + share * (known[-1] - known[0]) for share in SWEEP_ABOVE] if known else []
        candidates = [Request(target, w) for w in fixed for target in (*targets, *above)]
    results = evaluator.evaluate(candidates, seed)
    return [(request.guidance, result) for request, result in zip(candidates, results, strict=True)]


def _how(policy: ReturnConditionedPolicy, results: Sequence[TargetResult]) -> dict[str, Any]:
    """How a policy was played, for the JSON; with a calibration, what the model was conditioned on for each target."""
    how: dict[str, Any] = {
        "temperature": policy.temperature,
        "precision": policy.precision,
        "cached": policy.cached,
        "context_length": policy.context_length,
        "guidance": policy.guidance if policy.calibration is None else "calibrated",
    }
    if policy.calibration is not None:
        requests = [policy.request_for(result.target_return) for result in results]
        how["requests"] = [{"target_return": r.return_to_go, "guidance": r.guidance} for r in requests]
    return how


def score_run(run: Run, config: EvaluationConfig, seed: int, which: str) -> Scores:
    """Score a finished run at one of its checkpoints, as `score` does."""
    return score(run, config, seed, policy_of(run, config, which=which), which)


def write_scores(folder: Path, which: str, scores: Scores, run: Run, seed: int) -> None:
    """Leave results and picture in a folder."""
    write_json(folder / f"{which}.json", document_of(scores, run, seed))
    picture = folder / ("target-against-achieved.png" if which == "last" else f"target-against-achieved-{which}.png")
    plot_scores(scores, run, picture, which)


def plot_scores(scores: Scores, run: Run, path: Path, which: str) -> None:
    """Draw target against achieved return, and the uncalibrated answers where there is a calibration."""
    calibration = policy_of(run, which=which).calibration if scores.played.get("guidance") == "calibrated" else None
    plain = calibration.plain_answers() if calibration else []
    title = f"{run.dataset['name']} ({which}{', partial' if scores.stopped else ''})"
    plot_target_against_achieved(scores.results, path, title, run.dataset.get("percentiles", []), plain)


def document_of(scores: Scores, run: Run, seed: int) -> dict[str, Any]:
    """The JSON of `dt evaluate`."""
    assert run.environment is not None
    document = results_document(
        scores.results,
        dataset=run.dataset["name"],
        environment=run.environment,
        versions=versions(),
        reference=run.reference,
        checkpoint=run.checkpoint.name,
        seed=seed,
        played=scores.played,
        found=scores.found,
    )
    if run.source is not None:
        document["run"] = run.source
    if scores.notes:
        document["notes"] = list(scores.notes)
    if scores.stopped:
        done, planned = scores.episodes
        document["partial"] = {"signal": Signals(scores.stopped).name, "episodes": done, "planned": planned}
    if scores.sweep:
        guidance, chosen = scores.chosen
        played = [{"guidance": w, **result.to_json()} for w, result in scores.sweep]
        document["sweep"] = {"seed": seed + SWEEP_OFFSET, "chosen": chosen, "guidance": guidance, "results": played}
    return document


def print_scores(scores: Scores, run: Run) -> None:
    """Print the table and the measures, and what the targets ask beyond what is possible."""
    assert run.environment is not None
    show(f"{run.dataset['name']} in {run.environment.id}, checkpoint {run.checkpoint.name}")
    if scores.sweep:
        guidance, chosen = scores.chosen
        show(score_table([result for _, result in scores.sweep], None))
        show(f"target {chosen:.5g} with guidance {guidance:g} earned most; scored on other seeds, then the maximum:")
    show(score_table(scores.results, run.reference))
    if scores.stopped:
        played, planned = scores.episodes
        show(f"partial: {Signals(scores.stopped).name} stopped it after {played} of {planned} episodes")
    for note in scores.notes:
        tell(f"note          {note}")
    if scores.found:
        show(measure_line(scores.found))
    for failure in failures([*(result for _, result in scores.sweep), *scores.results])[:20]:
        tell(f"failed        {failure}")


def warn_of_targets(run: Run, policy: ReturnConditionedPolicy, config: EvaluationConfig) -> None:
    """Say which targets are beyond the data, or beyond what the run was seen to earn."""
    known = run.dataset.get("percentiles", [])
    targets = resolve(config.named_targets, known)
    if known and targets and (max(targets) > known[-1] or min(targets) < known[0]):
        tell(f"a target is outside the data's returns, {known[0]:.5g} to {known[-1]:.5g}: the model has not seen it")
    highest = policy.calibration.highest if policy.calibration else None
    if highest is not None and known and targets and max(targets) > highest + 0.02 * (known[-1] - known[0]):
        tell(f"{max(targets):.5g} is more than this run was seen to earn: {highest:.5g} at most in its calibration")
