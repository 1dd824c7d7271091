"""What a dataset is, told before anybody trains on it: what is in it, what to ask for, and what it is no good for."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dt.data import return_scale
from dt.evaluation import default_targets
from envs.datasets.dataset import Dataset
from envs.reading.fields import DataError
from envs.simulate.scores import scored_as_d4rl
from envs.spaces import Leaves, leaf_spaces

FIRST_ACTIONS = 10
"""Actions that tell one policy from another, at most a quarter of an episode: so early all are shown much the same."""

WITHOUT_REWARDS = (
    "returns       none: no rewards are recorded, so a return means nothing here",
    "to train      --conditioning none clones the behaviour; --reward success or --reward last makes rewards",
)
"""What is printed of returns where there are no rewards."""

ENOUGH_EPISODES = 100
"""With fewer, first actions cannot be told from chance."""


def describe_dataset(dataset: Dataset) -> str:
    """What one wants to know of a dataset before training."""
    lengths = dataset.lengths
    lines = [
        f"dataset       {dataset.name} ({dataset.source})",
        f"environment   {_environment(dataset)}",
        *_field_lines("observations", dataset.observation_space, dataset.observations),
        *_field_lines("actions", dataset.action_space, dataset.actions),
        f"episodes      {dataset.num_episodes}, {dataset.num_steps} steps, "
        f"lengths {lengths.min()} to {lengths.max()} (mean {lengths.mean():.0f})",
        f"ends          {int(dataset.terminated.sum())} terminated, {int(dataset.truncated.sum())} truncated",
        *(WITHOUT_REWARDS if dataset.rewards_from == "none" else _return_lines(dataset)),
    ]
    notes = list(dataset.notes)
    if dataset.environment is not None and dataset.environment.left_out:
        wrappers = ", ".join(dataset.environment.left_out)
        notes.append(
            f"recorded with the wrappers {wrappers}, which are not put on: evaluation plays the plain environment"
        )
    return "\n".join(lines + [f"note          {note}" for note in notes])


def _return_lines(dataset: Dataset) -> Iterator[str]:
    """What the returns are, and what may be asked for."""
    returns = dataset.returns
    quantiles = " ".join(f"{np.quantile(returns, q):.1f}" for q in (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1))
    yield f"returns       mean {returns.mean():.1f}; minimum, 10, 30, 50, 70, 90 %, maximum: {quantiles}"
    yield return_histogram(returns)
    yield f"policies      {_policies(dataset)}"
    yield f"targets       {' '.join(f'{target:.5g}' for target in default_targets(returns))}"
    yield f"return scale  {_return_scale(dataset)}"
    yield f"score         {_score(dataset)}"


def return_histogram(returns: NDArray[np.float64], bins: int = 10, width: int = 40) -> str:
    """A histogram of returns in text, one line a bin."""
    counts, edges = np.histogram(returns, bins=bins, range=_span(returns))
    longest = max(int(counts.max()), 1)
    lines = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(width * count / longest) or ("▏" if count else "")
        lines.append(f"{low:>10.1f} to {high:>9.1f} {count:>6} {bar}")
    return "\n".join(lines)


def _span(returns: NDArray[np.float64]) -> tuple[float, float]:
    """From the least to the most, with room between: what differs by rounding alone cannot be cut into bins."""
    low, high = float(returns.min()), float(returns.max())
    least = max(1.0, 1e-9 * max(abs(low), abs(high)))
    return (low, high) if high - low >= 1e-3 * least else (low - least / 2, high + least / 2)


def _return_scale(dataset: Dataset) -> str:
    try:
        return f"{return_scale(dataset):.5g}, the deviation of the returns-to-go"
    except DataError as error:
        return f"none: {error}"


def plot_dataset(dataset: Dataset, path: Path) -> None:
    """A PNG: the histogram of returns with the suggested targets, and return against length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    bins = min(50, max(10, dataset.num_episodes // 5))
    left.hist(dataset.returns, bins=bins, range=_span(dataset.returns), color="C0", alpha=0.7)
    for target in default_targets(dataset.returns):
        left.axvline(target, color="C3", lw=1, ls=":")
    left.set(xlabel="return (dotted: suggested targets)", ylabel="episodes", title=dataset.name)
    right.plot(dataset.lengths, dataset.returns, "o", color="C0", alpha=0.3, ms=4, mew=0)
    right.set(xlabel="length", ylabel="return", title=f"{dataset.num_episodes} episodes, {dataset.num_steps} steps")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def foretold(dataset: Dataset) -> float:
    """How far an episode's first actions foretell what it earns after them: share of the variance of its rank.

    Episodes begin alike whoever plays them, so first actions tell players apart and not how well it went later. Where
    they tell of the return, several policies of several strengths are in the data; at 0 or below, one policy's luck is.
    Cross-validated ridge regression on the mean and deviation of each action dimension, and their squares.
    """
    first = int(np.clip(np.median(dataset.lengths) // 4, 1, FIRST_ACTIONS))
    later = np.array([dataset.rewards[i + first : j].sum(dtype=np.float64) for i, j in pairwise(dataset.offsets)])
    rank = np.unique(later, return_inverse=True)[1].astype(np.float64)  # equal ones rank alike
    x = np.stack([_beginning(dataset, i, min(i + first, j)) for i, j in pairwise(dataset.offsets)])  # (E, F)
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    x = np.hstack([x, x**2, np.ones((len(x), 1))])
    ridge = np.diag([float(len(x))] * (x.shape[1] - 1) + [1e-6])  # strong: there are few episodes
    part = np.random.default_rng(0).permutation(len(x)) % 5
    errors = np.empty(len(x))
    for held_out in range(5):
        known, asked = x[part != held_out], x[part == held_out]
        weights = np.linalg.solve(known.T @ known + ridge, known.T @ rank[part != held_out])
        errors[part == held_out] = asked @ weights - rank[part == held_out]
    return float(1 - (errors**2).mean() / max(rank.var(), 1e-12))


def _beginning(dataset: Dataset, start: int, end: int) -> NDArray[np.float64]:
    """Mean and deviation of each action dimension over these steps, each choice as a dimension: (F,)."""
    columns = []
    for name, space in leaf_spaces(dataset.action_space).items():
        actions = dataset.actions[name][start:end]
        if isinstance(space, spaces.Discrete):
            actions = actions[:, None] == np.arange(space.start, space.start + space.n)
        actions = actions.reshape(len(actions), -1).astype(np.float64)
        columns += [actions.mean(0), actions.std(0)]
    return np.concatenate(columns)


def _policies(dataset: Dataset) -> str:
    """Whether there is a return to choose, in words."""
    cloning = "a Decision Transformer is behaviour cloning here"
    if dataset.num_episodes == 1:
        return f"one's or several, one episode cannot tell; {cloning}"
    low, middle, high = np.quantile(dataset.returns, (0.1, 0.5, 0.9))
    if high - low <= 0.1 * abs(middle):
        return f"one's, by the returns: most earn {low:.5g} to {high:.5g}, so there is no return to choose; {cloning}"
    if dataset.num_episodes < ENOUGH_EPISODES:
        return f"one's or several, {dataset.num_episodes} episodes do not tell; if they are one's, {cloning}"
    share = foretold(dataset)
    if share < 0.05:
        return f"one's, it seems: an episode's first actions say nothing of its return, which is luck then; {cloning}"
    return f"several: an episode's first actions already foretell {100 * share:.0f} % of how its return ranks"


def _score(dataset: Dataset) -> str:
    reference = dataset.reference
    if reference is None:
        return "not normalised: no reference returns are known"
    line = f"normalised between {reference.minimum:g} and {reference.maximum:g}; {reference.source}"
    if scored_as_d4rl(dataset.name, reference):
        line += (
            "\nwarning       these are D4RL's constants, and this is not D4RL's data: compare no score with its tables"
        )
    return line


def _field_lines(label: str, space: spaces.Space, leaves: Leaves) -> Iterator[str]:  # type: ignore[type-arg]
    """A line for each leaf of a field, and one below it where dimensions are constant or numbers at their bounds."""
    for name, leaf in leaf_spaces(space).items():
        array = leaves[name].reshape(len(leaves[name]), -1)  # (N, D)
        yield f"{label:<13} {'' if len(leaves) == 1 else f'{name}: '}{' '.join(str(leaf).split())}"
        constant = int((array.min(0) == array.max(0)).sum())
        remarks = [f"{constant} of {array.shape[1]} dimensions never vary"] if constant else []
        if isinstance(leaf, spaces.Box) and label == "actions":
            low, high = leaf.low.reshape(-1), leaf.high.reshape(-1)
            clipped = 100 * float(((array <= low) | (array >= high)).mean())
            remarks += [f"{clipped:.1f} % of the numbers are at a bound or beyond it"] if clipped >= 0.05 else []
            free = int((~leaf.bounded_below | ~leaf.bounded_above).sum())
            remarks += [f"{free} of {low.size} numbers are unbounded"] if free else []
        if remarks:
            yield f"{'':13} {', '.join(remarks)}"


def _environment(dataset: Dataset) -> str:
    spec = dataset.environment
    if spec is None:
        return "none named: --environment ID names one to play in"
    limit = f", at most {spec.step_limit} steps" if spec.step_limit else ""
    return f"{spec.id}{limit}"
