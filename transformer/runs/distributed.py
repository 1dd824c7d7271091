"""One training in several processes: what each must know of the others, by torch.distributed.

`torchrun` starts the processes and gives each its rank in its environment. All compute, each on a share of every
batch; only the first writes and prints. In a program that was started by itself every function here is the plain
thing: the share is the whole, the total is the number. No torch comes in before it is used, so refusals are quick.
"""

import gc
import hashlib
import json
import os
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from transformer.config import require
from transformer.errors import ConfigError, FailedElsewhereError, LostProcessError
from transformer.runs import console
from transformer.runs.signals import Terminated

if TYPE_CHECKING:
    from torch import Tensor, nn

OF_A_MACHINE = ("source", "threads")
"""Fields of a run's description that may differ between machines: where the data is, and processor threads."""

T = TypeVar("T")
Rows = TypeVar("Rows", bound="Tensor | Sequence[Any]")


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def check_single_process(command: str) -> None:
    """Refuse a command that knows nothing of other processes."""
    require(not is_launched(), f"{command} works in one process; start it without torchrun")


@contextmanager
def process_group() -> Iterator[None]:
    """Inside, the processes that torchrun started work as one, and all but the first are silent."""
    if not is_launched():
        yield
        return
    import torch
    import torch.distributed.nn  # now: imported later, its functions would keep the processes' group in their defaults
    from torch import distributed

    gpus, place = torch.cuda.device_count(), int(os.environ["LOCAL_RANK"])
    if place < gpus:
        torch.cuda.set_device(place)
    backend, env = "cpu:gloo,cuda:nccl" if gpus else "gloo", os.environ
    if env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"] and env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # torchrun's store outlives a restart (torch 2.13), and in it the addresses of those that are gone
        store = _group().PrefixStore(f"attempt-{env['TORCHELASTIC_RESTART_COUNT']}", _torchruns_store())
        distributed.init_process_group(backend, store=store, rank=int(env["RANK"]), world_size=int(env["WORLD_SIZE"]))
    else:  # several machines: each counts restarts for itself
        distributed.init_process_group(backend)
    with ExitStack() as silence:
        if not is_first_rank():
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, distributed.DistError) or "gloo" in str(error):
                message = "another process has ended; --resume goes on from the last checkpoint"
                raise LostProcessError(message) from error
            raise
    # Its threads end with it: one that is left when Python ends may abort the process. After an error it may
    # wait for a process that is gone, so there the system ends it.
    gc.collect()
    distributed.destroy_process_group()


def world_size() -> int:
    """Number of processes that work as one."""
    return _group().get_world_size() if _is_joined() else 1


def local_world_size() -> int:
    """Number of those on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if world_size() > 1 else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return _group().get_rank() if _is_joined() else 0


def is_first_rank() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def shard(rows: Rows) -> Rows:
    """The rows that are this process's to work on: each process's number of them is equal, or differs by one."""
    return rows if world_size() == 1 else rows[rank() :: world_size()]  # type: ignore[return-value]


def gather(part: list[Any]) -> list[Any]:
    """The whole list, in its order, once each process has worked on its `shard`; the parts are JSON."""
    parts = all_gather(part)
    rows: list[Any] = [None] * sum(map(len, parts))
    for i, each in enumerate(parts):
        rows[i :: len(parts)] = each
    return rows


def all_gather(document: Any) -> list[Any]:
    """What each process gives, in the order of the processes: JSON."""
    if world_size() == 1:
        return [document]
    import torch

    text = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    _group().all_gather(sizes, torch.tensor([len(text)]))
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
    padded[: len(text)] = text
    texts = [torch.empty_like(padded) for _ in sizes]
    _group().all_gather(texts, padded)
    return [json.loads(bytes(text[: int(size)].tolist())) for text, size in zip(texts, sizes, strict=True)]


def on_first_rank(task: Callable[[], T]) -> T:
    """Do something only in the first process. All get what it returns, which is JSON; where it fails, all fail."""
    if world_size() == 1:
        return task()
    answer, error = None, None
    if is_first_rank():
        try:
            answer = task()
        except Exception as problem:
            error = problem
    failed, answer = all_gather([error is not None, answer])[0]
    if error is not None:
        raise error
    if failed:
        raise FailedElsewhereError("the first process failed")
    return answer


def raise_together(task: Callable[[], T], *kinds: type[Exception]) -> T:
    """What the task returns here. Where it raises one of `kinds` in any process, all raise the first of these."""
    if world_size() == 1:
        return task()
    result, failure = None, None
    try:
        result = task()
    except kinds as error:
        failure = next(i for i, kind in enumerate(kinds) if isinstance(error, kind)), str(error)
    for kind, message in filter(None, all_gather(failure)):
        raise kinds[kind](message)
    return result  # type: ignore[return-value]


def check_same(document: Mapping[str, Any]) -> None:
    """Raise `ConfigError` in every process unless all have this document: what they are about to train, and with what.

    Python's and torch's versions are compared too, and not what may differ between machines, `OF_A_MACHINE`.
    """
    if world_size() == 1:
        return
    import torch

    versions = {"versions": {"python": platform.python_version(), "torch": torch.__version__}}
    first, *others = all_gather(dict(_fields({**versions, **document})))
    for process, theirs in enumerate(others, 1):
        different = [name for name in first | theirs if repr(first.get(name)) != repr(theirs.get(name))]
        if different:
            with suppress(RuntimeError):  # one that ends at once may do so before the others have read its document
                _group().barrier()
            name = min(different, key=lambda name: ("config" not in name, "fingerprint" not in name, name))
            raise ConfigError(
                f"process {process}: {name} is {theirs.get(name)!r}, expected {first.get(name)!r} as in process 0. "
                "Start all processes with the same data, settings and versions"
            )


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of nested JSON by its path; a long text as its SHA-256."""
    if isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            if key not in OF_A_MACHINE:
                yield from _fields(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str) and len(value) > 80:
        yield name, hashlib.sha256(value.encode()).hexdigest()
    else:
        yield name, value


def all_sum(*numbers: "Tensor") -> "Tensor":
    """Sums of scalars over all processes: (len(numbers),) float64."""
    import torch

    sums = torch.stack([in_float64(number.detach()) for number in numbers])
    _group().all_reduce(sums)
    return sums


def in_float64(tensor: "Tensor") -> "Tensor":
    """The numbers in float64; Apple's GPUs have none of it, so theirs come to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def all_max(number: int) -> int:
    """The largest of the numbers that the processes give."""
    if world_size() == 1:
        return number
    import torch

    numbers = torch.tensor(number)
    _group().all_reduce(numbers, _group().ReduceOp.MAX)
    return int(numbers)


def average_gradients(model: "nn.Module", loss: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The loss; from now on its gradients in the model's parameters are the mean over all processes."""
    if world_size() == 1:
        return loss
    from torch import nn

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Any) -> Any:
            return loss(batch)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the setting's new name is too new
        return nn.parallel.DistributedDataParallel(Loss(), broadcast_buffers=False)


def launch_id() -> str | None:
    """A name of the torchrun that started this process, the same after it has restarted it; None without one."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # in LAUNCH/attempt_N/RANK/
    return str(Path(error_file).parents[2]) if error_file else None


@contextmanager
def resend_dropped_signals() -> Iterator[None]:
    """A signal that comes where Python drops exceptions, as in h5py's weak references, is sent again a little later."""
    signals = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM, Terminated: signal.SIGTERM}
    before = sys.unraisablehook

    def heed(dropped: "sys.UnraisableHookArgs") -> None:
        if dropped.exc_type not in signals:
            before(dropped)
            return
        left = threading.Event()  # this hook, where an exception would be dropped too

        def again() -> None:
            left.wait()
            time.sleep(0.05)
            signal.raise_signal(signals[dropped.exc_type])

        threading.Thread(target=again, daemon=True).start()
        left.set()

    sys.unraisablehook = heed
    try:
        yield
    finally:
        sys.unraisablehook = before


def is_restarted() -> bool:
    """Whether torchrun restarted this process after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def tell_once(line: str) -> None:
    """Print a line to standard error, unless another process of the same torchrun has printed it already."""
    if not is_launched() or _says_first(line):
        console.tell(line)


def _says_first(line: str) -> bool:
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return env["RANK"] == "0"
    try:
        return _torchruns_store().add(f"said/{env['TORCHELASTIC_RESTART_COUNT']}/{line}", 1) == 1
    except _group().DistError:  # torchrun itself is gone
        return env["RANK"] == "0"


def _torchruns_store() -> Any:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return _group().TCPStore(address, port, is_master=False, timeout=timedelta(minutes=5))


def _is_joined() -> bool:
    return "torch" in sys.modules and _group().is_available() and _group().is_initialized()


def _group() -> Any:
    from torch import distributed

    return distributed
