"""One environment in its own process, with a deadline for each request; `Environments` uses it with `env_timeout`."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium

import envs
from envs.errors import EnvError
from envs.simulate.local_env import LocalEnv, raised

STARTING_SECONDS = 60.0
"""What a new process may take to import and make its environment, before the timeout of its first command counts."""

LEAVING_SECONDS = 2.0
"""What a process may take to close its environment before it is killed."""


def _context() -> Any:
    """Processes begin without this one's threads and open files: a server imports what each needs once, and forks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "envs.simulate.process_env"])
    return context


HOME = str(Path(__file__).parents[2])
"""Where this package lies."""

PATH_VARIABLES = ("PYTHONSAFEPATH", "PYTHONPATH")


@contextlib.contextmanager
def _safe_paths() -> Iterator[None]:
    """Inside, a new interpreter imports nothing from the working folder, and `envs` is this package.

    `multiprocessing` starts its servers by `python -c`, which looks for every module in the working folder first.
    """
    before = {name: os.environ.get(name) for name in PATH_VARIABLES}
    paths = [HOME, before["PYTHONPATH"]] if before["PYTHONPATH"] else [HOME]
    os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


class ProcessEnv:
    """A `LocalEnv` in another process. One that does not answer in `timeout` seconds is killed; a reset restarts it.

    make must be picklable, as `EnvironmentSpec.maker` is. What goes between the processes is pickled, by this very
    program, for itself.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]], timeout: float):
        self._make, self._timeout = make, timeout
        self._process: Any = None
        self._starting = False  # whether the process has not said yet that its environment is made

    def send(self, command: str, *arguments: Any) -> None:
        """As `LocalEnv.send`; the process begins at once, in `recv` it is waited for."""
        if self._process is None:
            self._begin()
        self._deadline = time.monotonic() + self._timeout
        with contextlib.suppress(OSError):  # it died between two requests, and that is what `recv` will say
            self._connection.send((command, arguments))

    def recv(self) -> Any:
        """What the process answers; a failure there, its silence and its end are `EnvError`s."""
        if self._starting:
            ready, failure = self._received(self._deadline + STARTING_SECONDS)
            self._starting = False
            if failure is not None:
                self._kill()  # what was asked is still on its way to it
                raise failure
            self._deadline = ready + self._timeout  # by the clock that all processes share
        answer = self._received(self._deadline)
        if isinstance(answer, EnvError):
            raise answer
        return answer

    def _received(self, deadline: float) -> Any:
        """The next thing that the process sends, until this time."""
        try:
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                self._kill()
                raise EnvError(f"no answer within {self._timeout:g} s, so its process was ended")
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(LEAVING_SECONDS)
            code = self._process.exitcode
            self._kill()
            how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit status {code}"
            raise EnvError(f"its process ended ({how})") from None
        except EnvError:
            raise
        except Exception as error:  # an answer of a kind that only the other process knows
            self._kill()
            raise EnvError(f"its answer cannot be read here: {raised(error)}") from error

    def close(self) -> None:
        """Ask the process to close its environment and end; `join` waits for it."""
        if self._process is not None:
            self._deadline = time.monotonic() + LEAVING_SECONDS
            with contextlib.suppress(OSError):
                self._connection.send(("close", ()))

    def join(self) -> None:
        """The process is over, of itself or killed."""
        if self._process is not None:
            self._process.join(max(0.0, self._deadline - time.monotonic()))
            self._kill()

    def _begin(self) -> None:
        context = _context()
        self._connection, theirs = context.Pipe()
        paths = {name: os.environ.get(name) for name in PATH_VARIABLES}
        process = context.Process(target=_serve, args=(theirs, self._make, paths, [*envs.__path__]), daemon=True)
        try:
            with _safe_paths():
                process.start()
        except Exception as error:  # what makes it cannot be pickled, which any type may say
            raise EnvError(f"cannot be played in a process of its own: {raised(error)}") from error
        finally:
            theirs.close()
        self._process, self._starting = process, True

    def _kill(self) -> None:
        """The process and whatever its environment has begun."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()
        self._process = None


def _serve(
    connection: Connection,
    make: Callable[[], gymnasium.Env[Any, Any]],
    paths: Mapping[str, str | None],
    packages: list[str],
) -> None:
    """The other process: answer what is asked, until it is closed or nothing is there to ask.

    paths: the parent's environment variables of these names, for programs that the environment starts.
    packages: where the parent finds modules of `envs`, also of a user's package of this name.
    """
    _set_environment(paths)
    envs.__path__ += [folder for folder in packages if folder not in envs.__path__]
    os.setsid()  # Ctrl-C is for the one who asks; and what the environment begins can be ended with this process
    _end_with_the_parent()
    env = LocalEnv(make)
    with contextlib.suppress(EOFError, OSError):
        made = _answer(env, "info")
        connection.send((time.monotonic(), made if isinstance(made, EnvError) else None))
        while (request := connection.recv())[0] != "close":
            answer = _answer(env, request[0], *request[1])
            try:
                connection.send(answer)
            except OSError:
                raise
            except Exception as error:  # an environment's answer may hold what cannot be pickled
                connection.send(EnvError(f"its answer cannot leave its process: {raised(error)}"))
    env.close()


def _answer(env: LocalEnv, command: str, *arguments: Any) -> Any:
    """What an environment answers, or its failure."""
    env.send(command, *arguments)
    try:
        return env.recv()
    except EnvError as error:
        return error


def _end_with_the_parent() -> None:
    """Whatever the environment is doing, this process does not outlive the one who asks, even killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":  # also where the environment never lets another thread run
        death_signal = 1  # PR_SET_PDEATHSIG; the parent is the server, which ends with the process that started it
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)
        alive = getattr(multiprocessing.forkserver, "_forkserver")._forkserver_alive_fd  # noqa: B009
        if alive is not None:
            os.close(alive)  # the server notices that by this pipe's end, so no child may hold it
