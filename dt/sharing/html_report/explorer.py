"""The slider of a report: a position for each target return, with what was achieved there and the nearest films."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from dt.sharing.html_report.files import Film, ReportedRun
from dt.sharing.html_report.groups import Group
from dt.sharing.html_report.layout import colour, group_legend, legend
from dt.sharing.html_report.markup import Html, element, join, number
from dt.sharing.html_report.returns import target_chart
from transformer.errors import CheckpointError

SAME_TARGET = 1e-5
"""Relative difference of a target and of the six digits in the name of its film."""


@dataclass(frozen=True)
class Embedded:
    """A film that goes into the page."""

    run: str
    target_return: float
    content: str
    """The file in base64."""


def embed(runs: Sequence[ReportedRun], most: int) -> tuple[list[Embedded], list[str]]:
    """The films that fit, the smallest first, and the names of those that do not.

    Args:
        runs: the runs that have the films.
        most: bytes that all of them may take in the page.

    Raises:
        CheckpointError: a file is not an MP4 film.
    """
    sized = sorted((film.path.stat().st_size, i, j) for i, run in enumerate(runs) for j, film in enumerate(run.films))
    fitting: set[tuple[int, int]] = set()
    for size, i, j in sized:
        most -= _in_base64(size)
        if most < 0:
            break
        fitting.add((i, j))
    embedded, left_out = [], []
    for i, run in enumerate(runs):
        for j, film in enumerate(run.films):
            if (i, j) in fitting:
                embedded.append(Embedded(run.name, film.target_return, _content(film)))
            else:
                left_out.append(f"{run.name} at {number(film.target_return)} ({film.path.stat().st_size / 1e6:.1f} MB)")
    return embedded, left_out


def _in_base64(size: int) -> int:
    return 4 * -(-size // 3)


def _content(film: Film) -> str:
    content = film.path.read_bytes()
    if content[4:8] != b"ftyp":
        raise CheckpointError(f"{film.path}: not an MP4 film; dt evaluate --video writes one")
    return base64.b64encode(content).decode()


def positions_of(runs: Sequence[ReportedRun], films: Sequence[Embedded]) -> list[float]:
    """The slider's positions: every target of the results, and those of films that no result has."""
    results = [each for run in runs for document in run.results.values() for each in document["results"]]
    found = sorted({each["target_return"] for each in results})
    for film in films:
        if not any(abs(film.target_return - target) <= SAME_TARGET * abs(target) for target in found):
            found.append(film.target_return)
    return sorted(found)


def explorer(groups: Sequence[Group], films: Sequence[Embedded]) -> Html:
    """Chart, slider, what was achieved at the slider's position, and the film of the nearest target of each run."""
    runs = [run for group in groups for run in group.runs]
    positions = positions_of(runs, films)
    if not positions:
        return Html("")
    last = len(positions) - 1
    return element(
        "div",
        element("div", target_chart(groups, positions, last), _chart_legend(groups), class_="chart"),
        element(
            "div",
            _slider(positions),
            *(_achieved_at(runs, target, i, i == last) for i, target in enumerate(positions)),
            *(_film(film, _nearest(film, films, positions), last) for film in films),
            class_="picked",
        ),
        class_="explorer",
    )


def _slider(positions: Sequence[float]) -> Html:
    last = len(positions) - 1
    slider = element("input", type="range", id="target", min=0, max=last, step=1, value=last, autocomplete="off")
    return element("label", "Target return: move the slider", slider, for_="target") if last else Html("")


def _achieved_at(runs: Sequence[ReportedRun], target: float, i: int, shown: bool) -> Html:
    """What each run achieved at a position of the slider."""
    lines = []
    for run in runs:
        for which, document in run.results.items():
            for each in document["results"]:
                if each["target_return"] == target and each["mean_return"] is not None:
                    name = run.name if which == "last" else f"{run.name}, {which}"
                    spread = f" ± {number(each['std_return'])}" if len(each["returns"]) > 1 else ""
                    lines.append(element("li", element("b", f"{number(each['mean_return'])}{spread}"), f" {name}"))
    what = element("ul", *lines) if lines else element("p", "not evaluated at this target")
    asked = element("p", "asked for ", element("b", number(target)), ", achieved (mean ± std of the episodes)")
    return element("div", asked, what, data_picks=i, hidden=not shown, class_="achieved")


def _nearest(film: Embedded, films: Sequence[Embedded], positions: Sequence[float]) -> list[int]:
    """The positions at which this film is the nearest one of its run."""
    rivals = [each for each in films if each.run == film.run]
    return [
        i
        for i, target in enumerate(positions)
        if min(rivals, key=lambda each: abs(each.target_return - target)) is film
    ]


def _film(film: Embedded, picks: Sequence[int], chosen: int) -> Html:
    source = Html(f"data:video/mp4;base64,{film.content}")
    video = element("video", src=source, controls=True, loop=True, muted=True, playsinline=True, preload="metadata")
    caption = f"{film.run}: one episode that was asked for {number(film.target_return)}"
    return element(
        "figure",
        video,
        element("figcaption", caption),
        data_picks=" ".join(map(str, picks)),
        hidden=chosen not in picks,
        class_="film",
    )


def _chart_legend(groups: Sequence[Group]) -> Html:
    several = any(len(group.documents) > 1 for group in groups)
    one = any(len(group.documents) == 1 for group in groups)
    words = [(f"{colour(0)}", "one run: mean, two standard errors, and its episodes")] if one else []
    words += [(f"{colour(0)}", "several seeds: interquartile mean, 95 % interval, and each seed")] if several else []
    words += [("diagonal", "achieved = target"), ("range", "returns of the data")]
    return join([group_legend(groups), legend(words)])
