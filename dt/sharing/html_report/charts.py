"""Charts as inline SVG. Colours are classes, so that the page's style sheet has a light and a dark set of them."""

import math
from collections.abc import Sequence

from dt.sharing.html_report.markup import Html, element

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 10, 42
"""Margins, in the units of the picture."""

MOST_POINTS = 400
"""Points of a curve; a longer one is thinned."""


class Chart:
    """Two axes, and what is drawn between them.

    Args:
        x: lowest and highest value along.
        y: lowest and highest value up.
        labels: of the two axes.
        title: what the chart shows, for a reader who cannot see it.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str], title: str):
        self.x, self.y, self.labels, self.title = _widened(*x), _widened(*y), labels, title
        self.parts: list[Html] = []

    def line(self, points: Points, class_: str) -> None:
        """A line through points in the axes' units."""
        if points:
            self.parts.append(element("polyline", points=self._places(thinned(points)), class_=f"line {class_}"))

    def dots(self, points: Points, class_: str, radius: float = 3) -> None:
        """A dot at each point."""
        for x, y in points:
            cx, cy = self._place(x, y)
            self.parts.append(element("circle", cx=cx, cy=cy, r=radius, class_=f"dot {class_}"))

    def bars(self, counts: Sequence[float], edges: Sequence[float], class_: str) -> None:
        """A histogram's bars; `edges` has one entry more than `counts`."""
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            (left, top), (right, bottom) = self._place(low, count), self._place(high, 0)
            self.parts.append(
                element(
                    "rect",
                    x=left,
                    y=top,
                    width=_round(right - left),
                    height=_round(bottom - top),
                    class_=f"bar {class_}",
                )
            )

    def band(self, low: Points, high: Points, class_: str) -> None:
        """The area between two lines."""
        self.parts.append(element("polygon", points=self._places([*low, *reversed(high)]), class_=f"band {class_}"))

    def span(self, low: float, high: float) -> None:
        """A range along the x axis, shaded from bottom to top."""
        left, right = (self._place(min(max(x, self.x[0]), self.x[1]), 0)[0] for x in (low, high))
        self.parts.append(
            element("rect", x=left, y=TOP, width=_round(right - left), height=HEIGHT - TOP - BOTTOM, class_="range")
        )

    def error_bar(self, x: float, low: float, high: float, class_: str) -> None:
        """A vertical bar from `low` to `high`."""
        (left, bottom), (_, top) = self._place(x, low), self._place(x, high)
        self.parts.append(element("line", x1=left, x2=left, y1=bottom, y2=top, class_=f"line {class_}"))

    def marker(self, x: float, **attributes: object) -> None:
        """A vertical line across the chart, with attributes of its own."""
        left = self._place(x, self.y[0])[0]
        self.parts.append(element("line", x1=left, x2=left, y1=TOP, y2=HEIGHT - BOTTOM, class_="marker", **attributes))

    def svg(self) -> Html:
        """The chart as an element of the page."""
        return element(
            "svg",
            *self._grid(),
            *self.parts,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=self.title,
        )

    def _grid(self) -> list[Html]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        parts = []
        for x in ticks(*self.x):
            left = self._place(x, 0)[0]
            parts.append(element("line", x1=left, x2=left, y1=TOP, y2=bottom, class_="grid"))
            parts.append(element("text", _tick(x), x=left, y=bottom + 15, class_="tick middle"))
        for y in ticks(*self.y):
            top = self._place(0, y)[1]
            parts.append(element("line", x1=LEFT, x2=right, y1=top, y2=top, class_="grid"))
            parts.append(element("text", _tick(y), x=LEFT - 6, y=top + 4, class_="tick end"))
        middle = _round((TOP + bottom) / 2)
        parts.append(element("text", self.labels[0], x=(LEFT + right) / 2, y=HEIGHT - 8, class_="axis middle"))
        turned = f"rotate(-90 13 {middle})"
        parts.append(element("text", self.labels[1], x=13, y=middle, transform=turned, class_="axis middle"))
        return parts

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the picture."""
        along = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return _round(LEFT + along * (WIDTH - LEFT - RIGHT)), _round(HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))

    def _places(self, points: Points) -> str:
        return " ".join(f"{x},{y}" for x, y in (self._place(*point) for point in points))


def around(values: Sequence[float], share: float = 0.04) -> tuple[float, float]:
    """The range of values with some room on both sides, also where all are equal; 0 to 1 where there are none."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = share * (high - low) or 0.1 * abs(low) or 1.0
    return low - room, high + room


def thinned(points: Points) -> Points:
    """At most `MOST_POINTS` of the points, evenly spaced, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _tick(value: float) -> str:
    """A tick's number; thousands are k, so that it fits the margin."""
    if 1e4 <= abs(value) < 1e6:
        return f"{value / 1e3:.6g}k"
    return f"{value:.5g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.3g}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty, and wide enough for its numbers to differ."""
    least = 1e-9 * max(abs(low), abs(high)) or 1.0
    return (low, high) if high - low > least else (low - least / 2, high + least / 2)


def _round(value: float) -> float:
    """To a tenth of a unit, which is all that is seen."""
    return round(value, 1)
