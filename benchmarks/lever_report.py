"""The lever's tables in Markdown, and its picture, from the rows that `benchmarks.lever` made.

python -m benchmarks.lever_report --picture docs/pictures/lever.png
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.lever import DATASETS, METHODS
from transformer.files import read_json

MEASURES = ("alignment_error", "quantile_error", "episode_error", "rank_correlation")

COLOURS = {1.0: "#a6cee3", 1.5: "#1f78b4", 2.0: "#6a3d9a", 3.0: "0.2"}
"""The line of each guidance."""

Row = dict[str, Any]


def rows_of(rows: Iterable[Row], dataset: str, method: str) -> list[Row]:
    """The rows of one dataset and method, by seed."""
    return sorted((r for r in rows if (r["dataset"], r["method"]) == (dataset, method)), key=lambda row: row["seed"])


def errors_table(rows: Sequence[Row]) -> str:
    """One line for each dataset and method that asks for returns: means over seeds, and the worst of them."""
    lines = [
        "| dataset | method | seeds | alignment error (worst) | quantile | episode | rank "
        "| alignment, uncalibrated | episode, uncalibrated |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dataset in DATASETS:
        for method in METHODS:
            found = [row for row in rows_of(rows, dataset, method) if "plain" in row]
            if found:
                lines.append(f"| {dataset} | {method} | {len(found)} | {_errors(found)} |")
    return "\n".join(lines)


def _errors(rows: Sequence[Row]) -> str:
    plain = {name: [row["plain"]["measures"][name] for row in rows] for name in MEASURES}
    without = f"{mean(plain['alignment_error']):.3f} | {mean(plain['episode_error']):.3f}"
    if "calibrated" not in rows[0]:
        return f"- | - | - | - | {without}"
    values = {name: [row["calibrated"]["measures"][name] for row in rows] for name in MEASURES}
    return (
        f"{mean(values['alignment_error']):.3f} ({max(values['alignment_error']):.3f}) | "
        f"{mean(values['quantile_error']):.3f} | {mean(values['episode_error']):.3f} | "
        f"{mean(values['rank_correlation']):.2f} | {without}"
    )


def tops_table(rows: Sequence[Row]) -> str:
    """One line for each dataset: the data's best, and what each method earns when it is to earn as much as it can."""
    methods = [method for method in METHODS if any(row["method"] == method for row in rows)]
    lines = [f"| dataset | the data's best | {' | '.join(methods)} |", f"| --- | --- |{' --- |' * len(methods)}"]
    for dataset in DATASETS:
        of_it = [row for row in rows if row["dataset"] == dataset]
        if of_it:
            cells = [_top_cell(rows_of(rows, dataset, method)) for method in methods]
            lines.append(f"| {dataset} | {of_it[0]['maximum']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _top_cell(rows: Sequence[Row]) -> str:
    """The mean over seeds with its standard error; of one seed, that over its episodes."""
    if not rows:
        return ""
    tops = [top_of(row) for row in rows]
    if len(tops) == 1:
        mean_return, error = tops[0]
        return f"{mean_return:.0f} ± {error:.0f} (1 seed)"
    error = stdev(top for top, _ in tops) / len(tops) ** 0.5
    return f"{mean(top for top, _ in tops):.0f} ± {error:.0f} ({len(tops)} seeds)"


def top_of(row: Row) -> tuple[float, float]:
    """What a run earns at its chosen target, or else at its highest, and the standard error over its episodes."""
    scored: Row = row.get("auto") or row.get("calibrated") or row["plain"]
    result = scored["results"][0 if "auto" in row else -1]
    return float(result["mean_return"]), float(result["std_return"]) / result["episodes"] ** 0.5


def draw(rows: Sequence[Row], picture: Path) -> None:
    """A panel for each dataset: what each request earns with each guidance, and what targets earn once calibrated."""
    from transformer.runs.pictures import import_matplotlib

    figures = import_matplotlib().figure
    shown = [dataset for dataset in DATASETS if any("curves" in row for row in rows_of(rows, dataset, "default"))]
    width = min(2, len(shown))
    height = (len(shown) + 1) // 2
    figure = figures.Figure(figsize=(5.5 * width, 4.2 * height), layout="constrained")
    for place, dataset in enumerate(shown, 1):
        axes = figure.add_subplot(height, width, place)
        _draw_panel(axes, rows_of(rows, dataset, "default"))
        axes.set_title(dataset)
        if place == 1:
            axes.legend(fontsize="small", loc="upper left")
    figure.supxlabel("request, or target return")
    figure.supylabel("mean return")
    figure.savefig(picture, dpi=110)


def _draw_panel(axes: Any, rows: Sequence[Row]) -> None:
    low, high = rows[0]["minimum"], rows[0]["maximum"]
    axes.axvspan(low, high, color="0.95", zorder=0, label="returns in the data")
    axes.plot([low, high], [low, high], color="0.6", linestyle="--", zorder=1, label="achieved = asked")
    for curve in rows[0].get("curves", ()):
        guidance = curve["guidance"]
        label = f"uncalibrated, guidance {guidance:g} (seed 0)"
        axes.plot(curve["requests"], curve["means"], ".-", color=COLOURS[guidance], linewidth=1, label=label)
    for i, row in enumerate(rows):
        results = row["calibrated"]["results"]
        targets = [result["target_return"] for result in results]
        label = f"calibrated, {len(rows)} seed{'s' if len(rows) > 1 else ''}" if i == 0 else None
        achieved = [result["mean_return"] for result in results]
        axes.plot(targets, achieved, "o", color="#d95f02", markersize=5, alpha=0.8, label=label, zorder=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("docs/results/lever.json"), help="the file of rows")
    parser.add_argument("--picture", type=Path, help="where to draw the picture")
    options = parser.parse_args()
    rows = read_json(options.results)["rows"]
    print(errors_table(rows), tops_table(rows), sep="\n\n")
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
