"""Files and folders written atomically, and JSON that anyone may have written.

Every write goes one way: under a temporary name, each file and the folder flushed to the disk, then one rename, then
the folder above flushed.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformer.config import type_error
from transformer.errors import CheckpointError

MOST_JSON = 64 << 20
"""Bytes of a JSON file: the largest that are known, tokenizers of 250,000 subwords, have a third."""


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically."""
    replace_text(path, json_text(document))


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or does not exist.

    It is written under a new name that cannot be guessed, so a link that waits there is never followed.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp makes what only its owner can read
        _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written, {os_reason(error)}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def os_reason(error: Exception) -> str:
    """Why a file could not be written, in words; that the disk is full is said as such."""
    text = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
    full = any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT))
    return f"the disk is full ({text})" if full else text


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file; one that is missing, broken or no file, or not of this kind, raises `CheckpointError`."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, a device may never end
            raise ValueError("not a file")
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"{path.stat().st_size} bytes, expected at most {MOST_JSON}")
        document = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if wrong := type_error(document, kind, "" if isinstance(document, dict) else "it"):
        raise CheckpointError(f"{path}: {wrong}")
    return document


def parse_json(text: str) -> Any:
    """What a JSON text holds. Broken JSON, also one that nests too deeply, raises `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_folder(path: Path) -> None:
    """Make a folder and those above it; they last through a loss of power."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def check_new(folder: Path, advice: str = "") -> None:
    """Raise `CheckpointError` where anything already is, with what to do instead; an empty folder is nothing."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already{advice and f'; {advice}'}")


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, which appears complete or not at all; refused where anything already is."""
    check_new(final)
    make_folder(final.parent)
    with appearing_folder(final) as temporary:
        yield temporary


@contextmanager
def appearing_folder(final: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; on success it takes its final name with all its content on disk."""
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=final.parent))
    try:
        yield temporary
        for path in temporary.iterdir():
            if path.is_file():  # a folder in it has seen to its own
                path.chmod(0o666 & ~_umask())  # mkdtemp and safetensors make what only their owner can read
                _sync(path)
        temporary.chmod(0o777 & ~_umask())
        _sync(temporary)
        put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(folder: Path, final: Path) -> None:
    """Give a folder its final name, once its content is on the disk; the name lasts through a loss of power."""
    if final.exists():  # a damaged one that a resume passed over, or an empty folder
        remove_folder(final)
    folder.rename(final)
    _sync(final.parent)


def remove_folder(checkpoint: Path) -> None:
    """Remove a folder; cut short, this never leaves half of it under its name."""
    doomed = checkpoint.with_name(f".removing-{checkpoint.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if os.name == "nt":  # Windows flushes only what is open for writing, and no folders
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The permissions that a new file is not given."""
    os.umask(mask := os.umask(0))
    return mask


def json_text(document: Any) -> str:
    """A document as this package writes JSON."""
    return json.dumps(document, indent=1) + "\n"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; `CheckpointError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
