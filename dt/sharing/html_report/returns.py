"""What runs earn: the numbers on top, target and achieved return with its films, and several seeds together."""

import shlex
from collections.abc import Sequence

from dt.config import Config
from dt.sharing.html_report.charts import Chart, around
from dt.sharing.html_report.files import FILMS, ReportedRun, ResultsDocument
from dt.sharing.html_report.groups import Group
from dt.sharing.html_report.layout import colour, interval_words, section, share
from dt.sharing.html_report.markup import Html, element, join, number, table
from dt.sharing.html_report.seeds import over_seeds, shared_measure
from dt.statistics import interquartile_interval, standard_error


def overview(groups: Sequence[Group]) -> Html:
    """The numbers that one looks for first."""
    runs = [run for group in groups for run in group.runs]
    data = runs[0].description["dataset"]
    tiles = [("runs", str(len(runs)))] if len(runs) > 1 else []
    documents = [document for group in groups for document in group.documents]
    if documents and (name := shared_measure(documents)) is not None:
        errors = [document["measures"][name] for document in documents]
        what = name.replace("_", " ")
        what += ", averaged over the runs" if len(errors) > 1 else ""
        tiles.append((what, share(sum(errors) / len(errors))))
    means = [point for document in documents for point in mean_returns(document)]
    if means:
        target, best = max(means, key=lambda point: point[1])
        tiles.append((f"best mean return, asked for {number(target)}", number(best)))
    if "maximum" in data and len({run.description["dataset"].get("maximum") for run in runs}) == 1:
        tiles.append(("best return in the data", number(data["maximum"])))
    steps = {Config.from_json(run.description["config"]).training.steps for run in runs}
    if len(steps) == 1:
        tiles.append(("training steps", number(steps.pop())))
    return element(
        "div", *(element("div", element("b", value), element("span", what)) for what, value in tiles), class_="tiles"
    )


def mean_returns(document: ResultsDocument) -> list[tuple[float, float]]:
    """Target and mean return of each target, without those at which every episode failed."""
    results = document["results"]
    return [(each["target_return"], each["mean_return"]) for each in results if each["mean_return"] is not None]


def target_chart(groups: Sequence[Group], positions: Sequence[float], chosen: int) -> Html:
    """Target return along, achieved return up, with a marker at each of the slider's positions."""
    results = [each for group in groups for document in group.documents for each in document["results"]]
    known = [run.description["dataset"].get("percentiles") or [] for group in groups for run in group.runs]
    ends = [end for each in known if each for end in (each[0], each[-1])]
    targets = [each["target_return"] for each in results]
    returns = [value for each in results for value in each["returns"]]
    chart = Chart(
        around([*targets, *positions, *ends]),
        around([*returns, *targets]),
        ("target return", "achieved return"),
        "Target return and achieved return",
    )
    if ends:
        chart.span(min(ends), max(ends))
    low, high = max(chart.x[0], chart.y[0]), min(chart.x[1], chart.y[1])
    chart.line([(low, low), (high, high)], "diagonal")
    for i, target in enumerate(positions):
        chart.marker(target, data_picks=i, hidden=i != chosen)
    for i, group in enumerate(groups):
        _draw_group(chart, group, colour(i))
    return chart.svg()


def _draw_group(chart: Chart, group: Group, class_: str) -> None:
    """Of one run its episodes, and means with two standard errors; of several seeds their means and the interval."""
    if len(group.documents) == 1:
        (document,) = group.documents
        points = sorted(mean_returns(document))
        returns = {each["target_return"]: each["returns"] for each in document["results"]}
        for target, mean in points:
            chart.dots([(target, value) for value in returns[target]], f"{class_} faint", 2.5)
            error = 2 * standard_error(returns[target])
            if error == error:
                chart.error_bar(target, mean - error, mean + error, class_)
    else:
        rows = sorted(over_seeds(group.documents), key=lambda row: row.target_return)
        points = [(row.target_return, row.interval.mean) for row in rows]
        for row in rows:
            chart.dots([(row.target_return, mean) for mean in row.means], f"{class_} faint", 2.5)
        if len(rows) > 1:
            chart.band(
                [(row.target_return, row.interval.low) for row in rows],
                [(row.target_return, row.interval.high) for row in rows],
                class_,
            )
    chart.line(points, class_)
    chart.dots(points, class_)


def achieved(groups: Sequence[Group], explorer: Html) -> Html:
    """Target against achieved: the chart with its slider and films, then every run's tables."""
    runs = [run for group in groups for run in group.runs]
    tables = [results_table(run, which) for run in runs for which in run.results]
    missing = [run for run in runs if not run.results]
    advice = element("p", f"Not evaluated: {', '.join(run.name for run in missing)}. To do so:", class_="note")
    commands = element("pre", "\n".join(map(evaluation_command, missing)))
    folded = len(tables) > 2
    shown = element("details", element("summary", f"All {len(tables)} tables"), *tables) if folded else join(tables)
    return section("Target and achieved return", explorer, shown, *((advice, commands) if missing else ()))


def results_table(run: ReportedRun, which: str) -> Html:
    """Target, achieved return and score of each target, as the run's file of results has them."""
    document = run.results[which]
    rows = [
        (
            number(each["target_return"]),
            number(each["mean_return"]),
            number(each["std_return"]),
            number(None if each["mean_return"] is None else each["mean_return"] - each["target_return"]),
            number(each["normalized_score"]),
            f"{len(each['returns'])}" + (f" and {len(each['failures'])} failed" if each.get("failures") else ""),
        )
        for each in document["results"]
    ]
    header = ("target", "achieved", "std", "error", "normalised", "episodes")
    measures = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in document.get("measures", {}).items()
    )
    checkpoint = f"{run.name}, {which} checkpoint ({document['checkpoint']})"
    return join([element("h3", checkpoint), table(header, rows), element("p", measures) if measures else ""])


def films_note(runs: Sequence[ReportedRun], left_out: Sequence[str]) -> Html:
    """Where there is no film, how to make one; where some did not fit, which."""
    if left_out:
        return element("p", "Left out, since a report has at most 10 MB: ", ", ".join(left_out), ".", class_="note")
    evaluated = [run for run in runs if run.results]
    if not evaluated or any(run.films for run in runs):
        return Html("")
    what = element("p", "There are no films. Make them, then write the report again:", class_="note")
    return join([what, element("pre", evaluation_command(evaluated[0]))])


def evaluation_command(run: ReportedRun) -> str:
    """The command that leaves a run's films, and results where it has none, where a report looks for them."""
    words = ["dt", "evaluate", str(run.folder)]
    if not run.results:
        words += ["--json", str(run.folder / "results" / "last.json")]
    return shlex.join([*words, "--video", str(run.folder / FILMS)])


def seeds(groups: Sequence[Group]) -> Html:
    """Means, standard errors and intervals over the seeds of each group; nothing where no group has several."""
    several = [group for group in groups if len(group.documents) > 1]
    if not several:
        return Html("")
    parts = []
    for group in several:
        header = ("target", "mean over seeds", "standard error", "IQM", "95 % interval", "seeds")
        rows = [
            (
                number(row.target_return),
                number(row.mean),
                number(row.standard_error),
                number(row.interval.mean),
                interval_words(row.interval.low, row.interval.high),
                len(row.means),
            )
            for row in over_seeds(group.documents)
        ]
        nothing = element("p", "These seeds have no target in common: their targets come from different episodes.")
        parts += [element("h3", group.label), table(header, rows) if rows else nothing]
    explanation = element(
        "p",
        "IQM is the interquartile mean: the mean of the middle half of the values. Intervals are percentiles of a "
        "stratified bootstrap of 10,000 samples; seeds are drawn again within each dataset (Agarwal et al. 2021).",
        class_="note",
    )
    return section("Several seeds", *parts, _errors_of_methods(groups), explanation)


def _errors_of_methods(groups: Sequence[Group]) -> Html:
    """The alignment error of each method: over its seeds, and over its datasets where there are several."""
    methods: dict[str, list[Group]] = {}
    for group in groups:
        if group.documents:
            methods.setdefault(group.settings, []).append(group)
    documents = [document for group in groups for document in group.documents]
    name = shared_measure(documents)
    if name is None:
        return Html("")
    rows = []
    for settings, members in methods.items():
        strata = [[document["measures"][name] for document in group.documents] for group in members]
        errors = [error for stratum in strata for error in stratum]
        iqm, low, high = interquartile_interval(strata)
        label = settings or ", ".join(dict.fromkeys(group.label for group in members))
        mean = sum(errors) / len(errors)
        rows.append((label, *map(share, (mean, max(errors), iqm)), interval_words(low, high, share), len(errors)))
    header = ("training", "mean", "worst", "IQM", "95 % interval", "runs")
    what = name.replace("_", " ").capitalize()
    return join([element("h3", f"{what}, as a share of the data's range; 0 is perfect"), table(header, rows)])
