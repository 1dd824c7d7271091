"""Folders filled under a name of their own and renamed when complete: none is left behind, whatever signal comes."""

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

try:
    import fcntl
except ImportError:  # Windows: there nothing that was left behind is known to be anyone's
    fcntl = None  # type: ignore[assignment]


@contextmanager
def temporary_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A folder to fill; what was not renamed is gone afterwards, also where SIGTERM ends the process.

    What killed processes left under this prefix is taken away first; one that lives holds its folder by a lock.
    """
    _clear(parent, prefix)
    with _ended_by_sigterm():
        folder, held = _new(parent, prefix)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)


def _new(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new folder, and the descriptor by which it is held."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        held = os.open(folder if fcntl else os.devnull, os.O_RDONLY)
        with suppress(OSError):  # a file system that knows no locks
            if fcntl:
                fcntl.flock(held, fcntl.LOCK_EX)
        if folder.exists():
            return folder, held
        os.close(held)  # another process saw it before it was held, and took it for one that was left


def _clear(parent: Path, prefix: str) -> None:
    """Remove the folders that no process holds."""
    for folder in parent.glob(f"{prefix}*") if fcntl else ():
        with suppress(OSError):  # held, or gone, or no folder
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, if nothing else handles it, ends the process as an exception does: what is open is closed."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()  # only it gets signals
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
