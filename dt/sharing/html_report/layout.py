"""What the sections of a report are laid out with: headings, figures, legends, and numbers in words."""

import math
from collections.abc import Callable, Sequence

from dt.sharing.html_report.groups import Group
from dt.sharing.html_report.markup import Html, element, number

COLOURS = 6
"""Colours of the style sheet; a group beyond them has one of an earlier group."""


def section(title: str, *children: object) -> Html:
    """A section with its heading."""
    return element("section", element("h2", title), *children)


def figure(title: str, chart: Html, *below: object) -> Html:
    """A chart with its title above, and a legend or remark below."""
    return element("figure", element("figcaption", title), chart, *below)


def side_by_side(figures: Sequence[Html]) -> Html:
    """Figures in as many columns as the page is wide."""
    return element("div", *figures, class_="grid-of-charts")


def colour(i: int) -> str:
    """The class of a group's colour."""
    return f"c{i % COLOURS}"


def legend(entries: Sequence[tuple[str, str]]) -> Html:
    """Names with samples of their colours. entries: class and name."""
    return element(
        "ul", *(element("li", element("i", class_=class_), name) for class_, name in entries), class_="legend"
    )


def group_legend(groups: Sequence[Group]) -> Html:
    """The colours of the groups; nothing where there is one only."""
    if len(groups) == 1:
        return Html("")
    counts = [f"{len(group.runs)} run{'s' if len(group.runs) > 1 else ''}" for group in groups]
    return legend([(colour(i), f"{group.label} ({counts[i]})") for i, group in enumerate(groups)])


def interval_words(low: float, high: float, words: Callable[[float], str] = number) -> str:
    """An interval such as "3 to 7"; a dash where one seed has none. words: how a number is written."""
    return "-" if math.isnan(low) else f"{words(low)} to {words(high)}"


def share(value: float) -> str:
    """A share of the data's range, to three decimals."""
    return f"{value:.3f}"
