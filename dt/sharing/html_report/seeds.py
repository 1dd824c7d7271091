"""Several seeds of one training: what they earn on average at each target, and how far seeds differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dt.statistics import Interval, interquartile_interval, standard_error


@dataclass(frozen=True)
class TargetOverSeeds:
    """What several seeds earned at one target return."""

    target_return: float
    means: tuple[float, ...]
    """The mean return of each seed."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return sum(self.means) / len(self.means)

    @property
    def standard_error(self) -> float:
        """Standard error of that mean, over seeds; NaN for one seed."""
        return standard_error(self.means)

    @property
    def interval(self) -> Interval:
        """Interquartile mean and its 95 % bootstrap interval, over seeds."""
        return interquartile_interval([self.means])


def over_seeds(documents: Sequence[Any]) -> list[TargetOverSeeds]:
    """What was earned at each target that all seeds were asked for, in the first one's order.

    documents: of each seed, what `results_document` writes. A target at which all episodes of a seed failed is left
        out.
    """
    earned = [{each["target_return"]: each["mean_return"] for each in document["results"]} for document in documents]
    found = []
    for target in earned[0] if earned else ():
        means = tuple(mean for seed in earned if (mean := seed.get(target)) is not None)
        if len(means) == len(earned):
            found.append(TargetOverSeeds(target, means))
    return found


def shared_measure(documents: Sequence[Any], names: Sequence[str] = ("alignment_error", "mean_error")) -> str | None:
    """The first of these measures that every document has; None where there is none."""
    return next((name for name in names if all(name in each.get("measures", {}) for each in documents)), None)


def seeds_table(documents: Sequence[Any]) -> str:
    """The joint table of several seeds as text: a line for each target, then the alignment error.

    documents: as in `over_seeds`.
    """
    rows = over_seeds(documents)
    lines = [f"{'target':>10} {'achieved':>10} {'std error':>10} {'IQM':>10} {'95 % interval':>22} {'seeds':>6}"]
    for row in rows:
        iqm, low, high = row.interval
        lines.append(
            f"{row.target_return:>10.5g} {row.mean:>10.5g} {_or_dash(row.standard_error, '.4g'):>10} {iqm:>10.5g} "
            f"{_interval(low, high):>22} {len(row.means):>6}"
        )
    if not rows:
        lines = ["the seeds have no target in common: their targets come from different episodes of the data"]
    if (name := shared_measure(documents)) is not None:
        errors = [document["measures"][name] for document in documents]
        lines.append(
            f"{name.replace('_', ' ')}: mean {sum(errors) / len(errors):.3f}, worst {max(errors):.3f}, "
            f"of {len(errors)} seeds"
        )
    return "\n".join(lines)


def _interval(low: float, high: float) -> str:
    return "-" if low != low else f"{low:.5g} to {high:.5g}"


def _or_dash(value: float, form: str) -> str:
    return "-" if value != value else f"{value:{form}}"
