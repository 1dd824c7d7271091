"""The command that trains a run again, from what its run.json says."""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dt.config import Config
from dt.learning.description import environment_in, reading_in
from envs.reading.flat_files import is_flat


def training_command(description: dict[str, Any]) -> str:
    """`dt train` with every setting that differs from its default, quoted for a shell.

    description: a run.json, as `read_description` returns it. A run of arrays from Python names its dataset only.
    """
    data = description["dataset"]
    parts = data.get("parts") or [{"name": data["name"], "source": None, "fraction": 1.0}]
    sources = [part["source"] or part["name"] for part in parts]
    words = ["dt", "train", *sources]
    if any(part["fraction"] != 1 for part in parts):
        words += ["--fraction", *(f"{part['fraction']:g}" for part in parts)]
    words += _reading_words(parts[0])
    if all(is_flat(Path(source)) for source in sources):  # other formats name their environment themselves
        words += _environment_words(description)
    return shlex.join([*words, *changed_words(Config.from_json(description["config"]))])


def changed_words(config: Config) -> Iterator[str]:
    """The options of the settings that differ from their defaults."""
    for part in dataclasses.fields(config):
        settings, usual = getattr(config, part.name), getattr(Config(), part.name)
        for each in dataclasses.fields(settings):
            value = getattr(settings, each.name)
            if value == getattr(usual, each.name):
                continue
            flag = each.name.replace("_", "-")
            if isinstance(value, bool):
                yield f"--{flag}" if value else f"--no-{flag}"
            else:
                yield f"--{flag}"
                yield from map(str, value) if isinstance(value, tuple) else [str(value)]


def _reading_words(part: dict[str, Any]) -> Iterator[str]:
    """The options of how a source was read."""
    reading = reading_in(part)
    if reading.columns:
        yield "--columns"
        yield from (f"{field}={','.join(names)}" for field, names in reading.columns.items())
    if reading.episode_length is not None:
        yield from ("--episode-length", str(reading.episode_length))
    for name in ("file_is_episode", "last_row_is_final"):
        if getattr(reading, name):
            yield f"--{name.replace('_', '-')}"
    if reading.leave_out:
        yield from ("--leave-out", *reading.leave_out)
    if reading.reward is not None:
        yield from ("--reward", reading.reward)


def _environment_words(description: dict[str, Any]) -> Iterator[str]:
    """The options of the environment."""
    spec = environment_in(description)
    if spec is None:
        return
    yield from ("--environment", spec.id)
    if spec.kwargs:
        yield from ("--environment-kwargs", json.dumps(dict(spec.kwargs)))
    if spec.max_episode_steps is not None:
        yield from ("--max-episode-steps", str(spec.max_episode_steps))
