"""The Gym table as Markdown and as a picture, from the rows that are there.

python -m benchmarks.gym_report [--results docs/results/gym.json] [--plot docs/pictures/gym.png]
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gym import DATASETS, MAIN, METHODS, read_rows
from dt.asking.alignment import rank_correlation
from dt.evaluation import TargetResult
from dt.statistics import interquartile_interval

NAMES = {
    "token": "token",
    "decoupled": "decoupled",
    "decoupled-8000": "decoupled, 8,000 steps",
    "single": "single (one token a step)",
    "single-8000": "single, 8,000 steps",
    "single-60000": "single, 60,000 steps",
    "bc": "behaviour cloning",
    "bc-10": "10 % behaviour cloning",
    "bc-25": "25 % behaviour cloning",
    "bc-40": "40 % behaviour cloning",
    "huggingface": "Hugging Face",
    "token-delayed": "token, delayed reward",
    "decoupled-delayed": "decoupled, delayed reward",
    "single-delayed": "single, delayed reward",
    "token-k1": "token, K = 1",
    "token-k20": "token, K = 20",
}

Row = dict[str, Any]


def as_asked(row: Row, which: str) -> Row | None:
    """The result at the data's best return, at the "last" or the "best" checkpoint; None where none was kept."""
    return row[which]["results"][-1] if which in row else None


def at_chosen_target(row: Row) -> Row | None:
    """The best checkpoint's result at the target that earned most on environments of the choice's own."""
    if "best" not in row:
        return None
    return next(r for r in row["best"]["results"] if r["target_return"] == row["best"]["chosen_target"])


COLUMNS: dict[str, Callable[[Row], Row | None]] = {
    "as asked, last": lambda row: as_asked(row, "last"),
    "as asked, best": lambda row: as_asked(row, "best"),
    "chosen target, best": at_chosen_target,
}


def report(rows: Sequence[Row]) -> str:
    """A table for each dataset that has rows, and one over all of them."""
    parts = [_table(dataset, found) for dataset in DATASETS if (found := [r for r in rows if r["dataset"] == dataset])]
    return "\n\n".join([*parts, _overall(rows)])


def _table(dataset: str, rows: Sequence[Row]) -> str:
    lines = [
        f"| {dataset.replace('+', ' + ')}, the data's best {rows[0]['maximum']:.0f} | seeds | {' | '.join(COLUMNS)} "
        "| normalised | rank correlation |",
        f"| --- | --- | {'--- | ' * len(COLUMNS)}--- | --- |",
    ]
    for method in METHODS:
        found = [row for row in rows if row["method"] == method]
        if not found:
            continue
        results = [[result for row in found if (result := pick(row))] for pick in COLUMNS.values()]
        means = [_spread([result["mean_return"] for result in column]) for column in results]
        final = results[-1] or results[0]
        order = [_rank_correlation(row) for row in found]
        lines.append(
            f"| {NAMES[method]} | {len(found)} | {' | '.join(means)} "
            f"| {_spread([result['normalized_score'] for result in final], 1)} "
            f"| {'-' if np.isnan(order).any() else f'{np.mean(order):.2f}'} |"
        )
    return "\n".join(lines)


def _spread(values: Sequence[float | None], digits: int = 0) -> str:
    """Mean and, of several, deviation over seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    std = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{std}"


def _rank_correlation(row: Row) -> float:
    """Spearman's, of asked and achieved at the last checkpoint."""
    results = [TargetResult(r["target_return"], (r["mean_return"],), (1,), None) for r in row["last"]["results"]]
    return rank_correlation(results)


def _overall(rows: Sequence[Row]) -> str:
    """Interquartile means of the normalised scores over what the main methods run so far all have."""
    have = {method: {(row["dataset"], row["seed"]) for row in rows if row["method"] == method} for method in MAIN}
    most = max(map(len, have.values()))
    methods = [
        method for method, pairs in have.items() if len(pairs) * 2 >= most
    ]  # one just begun would leave no pairs
    common = sorted(set.intersection(*(have[method] for method in methods)))
    lines = [
        f"**All datasets**, the {len(common)} pairs of dataset and seed that every main method here has",
        "",
        f"| method | {' | '.join(COLUMNS)} |",
        f"| --- | {' | '.join('---' for _ in COLUMNS)} |",
    ]
    for method in methods:
        by_cell = {(row["dataset"], row["seed"]): row for row in rows if row["method"] == method}
        cells = []
        for pick in COLUMNS.values():
            scores: dict[str, list[float]] = {}
            for cell in common:
                scores.setdefault(cell[0], []).append(pick(by_cell[cell])["normalized_score"])  # type: ignore[index]
            cells.append(_interval(list(scores.values())))
        lines.append(f"| {NAMES[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(scores: list[list[float]]) -> str:
    """The interquartile mean and its 95 % interval: seeds are drawn again within each dataset."""
    if not scores:
        return "-"
    found = interquartile_interval(scores)
    if np.isnan(found.low):
        return f"{found.mean:.1f}"  # one seed says nothing of how seeds differ
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Asked against achieved for each dataset that has rows, at the last checkpoint: mean over seeds and range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    datasets = [dataset for dataset in DATASETS if any(row["dataset"] == dataset for row in rows)]
    columns = min(3, len(datasets))
    height = -(-len(datasets) // columns)
    figure, grid = pyplot.subplots(
        height, columns, figsize=(4.8 * columns, 5.2 * height), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(datasets) :]:
        axes.set_axis_off()
    for axes, dataset in zip(grid.flat, datasets, strict=False):
        here = [row for row in rows if row["dataset"] == dataset]
        for i, method in enumerate((*MAIN, "huggingface", "single-60000")):
            runs = [row["last"]["results"] for row in here if row["method"] == method]
            if runs:
                _curve(axes, runs, f"C{i}", f"{NAMES[method]} ({len(runs)} seed{'s' if len(runs) > 1 else ''})")
        maximum = here[0]["maximum"]
        axes.axvline(maximum, color="0.2", lw=1, ls=":", label="best return in the data")
        axes.plot([0, maximum], [0, maximum], "--", color="0.5", lw=1, label="achieved = asked")
        axes.set(xlabel="return asked for", ylabel="mean return achieved", title=dataset.replace("+", "\n+ "))
        axes.grid(alpha=0.25)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize="x-small")  # beside no curve
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _curve(axes: Any, runs: list[list[Row]], color: str, label: str) -> None:
    """A method's mean over seeds and its range; a level line for one that takes no request."""
    means = np.array([[result["mean_return"] for result in run] for run in runs])  # (seeds, targets)
    if means.shape[1] == 1:
        axes.axhline(means.mean(), color=color, lw=1.5, ls="-.", label=label)
        return
    asked = [result["target_return"] for result in runs[0]]
    axes.plot(asked, means.mean(0), "o-", color=color, label=label)
    axes.fill_between(asked, means.min(0), means.max(0), color=color, alpha=0.15, lw=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results/gym.json"), help="the file of rows")
    parser.add_argument("--plot", type=Path, default=Path("docs/pictures/gym.png"), help="the picture to draw")
    options = parser.parse_args()
    rows = list(read_rows(options.results).values())
    print(report(rows))
    plot(rows, options.plot)


if __name__ == "__main__":
    main()
