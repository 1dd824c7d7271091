"""Calibrate a run: play its plan, and keep what was played.

RUN/calibration-last.json and -best.json are of the checkpoints of those names, in the precision of the run's training.
One in a different precision is next to it, as calibration-last-float32.json. While a calibration is not finished its
episodes are in RUN/calibration-last.part.json; the same command goes on from there.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt.asking.calibrated_policy import (
    Precision,
    binding_of,
    calibration_file,
    difference,
    played_as,
    precision_of,
    read_calibration,
)
from dt.asking.calibration import Calibration, Episode, to_json
from dt.asking.guidance import Request
from dt.asking.plan import Finished, Outcome, Plan, carry_out, make_plan, number_of, seed_of
from dt.config import PlayConfig
from dt.evaluation import check_environment, play_requests
from dt.policy import ReturnConditionedPolicy
from envs.errors import EnvError, MissingEnvError
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode
from transformer.errors import ConfigError
from transformer.files import read_json, write_json
from transformer.runs import distributed
from transformer.runs.console import tell
from transformer.runs.progress import Progress, progress

if TYPE_CHECKING:
    from dt.learning.run import Run


def calibrate(
    run: "Run",
    config: PlayConfig,
    steps: int,
    precision: Precision | None = None,
    cached: bool = False,
    which: str = "last",
) -> Calibration:
    """Play a run at many requests and write what it earned to its folder.

    run: with the environment that it is played in.
    config: how it is played.
    steps: environment steps that this may take.
    precision: as in `ReturnConditionedPolicy`; None is that of the run's training.
    cached: as in `ReturnConditionedPolicy`.
    which: the checkpoint's name, "last" or "best".

    Raises:
        ConfigError: the run does not know its data's returns, or there are too few steps.
        EnvError: the environment cannot be made, or does not fit the model.
    """
    assert run.environment is not None
    config, precision = played_as(run, config), precision or precision_of(run)
    percentiles = run.dataset.get("percentiles")
    if not percentiles:
        raise ConfigError(f"{run.folder}: it does not know its data's returns, so it cannot be calibrated")
    check_environment(run.environment, run.model, config.env_timeout)
    longest = run.environment.step_limit or run.model.max_timesteps
    plan = make_plan(percentiles, run.config.model, longest, steps)
    binding = binding_of(run, config, precision, cached)
    final = calibration_file(run, which, precision)
    part = final.with_suffix(".part.json")
    _take_up(plan, distributed.on_first_rank(lambda: _read_part(part, binding)))
    policy = ReturnConditionedPolicy(
        run.model,
        temperature=config.temperature or 0.0,
        precision=precision,
        cached=cached,
        context_length=config.eval_context_length,
    )
    tell(f"calibration   at most {steps} environment steps")
    with progress("calibrate", steps, "step") as bar:

        def play(numbered: Mapping[int, Request], finished: Finished) -> dict[int, Outcome]:
            return _play(run, policy, config, numbered, finished, bar)

        curves = carry_out(plan, play, lambda plan: _save(plan, part, binding))
    calibration = Calibration(binding, curves, plan.steps_taken)
    distributed.on_first_rank(lambda: _finish(final, part, calibration))
    return calibration


def calibrate_after_training(run: "Run") -> None:
    """Calibrate a run that was just trained, unless its configuration says not to, or it is calibrated already.

    Where it cannot be calibrated this is printed, and the run is as good as without.
    """
    config = run.config.evaluation
    known = run.dataset.get("percentiles") or [0.0]
    if not (config.calibration and run.environment and run.config.model.uses_returns and known[0] < known[-1]):
        return
    try:
        check_environment(run.environment, run.model, config.env_timeout)
    except MissingEnvError:  # said before training
        return
    try:
        there = read_calibration(run)
        if there is None or difference(there, binding_of(run, config, precision_of(run), False)):
            calibrate(run, config, run.config.calibration.calibration_steps)
    except (ConfigError, EnvError) as error:  # hours of training are worth more than one calibration
        tell(f"not calibrated: {error}")


def _play(
    run: "Run",
    policy: ReturnConditionedPolicy,
    config: PlayConfig,
    numbered: Mapping[int, Request],
    finished: Finished,
    bar: Progress,
) -> dict[int, Outcome]:
    """Play numbered episodes, shared among processes."""
    assert run.environment is not None
    requests = [EpisodeRequest(seed_of(number), condition) for number, condition in numbered.items()]

    def on_episode(episode: PlayedEpisode) -> None:
        finished(number_of(episode.request.seed), (episode.total_return, episode.length))
        bar.update(min(episode.length, bar.total - bar.done))  # without a step limit, more may be taken

    played = play_requests(policy, run.environment, requests, config.num_envs, config.env_timeout, on_episode)
    outcomes = ((total, length) if failure is None else None for total, length, failure in played)
    return dict(zip(numbered, outcomes, strict=True))


def _save(plan: Plan, part: Path, binding: Mapping[str, Any]) -> None:
    """Write what was played so far; on a signal, too."""
    if distributed.is_first_rank():
        episodes = [
            [number, e.request.return_to_go, e.request.guidance, e.total_return, e.length]
            for number, e in sorted(plan.episodes.items())
            if e is not None
        ]
        write_json(part, {"binding": dict(binding), "episodes": episodes})


def _read_part(part: Path, binding: Mapping[str, Any]) -> list[list[float]]:
    """Episodes of a calibration that was interrupted; none where it was of something else, or the file is damaged."""
    if not part.is_file():
        return []
    try:
        document = read_json(part)
        episodes = [[float(number) for number in row] for row in document["episodes"]]
        right = document["binding"] == dict(binding) and all(
            len(row) == 5 and all(map(math.isfinite, row)) for row in episodes
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        right = False
    return episodes if right else []


def _take_up(plan: Plan, rows: list[list[float]]) -> None:
    """Give a plan the episodes of an interrupted calibration; those it does not ask for again are not used."""
    for number, return_to_go, guidance, total_return, length in rows:
        plan.known[int(number)] = Episode(Request(return_to_go, guidance), total_return, int(length))


def _finish(final: Path, part: Path, calibration: Calibration) -> None:
    write_json(final, to_json(calibration))
    part.unlink(missing_ok=True)
