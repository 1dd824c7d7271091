"""What a dataset is, before training: what is in it, which returns to ask for, and where it is weak."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dt.asking.targets import default_targets
from dt.data import return_scale
from dt.encoders import is_image
from dt.statistics import span
from envs.datasets.dataset import Dataset
from envs.datasets.statistics import Statistics, never_varies, statistics, without_marks
from envs.errors import DataError
from envs.reading.fields import listed
from envs.simulate.scores import scored_as_d4rl
from envs.simulate.spec import EnvironmentSpec
from envs.spaces import Leaves, leaf_spaces
from transformer.runs.pictures import picture, title_of

FIRST_ACTIONS = 10
"""Actions that show one policy from another, at most a quarter of an episode: so early all see much the same."""

WITHOUT_REWARDS = (
    "returns       none: no rewards are recorded, so a return means nothing here",
    "to train      --conditioning none clones the behaviour; --reward success or --reward last makes rewards",
)
"""What is printed of returns where there are no rewards."""

MOST_FREQUENT, MOST_FEATURES = 32, 256
"""Of one choice the values, and of all actions the features, that first actions are described by."""

MOST_ROWS = 12
"""Dimensions that get a line each."""

OUTLIER, COARSE = 50, 8
"""Standard deviations from the mean that are far; parts of one that a number's type must tell apart."""

ENOUGH_EPISODES = 100
"""With fewer, first actions cannot be distinguished from chance."""


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
    return "\n".join(lines + [f"note          {note}" for note in _notes(dataset)])


def oddities(dataset: Dataset) -> Iterator[str]:
    """What is odd in a dataset but may be right, a line each: its notes, and warnings of its numbers' ranges."""
    yield from _notes(dataset)
    fields = (("observations", dataset.observation_space), ("actions", dataset.action_space))
    for label, space in fields:
        for name, leaf in leaf_spaces(space).items():
            if isinstance(leaf, spaces.Box) and not is_image(leaf):
                array = getattr(dataset, label)[name].reshape(dataset.num_steps, -1)  # (N, D)
                where = label if name == "value" else f"{label} {name}"
                yield from (f"{where}: {warning}" for warning in range_warnings(array, statistics(array)))


def _notes(dataset: Dataset) -> list[str]:
    """The dataset's own notes, and where its environment differs from what was recorded."""
    notes = list(dataset.notes)
    if dataset.environment is not None:
        notes += _environment_notes(dataset.environment, int(dataset.lengths.max()))
    return notes


def _return_lines(dataset: Dataset) -> Iterator[str]:
    """What the returns are, and what may be asked for."""
    returns, rewards = dataset.returns, dataset.rewards
    *shown, mean = _plain(np.append(np.quantile(returns, (0, 0.1, 0.3, 0.5, 0.7, 0.9, 1)), returns.mean()))
    quantiles = " ".join(shown)
    yield (
        f"rewards       {rewards.min():.5g} to {rewards.max():.5g}, mean {rewards.mean(dtype=float):.5g}, "
        f"std {rewards.std(dtype=float):.5g}"
    )
    yield f"returns       mean {mean}; minimum, 10, 30, 50, 70, 90 %, maximum: {quantiles}"
    yield return_histogram(returns)
    yield f"policies      {_policies(dataset)}"
    yield f"targets       {' '.join(f'{target:.5g}' for target in default_targets(returns))}"
    yield f"return scale  {_return_scale(dataset)}"
    yield f"score         {_score(dataset)}"


def _environment_notes(spec: EnvironmentSpec, longest: int) -> list[str]:
    """What is different in an environment from the recorded episodes. longest: steps of the longest one."""
    notes, limit = [], spec.step_limit
    if spec.put_back:
        names = ", ".join(wrapper.name for wrapper in spec.put_back)
        notes.append(f"recorded inside the wrappers {names}, which the environment is put into here too")
    if spec.left_out:
        names = ", ".join(spec.left_out)
        notes.append(
            f"recorded inside the wrappers {names}, which are not built here, as they may be any code: observations, "
            "actions and rewards of the environment may differ from the data's"
        )
    if limit is not None and limit > longest:
        notes.append(
            f"episodes in {spec.id} last up to {limit} steps, the longest recorded one has {longest}: later steps are "
            "not trained"
        )
    return notes


def return_histogram(returns: NDArray[np.float64], bins: int = 10, width: int = 40) -> str:
    """A histogram of returns in text, one line a bin."""
    if span(returns) != (returns.min(), returns.max()):  # they differ by rounding only
        return f"{_plain(returns[:1])[0]:>10} in each of {len(returns)} episodes"
    counts, edges = np.histogram(returns, bins=bins, range=span(returns))
    longest = max(int(counts.max()), 1)
    lines = []
    shown = _plain(edges)
    for count, low, high in zip(counts, shown[:-1], shown[1:], strict=True):
        bar = "█" * round(width * count / longest) or ("▏" if count else "")
        lines.append(f"{low:>10} to {high:>9} {count:>6} {bar}")
    return "\n".join(lines)


def _plain(numbers: NDArray[np.float64]) -> list[str]:
    """Numbers to one decimal, or to five digits where that would not tell them apart or fill the line."""
    span = float(numbers.max() / 2 - numbers.min() / 2)
    form = ".1f" if (span >= 1 or span == 0) and np.abs(numbers).max() < 1e9 else ".5g"
    return [f"{number:{form}}" for number in numbers]


def _return_scale(dataset: Dataset) -> str:
    try:
        return f"{return_scale(dataset):.5g}, the std of the returns-to-go"
    except DataError as error:
        return f"none: {error}"


def plot_dataset(dataset: Dataset, path: Path) -> None:
    """A PNG: the histogram of returns with the suggested targets, and return against length."""
    with picture(path, 10, 4, dpi=130) as figure:
        left, right = figure.subplots(1, 2)
        bins = min(50, max(10, dataset.num_episodes // 5))
        left.hist(dataset.returns, bins=bins, range=span(dataset.returns), color="C0", alpha=0.7)
        for target in default_targets(dataset.returns):
            left.axvline(target, color="C3", lw=1, ls=":")
        left.set(xlabel="return (dotted: suggested targets)", ylabel="episodes")
        left.set_title(title_of(dataset.name), parse_math=False)
        right.plot(dataset.lengths, dataset.returns, "o", color="C0", alpha=0.3, ms=4, mew=0)
        right.set(xlabel="length", ylabel="return", title=f"{dataset.num_episodes} episodes, {dataset.num_steps} steps")
        for axes in (left, right):
            axes.grid(alpha=0.25)


def return_predictability(dataset: Dataset) -> float | None:
    """Share of the variance of the later return's rank that an episode's first actions predict; None where it has none.

    Episodes begin alike under every policy, so first actions show which policy played, not how well it went later. If
    they predict what is earned after them, the data holds several policies of different strength. At 0 or below it
    holds one, and its returns differ by luck. None: after the first actions nothing is earned that differs.
    Cross-validated ridge regression on the mean and deviation of each action dimension, and their squares.
    """
    first = first_actions(dataset)
    later = np.array([dataset.rewards[i + first : j].sum(dtype=np.float64) for i, j in pairwise(dataset.offsets)])
    if never_varies(later.min(), later.max()):
        return None
    rank = np.unique(later, return_inverse=True)[1].astype(np.float64)  # equal ones rank alike
    values = _frequent_values(dataset)
    x = np.stack([_beginning(dataset, i, min(i + first, j), values) for i, j in pairwise(dataset.offsets)])  # (E, F)
    x = x[:, np.linspace(0, x.shape[1] - 1, min(x.shape[1], MOST_FEATURES)).round().astype(int)]
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-9)
    x = np.hstack([x, x**2, np.ones((len(x), 1))])
    ridge = np.diag([float(len(x))] * (x.shape[1] - 1) + [1e-6])  # strong: there are few episodes
    part = np.random.default_rng(0).permutation(len(x)) % 5
    errors = np.empty(len(x))
    for held_out in range(5):
        known, unseen = x[part != held_out], x[part == held_out]
        weights = np.linalg.solve(known.T @ known + ridge, known.T @ rank[part != held_out])
        errors[part == held_out] = unseen @ weights - rank[part == held_out]
    return float(1 - (errors**2).mean() / rank.var())


def first_actions(dataset: Dataset) -> int:
    """How many actions of an episode are its first: at most a quarter of the median episode."""
    return int(np.clip(np.median(dataset.lengths) // 4, 1, FIRST_ACTIONS))


def _frequent_values(dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """Of each leaf of one choice the values that are taken most often, at most `MOST_FREQUENT`."""
    found = {}
    for name, space in leaf_spaces(dataset.action_space).items():
        if isinstance(space, spaces.Discrete):
            values, counts = np.unique(dataset.actions[name], return_counts=True)
            found[name] = np.sort(values[np.argsort(-counts, kind="stable")[:MOST_FREQUENT]]).astype(np.int64)
    return found


def _beginning(dataset: Dataset, start: int, end: int, values: dict[str, NDArray[np.int64]]) -> NDArray[np.float64]:
    """Mean and deviation of each action dimension over these steps, each frequent value as a dimension: (F,)."""
    columns = []
    for name in leaf_spaces(dataset.action_space):
        actions = dataset.actions[name][start:end]
        if name in values:
            actions = actions[:, None] == values[name]
        actions = actions.reshape(len(actions), -1).astype(np.float64)
        columns += [actions.mean(0), actions.std(0)]
    return np.concatenate(columns)


def _policies(dataset: Dataset) -> str:
    """Whether there is a return to choose, in words."""
    cloning = "a Decision Transformer is behaviour cloning here"
    if dataset.num_episodes == 1:
        return f"unknown: one episode does not show whether there were several; {cloning}"
    low, middle, high = np.quantile(dataset.returns, (0.1, 0.5, 0.9))
    if high - low <= 0.1 * abs(middle):
        return f"probably one policy: most earn {low:.5g} to {high:.5g}, so the return cannot be chosen; {cloning}"
    if dataset.num_episodes < ENOUGH_EPISODES:
        return f"unknown: {dataset.num_episodes} episodes are too few to show it; if one policy played, {cloning}"
    share, first = return_predictability(dataset), first_actions(dataset)
    actions = "action" if first == 1 else f"{first} actions"
    if share is None:
        return (
            f"unknown: after an episode's first {actions} every episode earns the same, "
            f"so they cannot show which policy played; if it was one, {cloning}"
        )
    if share < 0.05:
        return f"probably one policy: the first actions do not predict the return, so it is luck; {cloning}"
    return f"several: an episode's first {actions} predict {100 * share:.0f} % of how its later return ranks"


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
    """A line for each leaf of a field; below it its range, constant dimensions, numbers at bounds, and warnings."""
    for name, leaf in leaf_spaces(space).items():
        array = leaves[name].reshape(len(leaves[name]), -1)  # (N, D)
        yield f"{label:<13} {'' if len(leaves) == 1 else f'{name}: '}{_short(leaf)}"
        found = statistics(array)
        remarks = [f"{int(found.constant.sum())} of {array.shape[1]} dimensions never vary"]
        remarks = remarks if found.constant.any() else []
        if isinstance(leaf, spaces.Box) and label == "actions":
            low, high = leaf.low.reshape(-1), leaf.high.reshape(-1)
            clipped = 100 * float(((array <= low) | (array >= high)).mean())
            remarks += [f"{clipped:.1f} % of the numbers are at a bound or beyond it"] if clipped >= 0.05 else []
            free = int((~leaf.bounded_below | ~leaf.bounded_above).sum())
            remarks += [f"{free} of {low.size} numbers are unbounded"] if free else []
        if remarks:
            yield f"{'':13} {', '.join(remarks)}"
        if array.shape[1]:
            yield from (f"{'':13} {line}" for line in range_lines(array, found))
        if isinstance(leaf, spaces.Box) and not is_image(leaf):
            yield from (f"warning       {label}: {warning}" for warning in range_warnings(array, found))


def _short(leaf: spaces.Space) -> str:  # type: ignore[type-arg]
    """A space in one line, its many bounds left out."""
    text = " ".join(str(leaf).split())
    return text if len(text) <= 300 else f"{type(leaf).__name__} of shape {leaf.shape}, {leaf.dtype}"


def range_lines(array: NDArray[Any], found: Statistics) -> Iterator[str]:
    """Least, most, mean and deviation of each dimension of an array (N, D), or of all together where there are many."""
    if array.shape[1] > MOST_ROWS:
        low, high = int(found.low.argmin()), int(found.high.argmax())
        yield (
            f"{array.shape[1]} dimensions: min {found.low[low]:.5g} (dimension {low}), max {found.high[high]:.5g} "
            f"(dimension {high}), means {found.mean.min():.5g} to {found.mean.max():.5g}, "
            f"stds {found.std.min():.5g} to {found.std.max():.5g}"
        )
        return
    yield f"{'dimension':<9} {'min':>12} {'max':>12} {'mean':>12} {'std':>12}"
    for i, row in enumerate(zip(found.low, found.high, found.mean, found.std, strict=True)):
        yield f"{i:<9} {' '.join(f'{number:>12.5g}' for number in row)}"


def range_warnings(array: NDArray[Any], found: Statistics) -> Iterator[str]:
    """What of an array's (N, D) range is likely a mistake, or was lost before it was recorded; a line for each kind."""
    rest, marks = without_marks(array, found)
    marked = np.flatnonzero(~np.isnan(marks))
    if len(marked):
        share = 100 * float((array[:, marked[0]] == marks[marked[0]]).mean())
        yield (
            f"{_dimensions(marked)}: {marks[marked[0]]:.10g} in {share:.2g} % of the steps is far from all else, as a "
            "mark of missing numbers. The model is scaled by the other numbers."
        )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        distance = np.maximum(rest.high - rest.mean, rest.mean - rest.low) / rest.std
    far = np.flatnonzero(np.nan_to_num(np.where(found.constant, 0, distance)) > OUTLIER)
    if len(far):
        worst = int(far[np.argmax(distance[far])])
        end = rest.high if rest.high[worst] - rest.mean[worst] >= rest.mean[worst] - rest.low[worst] else rest.low
        yield (
            f"{_dimensions(far)}: outliers; {end[worst]:.5g} in dimension {worst} is {distance[worst]:.0f} standard "
            f"deviations from the mean"
        )
    if array.dtype.kind != "f" or array.dtype.itemsize > 4:
        return
    spacing = np.spacing(found.reach.astype(array.dtype)).astype(float)
    coarse = np.flatnonzero((found.low != found.high) & (spacing > found.std / COARSE))
    if len(coarse):
        worst = int(coarse[np.argmax(spacing[coarse])])
        yield (
            f"{_dimensions(coarse)}: {array.dtype} keeps multiples of {spacing[worst]:.3g} only at "
            f"{found.reach[worst]:.5g}, and the standard deviation is {found.std[worst]:.3g}. Digits were lost before "
            "this was recorded: record a wider type, or less an offset."
        )


def _dimensions(columns: NDArray[Any]) -> str:
    """Which dimensions, in words."""
    return f"dimension{'s' if len(columns) > 1 else ''} {listed([str(column) for column in columns])}"


def _environment(dataset: Dataset) -> str:
    spec = dataset.environment
    if spec is None:
        return "none named: --environment ID names one to play in"
    limit = f", at most {spec.step_limit} steps" if spec.step_limit else ""
    return f"{spec.id}{limit}"
