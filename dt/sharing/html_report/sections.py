"""How runs came about: learning curves, held-out errors, data and configuration."""

from collections.abc import Iterator, Sequence
from typing import Any

from dt.config import Config
from dt.sharing.html_report.charts import Chart, around
from dt.sharing.html_report.command import training_command
from dt.sharing.html_report.files import ReportedRun
from dt.sharing.html_report.groups import Group, flattened
from dt.sharing.html_report.layout import colour, figure, group_legend, section, side_by_side
from dt.sharing.html_report.markup import Html, element, number, table

QUANTILES = (0, 10, 25, 50, 75, 90, 100)
"""Percentiles of the returns that are shown as numbers."""

CURVES = (
    ("train/loss", "loss", "Training loss"),
    ("evaluation/score", "score", "Score on the way"),
    ("evaluation/held_out_loss", "loss", "Error on held-out episodes"),
)
"""Curves of the log: name, label of the axis, title. A curve that no run has is not drawn."""

MORE_CURVES = (
    ("train/gradient_norm", "norm", "Gradient norm"),
    ("train/learning_rate", "learning rate", "Learning rate"),
    ("train/steps_per_second", "steps / s", "Speed"),
)
"""The same, of curves that are looked at where something went wrong."""


def curves(groups: Sequence[Group]) -> Html:
    """The curves of the log, a line for each run."""
    first, more = (_curves(groups, names) for names in (CURVES, MORE_CURVES))
    if not first and not more:
        return section("Learning curves", element("p", "There is no log: nothing was trained here.", class_="note"))
    folded = element("details", element("summary", "Gradient norm, learning rate and speed"), side_by_side(more))
    return section("Learning curves", side_by_side(first), group_legend(groups), folded if more else "")


def _curves(groups: Sequence[Group], names: Sequence[tuple[str, str, str]]) -> list[Html]:
    return [each for name, label, title in names if (each := _curve(groups, name, label, title))]


def _curve(groups: Sequence[Group], name: str, label: str, title: str) -> Html | None:
    drawn = [(i, run.curves[name]) for i, group in enumerate(groups) for run in group.runs if name in run.curves]
    if not drawn:
        return None
    steps = [step for _, curve in drawn for step, _ in curve]
    values = [value for _, curve in drawn for _, value in curve]
    chart = Chart((0, max(steps)), around(values), ("step", label), title)
    for i, curve in drawn:
        chart.line(curve, colour(i))
        if len(curve) <= 12:
            chart.dots(curve, colour(i), 2.5)
    return figure(title, chart.svg())


def held_out(runs: Sequence[ReportedRun]) -> Html:
    """Errors on held-out episodes, next to those of a constant action; nothing where none was held out."""
    rows = [
        (run.name, name, leaf["leaf"], leaf["measure"], number(leaf["error"]), number(leaf["baseline"]))
        for run in runs
        for name, document in run.held_out.items()
        for leaf in document["held_out"]["leaves"]
    ]
    if not rows:
        return Html("")
    header = ("run", "file", "action", "measure", "error", "of a constant action")
    return section("Error on held-out episodes", table(header, rows))


def data(runs: Sequence[ReportedRun]) -> Html:
    """Every dataset that the runs learned from, once."""
    found: dict[str, dict[str, Any]] = {}
    for run in runs:
        described = run.description["dataset"]
        key = repr([described.get(name) for name in ("name", "fingerprint", "episodes", "percentiles")])
        found.setdefault(key, described)
    return section("Data", *(part for described in found.values() for part in _dataset(described)))


def _dataset(described: dict[str, Any]) -> Iterator[Html]:
    counts = f"{described['episodes']:,} episodes, {described['steps']:,} steps" if "episodes" in described else ""
    yield element("h3", described["name"])
    yield element("p", counts) if counts else Html("")
    parts = described.get("parts", ())
    if len(parts) > 1:
        rows = [(part["name"], f"{part['fraction']:.0%}", part["fingerprint"][:12]) for part in parts]
        yield table(("joined from", "share", "fingerprint"), rows)
    histograms = described.get("histograms", {})
    if histograms:
        charts = [_histogram(histograms[name], name) for name in ("returns", "lengths")]
        yield side_by_side(charts)
    else:
        yield element(
            "p", "This run has no histograms: it was imported, or trained by an earlier version.", class_="note"
        )
    known = described.get("percentiles") or []
    if known:
        words = ["minimum", *(f"{q}\u00a0%" for q in QUANTILES[1:-1]), "maximum"]
        yield table(("returns", *words), [("", *(number(known[q]) for q in QUANTILES))])
    notes = described.get("notes")
    if notes:
        yield element("h4", "Oddities")
        yield element("ul", *(element("li", note) for note in notes))
    elif notes is not None:
        yield element("p", "Nothing odd was found in it.", class_="note")


def _histogram(found: dict[str, Any], name: str) -> Html:
    """A histogram of returns or lengths; a sentence where all are equal."""
    counts, edges = found["counts"], found["edges"]
    if len(counts) == 1:
        return element("p", f"The {name} of all {counts[0]:,} episodes are {number((edges[0] + edges[1]) / 2)}.")
    title = {"returns": "Returns of the episodes", "lengths": "Lengths of the episodes"}[name]
    labels = {"returns": "return", "lengths": "steps"}
    chart = Chart((edges[0], edges[-1]), (0, max(counts) * 1.05), (labels[name], "episodes"), title)
    chart.bars(counts, edges, "c0")
    return figure(title, chart.svg())


def configuration(groups: Sequence[Group]) -> Html:
    """Command, settings and versions of each group's first run."""
    return section("Configuration", *(part for group in groups for part in _configuration(group, len(groups) == 1)))


def _configuration(group: Group, only: bool) -> Iterator[Html]:
    run = group.runs[0]
    if not only:
        yield element("h3", group.label)
    if (imported := run.description.get("imported")) is not None:
        yield element("p", f"Not trained here: imported from {imported}.")
    else:
        yield element("p", f"The command that trains {run.name} again:")
        yield element("pre", training_command(run.description))
    if len(group.runs) > 1:
        names = ", ".join(f"{each.name} (seed {each.description['config']['training']['seed']})" for each in group.runs)
        yield element("p", "Runs: ", names)
    settings = Config.from_json(run.description["config"]).to_json()
    usual = flattened(Config().to_json())
    rows = [
        (element("b", name) if value != usual.get(name) else name, _setting(value), _setting(usual.get(name)))
        for name, value in flattened(settings).items()
    ]
    changed = sum(value != usual.get(name) for name, value in flattened(settings).items())
    summary = element("summary", f"All {len(rows)} settings; {changed} differ from their defaults")
    yield element("details", summary, table(("setting", "value", "default"), rows))
    versions = run.description.get("versions", {})
    if isinstance(versions, dict) and versions:
        yield element("p", "Trained with ", ", ".join(f"{name} {value}" for name, value in versions.items()), ".")


def _setting(value: Any) -> str:
    return "-" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
