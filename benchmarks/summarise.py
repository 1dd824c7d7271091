"""Results of several runs as one Markdown table, and as one picture of target against achieved return.

    python -m benchmarks.summarise runs/hopper-token-s* runs/hopper-decoupled-s* --plot docs/hopper.png

A run is a folder of `dt train` or of `benchmarks.huggingface_baseline`. Runs that differ in nothing but their seed make
one curve.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dt.asking.alignment import rank_correlation
from dt.evaluation import TargetResult
from transformer.files import read_json


def read(folder: Path, which: str) -> dict[str, Any]:
    """One run's results with the name of its method and its training seed."""
    if (folder / "results.json").exists():
        document = read_json(folder / "results.json")
        return {
            **document,
            "method": f"Hugging Face, {document['recipe']} recipe",
            "train_seed": document["training_seed"],
        }
    config = read_json(folder / "run.json")["config"]
    document = read_json(folder / "results" / f"{which}.json")
    training = config["training"]
    return {
        **document,
        "method": config["model"]["conditioning"],
        "train_seed": training["seed"],
        "steps": training["steps"],
        "precision": training["precision"],
    }


def targets(document: dict[str, Any]) -> list[TargetResult]:
    return [
        TargetResult(r["target_return"], tuple(r["returns"]), tuple(r["lengths"]), r["normalized_score"])
        for r in document["results"]
    ]


def table(documents: list[dict[str, Any]]) -> str:
    asked = [f"{result.target_return:.0f}" for result in targets(documents[0])]
    lines = [
        f"| method | steps | seed | {' | '.join(f'asked {a}' for a in asked)} | rank correlation | best target |",
        f"| --- | --- | --- | {' | '.join('---' for _ in asked)} | --- | --- |",
    ]
    for document in documents:
        results = targets(document)
        cells = [f"{r.mean_return:.0f} ± {r.std_return / len(r.returns) ** 0.5:.0f}" for r in results]
        best = max(results, key=lambda r: r.mean_return)
        lines.append(
            f"| {document['method']}, {document['precision']} | {document['steps']} | {document['train_seed']} "
            f"| {' | '.join(cells)} | {rank_correlation(results):.2f} | {best.mean_return:.0f} |"
        )
    return "\n".join(lines)


def plot(documents: list[dict[str, Any]], which: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups: dict[str, list[list[TargetResult]]] = defaultdict(list)
    for document in documents:
        groups[document["method"]].append(targets(document))
    figure, axes = pyplot.subplots(figsize=(7, 5.2), layout="constrained")
    for i, (method, runs) in enumerate(groups.items()):
        asked = [result.target_return for result in runs[0]]
        means = np.array([[result.mean_return for result in run] for run in runs])  # (seeds, targets)
        label = f"{method} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"
        axes.plot(asked, means.mean(0), "o-", color=f"C{i}", label=label)
        axes.fill_between(asked, means.min(0), means.max(0), color=f"C{i}", alpha=0.15, lw=0)
    top = max(asked)
    axes.plot([0, top], [0, top], "--", color="0.5", lw=1, label="achieved = asked")
    axes.set(
        xlabel="return asked for", ylabel="mean return achieved", title=f"{documents[0]['dataset']}, {which} checkpoint"
    )
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--which", choices=["last", "best"], default="last", help="which results of our own runs")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    documents = [read(folder, options.which) for folder in options.runs]
    print(table(documents))
    if options.plot:
        plot(documents, options.which, options.plot)


if __name__ == "__main__":
    main()
