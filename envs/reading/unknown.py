"""What is said of files and folders that are not read: for each kind a way that works for this very one."""

import json
import os
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from envs.reading.readers import check_is_file

PACKED = {
    ".gz": "gunzip -k",
    ".bz2": "bunzip2 -k",
    ".xz": "unxz -k",
    ".zst": "unzstd",
    ".zip": "unzip",
    ".tar": "tar -xf",
    ".tgz": "tar -xf",
    ".7z": "7z x",
}
"""Suffixes of compressed files, and what unpacks them."""

PICKLES = (".pkl", ".pickle", ".p", ".pck")
"""Suffixes of pickles."""

MOST_FILES = 2000
"""Files of an unknown folder that are looked at."""

MOST_FOLDERS, MOST_DEPTH = 20, 3
"""Folders of an unknown folder that are looked into, and how deep."""

MOST_JSON = 1 << 26
"""Characters of a JSON file that is opened to see how it nests."""

PYTHON = "from Python: envs.from_arrays(observations=..., actions=..., rewards=..., terminated=...)"
"""The way that is open to everything that Python can open."""


CONTENTS = {
    b"\x1f\x8b": ("gzip", None),
    b"PAR1": ("Parquet", ".parquet"),
    b"\x89HDF\r\n\x1a\n": ("HDF5", ".hdf5"),
    b"PK\x03\x04": ("a zip archive, as .npz and .xlsx are", None),
    b"\x93NUMPY": (".npy", ".npy"),
    b"ARROW1": ("Arrow", ".arrow"),
}
"""What files begin with, whose content it is, and the suffix of that."""


def way_for_content(path: Path) -> str:
    """What to do about a file that is not what its suffix says, as an addition to a refusal; "" if nothing is known."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        head = file.read(1 << 12)
    for mark, (kind, suffix) in CONTENTS.items():
        if head.startswith(mark) and path.suffix.lower() != suffix and (suffix or path.suffix.lower() != ".npz"):
            return f"; its content is {kind}: {f'name it {path.stem}{suffix}' if suffix else 'unpack or rename it'}"
    is_text = (
        head and path.suffix.lower() in (".parquet", ".npz", ".hdf5", ".h5") and head.isascii() and b"\0" not in head
    )
    return f"; its content is text: if it is a table, name it {path.stem}.csv" if is_text else ""


def way_for_file(path: Path) -> str:
    """What to do about a file of a kind that is not read."""
    check_is_file(path)
    suffix, name, table = path.suffix.lower(), json.dumps(str(path)), json.dumps(str(path.with_suffix(".parquet")))
    if suffix in PACKED:
        unpack = PACKED[".tgz"] if path.name.lower().endswith((".tar.gz", ".tar.xz", ".tar.bz2")) else PACKED[suffix]
        return f"compressed; unpack it first: {unpack} {shlex.quote(str(path))}"
    if suffix in PICKLES:
        return _way_for_pickle(path)
    if suffix in (".pt", ".pth", ".ckpt"):
        opened = f"torch.load({name}, weights_only=True).items()"
        arrays = f"envs.from_arrays(**{{k: v.numpy() for k, v in {opened}}})"
        write = f"envs.write_minari({arrays}, {_dataset_id(path)})"
        return f"torch's; if it holds plain tensors by name: {_command('import torch, envs', write)}"
    if suffix == ".npy":
        return _way_for_npy(path)
    if suffix in (".tab", ".dat"):
        return f"if it is a table, name it {path.with_suffix('.csv').name}: commas, semicolons and tabs are known"
    if suffix in (".jsonl", ".ndjson", ".json"):
        imports = "import json, pyarrow as a, pyarrow.json as j, pyarrow.parquet as p"
        return f"as a table: {_command(imports, f'p.write_table({_json_table(path)}, {table})')}"
    if suffix in (".feather", ".arrow", ".ipc"):
        stream = f"a.ipc.open_stream({name}).read_all()"
        opened = f"f.read_table({name})" if _begins_with(path, b"ARROW1") else stream
        imports = "import pyarrow as a, pyarrow.feather as f, pyarrow.parquet as p"
        return f"as a table: {_command(imports, f'p.write_table({opened}, {table})')}"
    if suffix in (".xlsx", ".xls", ".ods"):
        return f"a spreadsheet: save it as {path.with_suffix('.csv').name}"
    if suffix == ".mat":
        return f"{PYTHON}, with the arrays of scipy.io.loadmat({name})"
    if suffix.startswith(".tfrecord") or ".tfrecord" in path.name:
        return RLDS
    if suffix in (".bag", ".mcap", ".db3"):
        return "a robot's log: export its topics as .csv, with a row for each step"
    return f"{PYTHON}, or envs.from_episodes"


RLDS = (
    "TensorFlow's: write its steps as a table (.parquet) with is_first, is_last and is_terminal, which is read, or "
    "from Python: envs.from_episodes"
)
"""What to do about TFDS."""


def way_for_folder(folder: Path, depth: int = 0) -> str | None:
    """What to do about a folder of a kind that is not read; None where it holds nothing that is known.

    depth: how many folders of it lie above this one.
    """
    name, table = json.dumps(str(folder)), json.dumps(f"{folder}.parquet")
    there = set(islice((entry.name for entry in os.scandir(folder)), MOST_FILES))
    if there & {".zgroup", ".zarray", "zarr.json", ".zmetadata"}:
        return f"a zarr store; {PYTHON}, with the arrays of zarr.open({name})"
    if there & {"state.json", "dataset_dict.json"} or ("dataset_info.json" in there and _any(there, ".arrow")):
        part = '["train"]' if "dataset_dict.json" in there else ""
        write = f"datasets.load_from_disk({name}){part}.to_parquet({table})"
        return f"Hugging Face's; as a table: {_command('import datasets', write)}"
    if "features.json" in there or _any(there, ".tfrecord"):
        return RLDS
    if "meta.json" in there or _any(there, ".memmap"):
        return f"TensorDict's; {PYTHON}, with the arrays of TensorDict.load_memmap({name})"
    if _any(there, ".npy"):
        return f"{PYTHON}, with the arrays of its .npy files"
    if files := list(islice(_flat_below(folder), 3)):
        return f"name a file of it: {' '.join(map(str, files))}"
    inside = sorted(each for each in there if (folder / each).is_dir() and not (folder / each).is_symlink())
    ways = ((each, way_for_folder(folder / each, depth + 1)) for each in inside[:MOST_FOLDERS] if depth < MOST_DEPTH)
    return next((f"{folder / each} is {way}" for each, way in ways if way), None)


def _flat_below(folder: Path) -> Iterator[Path]:
    """Files below a folder that are read by their suffix."""
    looked = 0
    for inside, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(inside) / name for name in sorted(names[:MOST_FILES]) if _is_data(Path(name)))
        looked += len(names)
        if looked > MOST_FILES:
            return


def _is_data(path: Path) -> bool:
    """Whether a file is read by its suffix; a text is more often a licence than a table."""
    from envs.reading.flat_files import is_flat

    return is_flat(path) and path.suffix != ".txt"


def _way_for_pickle(path: Path) -> str:
    """A pickle may hold anything; its first bytes say what kind of thing, and nothing of it is loaded."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    opened = f'pickle.load(open({json.dumps(str(path))}, "rb"))'
    if b"stable_baselines3" in head:
        read = f"envs.from_replay_buffer({opened})"
    elif head[11 if head[2:3] == b"\x95" else 2 :].startswith(b"}"):  # a dictionary, behind the protocol and the frame
        read = f"envs.from_arrays(**{opened})"
    else:
        read = f"envs.from_episodes({opened})"
    command = _command("import pickle, envs", f"envs.write_minari({read}, {_dataset_id(path)})")
    return f"a pickle, which may run any code as it is opened; if you trust it: {command}"


def _way_for_npy(path: Path) -> str:
    """An array may hold objects, which are a pickle, or records, which are a table; its header says so."""
    from numpy.lib import format as npy

    name, table = json.dumps(str(path)), json.dumps(str(path.with_suffix(".parquet")))
    try:
        with path.open("rb") as file:
            read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
            shape, _, kind = read(file)
    except (ValueError, OSError):
        return "it cannot be read as .npy"
    if kind.hasobject:
        opened = f"numpy.load({name}, allow_pickle=True)"
        read_as = f"envs.from_episodes({opened})" if shape else f"envs.from_arrays(**{opened}.item())"
        command = _command("import numpy, envs", f"envs.write_minari({read_as}, {_dataset_id(path)})")
        return f"objects, which are a pickle and may run any code as they are opened; if you trust it: {command}"
    if kind.names:
        columns = "{name: rows[name].tolist() for name in rows.dtype.names}"
        write = f"rows = numpy.load({name}); p.write_table(a.table({columns}), {table})"
        return f"as a table: {_command('import numpy, pyarrow as a, pyarrow.parquet as p', write)}"
    return f"one array: name it to envs.from_arrays, such as observations=numpy.load({name}), with the others"


def way_for_objects(path: Path) -> str:
    """What to do about an .npz file with arrays of objects: most hold an array for each episode."""
    opened = f"d = numpy.load({json.dumps(str(path))}, allow_pickle=True)"
    read = "envs.from_episodes(dict(zip(d, each)) for each in zip(*d.values()))"
    command = _command("import numpy, envs", f"{opened}; envs.write_minari({read}, {_dataset_id(path)})")
    return f"if you trust it, and each of its arrays has an entry for each episode: {command}"


def command_for_episodes(path: Path, parts: str) -> str:
    """The command that reads an HDF5 file with a group for each episode. parts: a mapping of arrays of a group g."""
    opened = f"f = h5py.File({json.dumps(str(path))})"
    read = f"envs.from_episodes({parts} for g in f.values())"
    return _command("import h5py, envs", f"{opened}; envs.write_minari({read}, {_dataset_id(path)})")


def _json_table(path: Path) -> str:
    """The expression that makes a table of JSON: of lines, of rows, of columns, or of episodes of rows."""
    name = json.dumps(str(path))
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_JSON + 1)
        document = json.loads(text) if len(text) <= MOST_JSON else None
    except (ValueError, RecursionError):  # many objects, a line each, or no JSON
        document = None
    if document is None:
        rows = _begins_with(path, b"[")
        return f"a.Table.from_pylist(json.load(open({name})))" if rows else f"j.read_json({name})"
    return _table_of(document, f"json.load(open({name}))")


def _table_of(document: Any, opened: str) -> str:
    """The expression that makes a table of a JSON document. opened: the expression that opens it."""
    if isinstance(document, dict):
        parts = list(document.values())
        if len(parts) > 1 and all(isinstance(part, dict) for part in parts):  # episodes or rows by their names
            return _table_of(parts, f"list({opened}.values())")
        lists = {name: part for name, part in document.items() if isinstance(part, list)}
        nested = {name: part for name, part in document.items() if isinstance(part, dict)}
        if len(lists) == 1 and _is_rows(*lists.values()):
            (name,) = lists
            return _table_of(lists[name], f"{opened}[{json.dumps(name)}]")
        if not lists and len(nested) == 1:
            (name,) = nested
            return _table_of(nested[name], f"{opened}[{json.dumps(name)}]")
        columns = "{k: v for k, v in " + opened + ".items() if isinstance(v, list)}"
        return f"a.table({opened if len(lists) == len(document) else columns})"
    first = document[0] if isinstance(document, list) and document else None
    if isinstance(first, list) and _is_rows(first):
        return f"a.Table.from_pylist([{{'episode': i, **row}} for i, rows in enumerate({opened}) for row in rows])"
    steps = [name for name, part in first.items() if _is_rows(part)] if isinstance(first, dict) else []
    if len(steps) == 1:
        rows = f"for i, e in enumerate({opened}) for row in e[{json.dumps(steps[0])}]"
        return f"a.Table.from_pylist([{{'episode': i, **row}} {rows}])"
    return f"a.Table.from_pylist({opened})"


def _is_rows(part: Any) -> bool:
    """Whether a part of a JSON document is a list of records, or of lists of records."""
    while isinstance(part, list) and part:
        part = part[0]
        if isinstance(part, dict):
            return True
    return False


def _command(imports: str, statement: str) -> str:
    """A command for a shell, whatever signs are in the names of files."""
    return f"python -c {shlex.quote(f'{imports}; {statement}')}"


def _dataset_id(path: Path) -> str:
    """An id for the dataset of a file, as Python writes it: its name, with a version."""
    stem = "".join(sign if sign.isascii() and sign.isalnum() else "-" for sign in path.stem).strip("-")
    return json.dumps(f"mine/{stem or 'data'}-v0")


def _begins_with(path: Path, sign: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(sign)


def _any(names: set[str], part: str) -> bool:
    return any(part in name for name in names)
