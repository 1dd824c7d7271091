"""Asked against achieved wherever a model was trained and played: one picture, a panel for each dataset.

    python -m benchmarks.asked_against_achieved runs/cartpole-decoupled-s*

keeps what the last checkpoints of these runs (folders of `dt train`) earned in a file of results, and draws all that
is there and in the Gym table. Without a run it draws alone.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tyro.conf import OmitArgPrefixes, Positional

from benchmarks.gym import read_rows
from transformer.errors import CheckpointError
from transformer.files import read_json, write_json

METHODS = ("token", "decoupled", "single")
"""Conditionings that hear what is asked, each with a colour of its own."""
COLUMNS = 3

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Asked against achieved, a panel for each dataset."""

    runs: Positional[tuple[Path, ...]] = ()
    """Runs to take in; those of the same dataset, method and seed are replaced."""
    results: Path = Path("docs/results/asked_against_achieved.json")
    """File of what such runs earned, one row a run."""
    gym: Path = Path("docs/results/gym.json")
    """File of the Gym table's rows, which are drawn too."""
    picture: Path = Path("docs/pictures/asked-against-achieved.png")
    """Where it is drawn."""


def row_of(folder: Path) -> Row:
    """What a run is and what its last checkpoint earned for what it was asked."""
    run, results = read_json(folder / "run.json"), read_json(folder / "results" / "last.json")
    model, training = run["config"]["model"], run["config"]["training"]
    return {
        "dataset": run["dataset"]["name"],
        "environment": results["environment"],
        "method": model["conditioning"],
        "seed": training["seed"],
        "steps": training["steps"],
        "maximum": run["dataset"]["maximum"],
        "checkpoint": results["checkpoint"],
        "results": [
            {
                **{name: result[name] for name in ("target_return", "mean_return", "std_return")},
                "episodes": len(result["returns"]),
            }
            for result in results["results"]
        ],
        "versions": results["versions"],
    }


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The rows of both in order; a new one takes the place of an old one of its dataset, method and seed."""
    by_cell = {(row["dataset"], row["method"], row["seed"]): row for row in (*old, *new)}
    return [by_cell[cell] for cell in sorted(by_cell)]


def of_the_gym_table(rows: Sequence[Row]) -> list[Row]:
    """Those rows of the Gym table that hear what is asked, in this file's form."""
    heard = [row for row in rows if row["method"] in METHODS]
    return [{**row, "results": row["last"]["results"]} for row in heard]


def curve(rows: Sequence[Row]) -> list[tuple[float, float, float, float]]:
    """For each target that was asked: itself, and over seeds the mean, the least and the most of the mean returns."""
    achieved: dict[float, list[float]] = defaultdict(list)
    for row in rows:
        for result in row["results"]:
            achieved[result["target_return"]].append(result["mean_return"])
    return [(asked, float(np.mean(x)), min(x), max(x)) for asked, x in sorted(achieved.items())]


def plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each dataset in the order of the rows; colours are methods, one legend for all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    columns = min(COLUMNS, len(datasets))
    shape = (math.ceil(len(datasets) / columns), columns)
    figure, grid = pyplot.subplots(
        *shape, figsize=(0.5 + 3.9 * shape[1], 0.6 + 3.4 * shape[0]), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(datasets) :]:
        axes.set_axis_off()
    for axes, dataset in zip(grid.flat, datasets, strict=False):
        _panel(axes, dataset, [row for row in rows if row["dataset"] == dataset])
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axes: Any, dataset: str, rows: Sequence[Row]) -> None:
    """Mean over seeds and their range for each method, the diagonal, and the data's best."""
    maximum, seeds = rows[0]["maximum"], []
    for i, method in enumerate(METHODS):
        found = [row for row in rows if row["method"] == method]
        if not found:
            continue
        asked, mean, least, most = zip(*curve(found), strict=True)
        axes.plot(asked, mean, "o-", ms=4, color=f"C{i}", label=f"{method}: mean and range over seeds")
        axes.fill_between(asked, least, most, color=f"C{i}", alpha=0.15, lw=0)
        seeds.append(f"{method} {len(found)}")
    axes.plot([0, maximum], [0, maximum], "--", color="0.5", lw=1, label="achieved = asked")
    axes.axvline(maximum, color="C3", lw=1.2, ls=":", label="best return in the data")
    axes.set_title(dataset.replace("+", "\n+ "), fontsize="medium")
    axes.set_xlabel(f"asked (seeds: {', '.join(seeds)})", fontsize="small")
    axes.set_ylabel("achieved", fontsize="small")
    axes.grid(alpha=0.25)


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), description=__doc__)
    rows: list[Row] = read_json(options.results)["rows"] if options.results.exists() else []
    if options.runs:
        try:
            rows = merged(rows, [row_of(folder) for folder in options.runs])
        except CheckpointError as error:
            raise SystemExit(
                f"{error}; `dt evaluate RUN --json RUN/results/last.json` writes a run's results"
            ) from None
        options.results.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.results, {"schema": 1, "rows": rows})
    rows = [*of_the_gym_table(list(read_rows(options.gym).values())), *rows]
    if not rows:
        raise SystemExit(f"neither {options.results} nor {options.gym} holds a row")
    plot(rows, options.picture)
    print(f"{len(rows)} rows of {len({row['dataset'] for row in rows})} datasets, in {options.picture}")


if __name__ == "__main__":
    main()
