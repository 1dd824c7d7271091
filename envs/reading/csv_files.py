"""CSV as people's tools write it: what separates its columns, what comes before its header, its encoding, its lists.

A line `sep=;` (Excel) and lines of comments (`#`) before the header are passed over. UTF-16 is known by its mark, and
what is not UTF-8 is read as Latin-1. A cell such as `[1, 2]`, `(1, 2)` or `[1 2]` is a list of numbers.
"""

import csv
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.errors import DataError

HEAD = 1 << 16
"""Bytes in which the header is sought."""

MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""What a file of another encoding than UTF-8 begins with."""

NOT_UTF8 = "not UTF-8: its text is read as Latin-1"


@dataclass(frozen=True, kw_only=True)
class CsvFile:
    """A CSV file's layout, and its columns by name.

    skipped: lines before the header. header: the columns' names where they are in a comment, else None.
    decimal: what separates the decimals of a number. is_aligned: columns are apart by several blanks.
    """

    path: Path
    delimiter: str
    skipped: int
    header: tuple[str, ...] | None
    encoding: str
    decimal: str = "."
    is_aligned: bool = False
    notes: tuple[str, ...] = ()

    def schema(self) -> Any:
        """Names and types of the columns, by the file's beginning."""
        from pyarrow import csv

        read, parse = self._options()
        convert = csv.ConvertOptions(decimal_point=self.decimal)
        with csv.open_csv(self._source(), read_options=read, parse_options=parse, convert_options=convert) as reader:
            return reader.schema

    def read(self, columns: Collection[str], as_text: Iterable[str]) -> Any:
        """These columns as a table. as_text: those that are names; 007 and 7 are two names."""
        import pyarrow
        from pyarrow import csv

        read, parse = self._options()
        convert = csv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: pyarrow.string() for name in as_text},
            decimal_point=self.decimal,
        )
        return csv.read_csv(self._source(), read_options=read, parse_options=parse, convert_options=convert)

    def _source(self) -> Any:
        """The file, or its text with one blank between columns."""
        if not self.is_aligned:
            return self.path
        lines = self.path.read_text(encoding=self.encoding).removeprefix("\ufeff").splitlines()
        return BytesIO("\n".join(" ".join(line.split()) for line in lines).encode(self.encoding))

    def _options(self) -> tuple[Any, Any]:
        from pyarrow import csv

        names = None if self.header is None else list(self.header)
        read = csv.ReadOptions(skip_rows=self.skipped, column_names=names, encoding=self.encoding)
        return read, csv.ParseOptions(delimiter=self.delimiter)


def open_csv(path: Path) -> CsvFile:
    """A CSV file, its layout found by its beginning; `DataError` where it has no header."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    encoding, notes = MARKS.get(head[:2]) or _without_mark(head), tuple[str, ...]()
    if encoding == "utf-8" and not _is_utf8(path):
        encoding, notes = "latin-1", (NOT_UTF8,)
    if encoding.startswith("utf-16"):
        head = head[: len(head) // 2 * 2]
    lines = head.decode(encoding, errors="replace").removeprefix("\ufeff").splitlines()
    separator = re.fullmatch(r"sep=(.)", lines[0].strip("\r\n"), re.IGNORECASE) if lines else None
    skipped = int(separator is not None)
    while skipped < len(lines) and lines[skipped].startswith("#"):
        skipped += 1
    first = lines[skipped] if skipped < len(lines) else ""
    delimiter = separator[1] if separator else _delimiter(first)
    found = CsvFile(path=path, delimiter=delimiter, skipped=skipped, header=None, encoding=encoding, notes=notes)
    if delimiter == " " and any(re.search(r"  |^ | $", line) for line in lines[skipped : skipped + 1000]):
        found, lines = replace(found, is_aligned=True), [" ".join(line.split()) for line in lines]
        first = lines[skipped]
    if _has_decimal_commas(lines[skipped + 1 :], delimiter):
        found = replace(found, decimal=",", notes=(*notes, "numbers are written with a decimal comma"))
    if not _is_numbers(first, delimiter):
        names = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
        if any(name != name.strip() for name in first.split(delimiter)) and delimiter != " ":
            return replace(found, header=tuple(name.strip() for name in names), skipped=skipped + 1)
        return found
    names = [name.strip() for name in lines[skipped - 1].lstrip("# ").split(delimiter)] if skipped else []
    if len(names) == len(first.split(delimiter)) and not _is_numbers(delimiter.join(names), delimiter):
        return replace(found, header=tuple(names))  # as numpy.savetxt writes a header
    raise DataError(
        f"{path}: line {skipped + 1} holds numbers only, so no column has a name. Put a line of names before it, such "
        f"as {delimiter.join(['episode', 'observation_0', 'action', 'reward'])}"
    )


def _without_mark(head: bytes) -> str:
    """The encoding of text without a mark: every other byte of UTF-16 is 0 where the text is English."""
    pairs = len(head) // 2
    zeros = [head[first : 2 * pairs : 2].count(0) for first in (0, 1)]
    if max(zeros) < 0.9 * pairs or min(zeros) or not pairs:
        return "utf-8"
    return "utf-16-be" if zeros[0] else "utf-16-le"


def _is_utf8(path: Path) -> bool:
    """Whether all of a file is UTF-8, looked at a piece at a time."""
    from codecs import getincrementaldecoder

    decoder = getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                if not piece.isascii() or decoder.getstate()[0]:
                    decoder.decode(piece)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _delimiter(header: str) -> str:
    """What separates the columns: commas, semicolons, tabs or bars, whichever the header has most of; else blanks."""
    bare = re.sub(r'"[^"]*"', "", header)  # a name in quotes may hold any of them
    found = max(",;\t|", key=bare.count)
    return found if found in bare or " " not in bare.strip() else " "


def _has_decimal_commas(lines: list[str], delimiter: str) -> bool:
    """Whether numbers have a comma before their decimals: some do, which can be no sign for thousands, and no point."""
    cells = [cell.strip() for row in csv.reader(lines[:1000], delimiter=delimiter) for cell in row]
    comma = [cell for cell in cells if re.fullmatch(r"[-+]?\d*,\d+([eE][-+]?\d+)?", cell)]
    if any(re.fullmatch(r"[-+]?\d*\.\d+([eE][-+]?\d+)?", cell) for cell in cells):
        return False
    return any(not re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", cell) for cell in comma)


def _is_numbers(line: str, delimiter: str) -> bool:
    """Whether each cell of a line is a number."""
    cells = line.split(delimiter)
    return bool(line.strip()) and all(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", c) for c in cells)


_SCALAR = re.compile(r"(?:np|numpy|jnp|torch)?\.?(?:float|int|uint|bool|tensor)\d*_?\(([^()\[\]]*)\)")
_ARRAY = r"(?:(?:np|numpy|jnp|torch)\.)?(?:array|Array|tensor)\("


def is_list(text: str) -> bool:
    """Whether a cell's text is a list: `[1, 2]`, `(1, 2)`, `[1 2]`, `array([1, 2])`."""
    return bool(re.match(rf"\s*(?:{_ARRAY})?[\[(]", text))


def lists_in_text(where: str, texts: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The numbers of cells that are lists, (N, K), zeros where a cell is empty, and the rows of those.

    where: file and column, for the `DataError` that names the row of a cell that is not K numbers.
    """
    rows = [_numbers(f"{where.format(row=row + 1)}", text) for row, text in enumerate(texts)]
    size = next((len(numbers) for numbers in rows if numbers), 0)
    for row, numbers in enumerate(rows):
        if numbers and len(numbers) != size:
            raise DataError(f"{where.format(row=row + 1)}: {len(numbers)} numbers, expected {size}")
    nothing = np.array([not numbers for numbers in rows])
    whole = all(re.fullmatch(r"[-+]?\d{1,18}", number) for numbers in rows for number in numbers)
    values = np.zeros((len(rows), size), np.int64 if whole else np.float64)
    values[~nothing] = np.array([numbers for numbers in rows if numbers], np.float64 if not whole else np.int64)
    return values, np.flatnonzero(nothing)


def _numbers(where: str, text: str) -> list[str]:
    """The numbers of one cell, as text; none where it is empty."""
    inner = _SCALAR.sub(r"\1", text.strip())
    inner = re.sub(rf"^{_ARRAY}|(?<=[\])]),?\s*(?:dtype=[\w.]+)?\)$", "", inner)
    if not inner:
        return []
    if "..." in inner:
        raise DataError(f"{where}: numbers are left out of {text[:40]!r}: write all of them")
    if inner[0] + inner[-1] not in ("[]", "()") or re.search(r"[\[\](){}]", inner[1:-1]):
        raise DataError(f"{where}: {text[:40]!r}, expected a list of numbers such as [1, 2]")
    numbers = re.split(r"\s*,\s*|\s+", inner[1:-1].strip().rstrip(",").strip())
    for number in numbers:
        try:
            float(number)
        except ValueError:
            raise DataError(f"{where}: {number[:40]!r} in {text[:40]!r}, expected a number") from None
    return numbers
