"""`dt push`: lists what of a run would be sent to the Hugging Face hub, asks, and sends it. No torch."""

import sys

from dt.cli.options import Push
from dt.errors import HubError
from dt.sharing.push import Package, checked_name, package_run, send
from envs.datasets.fetching import LOGIN, access_token
from transformer.errors import ConfigError
from transformer.runs.console import show, tell


def run(options: Push) -> None:
    """Send a run; nothing is sent without the user's word."""
    name = checked_name(options.repository)
    package = package_run(options.run, name, options.checkpoint)
    _list(package)
    if not options.yes and not sys.stdin.isatty():
        raise ConfigError("nothing was sent: dt push asks on a terminal; --yes sends without asking")
    if access_token() is None:
        raise HubError(f"nothing was sent: no access token of the Hugging Face hub. {LOGIN[0].upper()}{LOGIN[1:]}")
    if not options.yes and not _agreed(name, options.private):
        tell("nothing was sent")
        return
    commit = send(package, name, options.private)
    show(f"hf://{name}@{commit}")
    tell(f"ask it        dt evaluate hf://{name} --download")


def _list(package: Package) -> None:
    sizes = package.sizes()
    for path, size in sizes.items():
        show(f"{size:>12,}  {path}")
    show(f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files")
    for what in package.left_out:
        tell(f"not sent      {what}")


def _agreed(name: str, private: bool) -> bool:
    """Whether the user says yes on the terminal."""
    tell(f"Send this to hf://{name}, {'for its owner only' if private else 'where everybody can read it'}? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
