"""Times that a table has as text, in the forms that people's tools write."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

DATES = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y", "%Y/%m/%d", "%Y.%m.%d", "%Y-%m-%d")
CLOCKS = (" %H:%M:%S", " %H:%M", "", " %I:%M:%S %p", " %I:%M %p", "T%H:%M:%S", "T%H:%M")
"""What a day is followed by."""

SOME = 100
"""Cells by which a form is chosen."""


def times_in_text(column: Any) -> NDArray[np.int64] | None:
    """Nanoseconds since 1970, (N,), of a column of texts that are all times; None if they are not, or one is empty.

    03/04/2026 is a day of March or of April: of several forms that fit, the one in which most rows rise.
    """
    import pyarrow

    if column.null_count or not len(column):
        return None
    texts = column.cast(pyarrow.string())
    found = [each for each in (_iso(texts), *_forms(texts)) if each is not None]
    if not found:
        return None
    return max(found, key=lambda times: int(np.count_nonzero(times[1:] > times[:-1])))


def _iso(texts: Any) -> NDArray[np.int64] | None:
    """Times such as 2026-01-31 12:00:00, with or without an offset from UTC."""
    import pyarrow

    for zone in (None, "UTC"):
        try:
            times = texts.cast(pyarrow.timestamp("ns", zone))
        except pyarrow.ArrowInvalid:
            continue
        return np.asarray(times.cast(pyarrow.int64()).to_numpy())
    return None


def _forms(texts: Any) -> list[NDArray[np.int64]]:
    """The times by each form that all texts have."""
    import pyarrow
    from pyarrow import compute

    found = []
    for form in (day + clock for day in DATES for clock in CLOCKS):
        if compute.strptime(texts[:SOME], form, "s", error_is_null=True).null_count:
            continue
        times = compute.strptime(texts, form, "s", error_is_null=True)
        if not times.null_count:
            found.append(np.asarray(times.cast(pyarrow.int64()).to_numpy()) * 1_000_000_000)
    return found
