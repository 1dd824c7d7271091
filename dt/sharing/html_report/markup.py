"""HTML from plain values: whatever is not `Html` is text, and is escaped where it goes in."""

import html
from collections.abc import Iterable, Sequence

from transformer.runs.console import printable


class Html(str):
    """Text that is HTML already."""


def text(value: object) -> Html:
    """A value as HTML: `Html` as it is, anything else escaped, and its control characters as Python writes them."""
    return value if isinstance(value, Html) else Html(html.escape(printable(str(value))))


def join(parts: Iterable[object]) -> Html:
    """Several values, one after the other."""
    return Html("".join(map(text, parts)))


def element(name: str, *children: object, **attributes: object) -> Html:
    """An element with its children.

    Args:
        name: of the element, such as "td".
        children: what goes in, as `text` takes it.
        attributes: `class_` is class, and `data_x` is data-x. True is an attribute without a value; None and False
            are left out.
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{text(value)}"')
    start = Html(f"<{' '.join(words)}>")
    return start if name in ("input", "br") else Html(f"{start}{join(children)}</{name}>")


def table(header: Sequence[object], rows: Iterable[Sequence[object]], class_: str | None = None) -> Html:
    """A table that scrolls by itself where the page is narrow."""
    head = element("tr", *(element("th", each) for each in header))
    body = [element("tr", *(element("td", each) for each in row)) for row in rows]
    return element(
        "div",
        element("table", element("thead", head), element("tbody", *body)),
        class_=f"scroll {class_ or ''}".strip(),
    )


def number(value: float | None) -> str:
    """A number to four digits, large ones with commas; a dash where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e9 else f"{value:.4g}"
