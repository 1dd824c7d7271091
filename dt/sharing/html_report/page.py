"""The whole page: sections and data put into page.html, which loads nothing from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dt.sharing.html_report import returns, sections
from dt.sharing.html_report.charts import thinned
from dt.sharing.html_report.explorer import embed, explorer
from dt.sharing.html_report.files import ReportedRun, read_runs
from dt.sharing.html_report.groups import Group, grouped
from dt.sharing.html_report.markup import Html, element, join, text
from dt.sharing.html_report.seeds import over_seeds
from transformer.errors import ConfigError
from transformer.files import replace_text

MOST_BYTES = 10_000_000
"""Of a report: mail and browsers take as much."""


def write_report(folders: Sequence[Path], path: Path) -> int:
    """Write runs of one environment as one HTML file; returns its size in bytes.

    Args:
        folders: the runs'.
        path: the file; one that is there is replaced.

    Raises:
        CheckpointError: a folder is not a run, or a file in it is not what this version writes.
        ConfigError: the runs do not belong together, or there is more of them than `MOST_BYTES`.
    """
    page = page_of(read_runs(folders))
    replace_text(path, page)
    return len(page.encode())


def page_of(runs: Sequence[ReportedRun]) -> str:
    """The report of runs, as HTML. Films fill what the rest leaves of `MOST_BYTES`."""
    groups = grouped(runs)
    without = len(_page(runs, groups, most_films=0).encode())
    if without > MOST_BYTES:
        raise ConfigError(
            f"the report would have {without / 1e6:.1f} MB without films, expected at most {MOST_BYTES / 1e6:.0f}. "
            "Report fewer runs at once."
        )
    films = sum(len(run.films) for run in runs)
    return _page(runs, groups, most_films=MOST_BYTES - without - 1000 * films)  # for the elements around them


def _page(runs: Sequence[ReportedRun], groups: Sequence[Group], most_films: int) -> str:
    films, left_out = embed(runs, most_films)
    title = f"Report: {runs[0].name}" if len(runs) == 1 else f"Report: {len(runs)} runs"
    shown = join([explorer(groups, films), returns.films_note(runs, left_out)])
    body = [
        _header(title, runs),
        returns.overview(groups),
        returns.achieved(groups, shown),
        returns.seeds(groups),
        sections.curves(groups),
        sections.held_out(runs),
        sections.data(runs),
        sections.configuration(groups),
    ]
    style, script, frame = (_part(f"page.{kind}") for kind in ("css", "js", "html"))
    return Template(frame).substitute(
        title=text(title),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=as_script(data_of(runs, groups)),
        body=join(body),
    )


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _header(title: str, runs: Sequence[ReportedRun]) -> Html:
    datasets = list(dict.fromkeys(run.description["dataset"]["name"] for run in runs))
    environment = runs[0].description["environment"]
    played = f"played in {environment['id']}" if environment else "without an environment"
    names = element("p", ", ".join(run.name for run in runs)) if len(runs) > 1 else Html("")
    return element("header", element("h1", title), element("p", f"Trained on {', '.join(datasets)}, {played}."), names)


def data_of(runs: Sequence[ReportedRun], groups: Sequence[Group]) -> dict[str, Any]:
    """What the page shows, as JSON: the numbers of the runs' own files, and those over seeds."""
    return {
        "schema": 1,
        "runs": [_run(run) for run in runs],
        "seeds": [
            {
                "label": group.label,
                "runs": [run.name for run in group.runs],
                "targets": [
                    {
                        "target_return": row.target_return,
                        "means": list(row.means),
                        "mean": row.mean,
                        "standard_error": row.standard_error,
                        "interquartile_mean": row.interval.mean,
                        "interval": [row.interval.low, row.interval.high],
                    }
                    for row in over_seeds(group.documents)
                ],
            }
            for group in groups
            if len(group.documents) > 1
        ],
    }


def _run(run: ReportedRun) -> dict[str, Any]:
    kept = ("target_return", "mean_return", "std_return", "returns", "lengths", "normalized_score")
    return {
        "name": run.name,
        "dataset": run.description["dataset"],
        "environment": run.description["environment"],
        "config": run.description["config"],
        "curves": {name: thinned(curve) for name, curve in run.curves.items()},
        "results": {
            which: {
                "checkpoint": document["checkpoint"],
                "measures": document.get("measures", {}),
                "results": [{name: each[name] for name in kept} for each in document["results"]],  # type: ignore[literal-required]
            }
            for which, document in run.results.items()
        },
        "held_out": {name: document["held_out"] for name, document in run.held_out.items()},
    }


def as_script(document: Any) -> str:
    """JSON for a script element, which no text in it can end."""
    return json.dumps(document, separators=(",", ":")).replace("<", "\\u003c")
