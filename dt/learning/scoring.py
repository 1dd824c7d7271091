"""What a training knows of its model on the way: the error on held-out episodes, and the returns that it earns."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from dt.asking.alignment import rank_correlation
from dt.config import WAY_SEED, EvaluationConfig
from dt.errors import PolicyError
from dt.evaluation import (
    best_mean,
    evaluate,
    failures,
    labels,
)
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from dt.validation import HeldOutError, Validation
from envs.errors import EnvError
from envs.simulate.spec import EnvironmentSpec
from transformer.runs import distributed
from transformer.runs.console import tell

WAY_EPISODES = 10
"""Episodes at each target of an evaluation during training, at most."""


def _held_out_scores(result: HeldOutError) -> dict[str, float]:
    """For the log; the score is the loss turned round, since the most is the best."""
    scores = {"score": -result.loss, "held_out_loss": result.loss}
    for leaf in result.leaves:
        name = leaf.measure.replace(" ", "_").replace("-", "_")
        scores |= {f"held_out_{name}/{leaf.leaf}": leaf.error, f"constant_{name}/{leaf.leaf}": leaf.baseline}
        if leaf.accuracy is not None and leaf.baseline_accuracy is not None:
            scores |= {f"held_out_accuracy/{leaf.leaf}": leaf.accuracy}
            scores |= {f"constant_accuracy/{leaf.leaf}": leaf.baseline_accuracy}
    return scores


_tell_once = functools.cache(tell)
"""Prints a note once, though each evaluation has it."""


@dataclass(frozen=True)
class Scorer:
    """What a training knows of its model on the way: the error on held-out episodes, and the returns it earns.

    model: what is trained.
    validation: measures the error; None where no episode is held out.
    environment: where to play; None where there is none.
    targets: the target returns, in the reward's unit.
    config: how to play.
    """

    model: DecisionTransformer
    validation: Validation | None
    environment: EnvironmentSpec | None
    targets: Sequence[float]
    config: EvaluationConfig

    def __call__(self, step: int) -> dict[str, float]:
        """Numbers for the log after this step; `score` decides which step is the best."""
        validation = self.validation
        scores = {} if validation is None else distributed.on_first_rank(lambda: _held_out_scores(validation.measure()))
        return scores if self.environment is None else scores | self._returns(step)

    def _returns(self, step: int) -> dict[str, float]:
        """What is earned at each target; nothing where the environment or the policy fails.

        Where some episodes failed the others are logged, but there is no score: it would be compared with those of all.
        """
        assert self.environment is not None
        config = self.config
        try:
            results = evaluate(
                ReturnConditionedPolicy(
                    self.model, temperature=config.temperature or 0.0, context_length=config.eval_context_length
                ),
                self.environment,
                self.targets,
                episodes=min(config.episodes, WAY_EPISODES),
                seed=WAY_SEED,
                num_envs=config.num_envs,
                env_timeout=config.env_timeout,
                on_note=_tell_once,
            )
        except (EnvError, PolicyError) as error:
            tell(f"\nno score at step {step}: {error}")  # hours of training are worth more than one evaluation
            return {}
        achieved = [result.mean_return for result in results]
        scores = {f"return_at_{label}": mean for label, mean in zip(labels(self.targets), achieved, strict=True)}
        if len(results) > 1:
            scores["rank_correlation"] = rank_correlation(results)
        if failed := failures(results):
            tell(f"\nstep {step} cannot be the best: {len(failed)} episodes failed, the first: {failed[0]}")
            return {**scores, "failed_episodes": float(len(failed))}
        return {"score": best_mean(results), **scores}
