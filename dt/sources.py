"""What a command's options say of data and worlds, read and checked before torch comes in: so a refusal is quick."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.datasets import Dataset, load
from envs.readers import declared_spaces, spaces_from_json
from envs.selection import join
from envs.worlds import EnvironmentSpec, import_environments
from transformer.checkpoint import SCHEMA, CheckpointError, checkpoints, read_json, require_run
from transformer.config import ConfigError
from transformer.places import check_place

if TYPE_CHECKING:
    from dt.cli import Evaluate, Import, Train, World, WorldSettings


def training_data(options: "Train") -> tuple[Dataset, EnvironmentSpec | None]:
    """The datasets that `dt train` is given, as one, and the world that it is given beside them."""
    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output, the run's folder")
    environment = environment_of(options.world)
    spaces = declared(options.spaces, options.output if options.resume else None)
    if not options.dataset:
        raise ConfigError("no dataset named")
    fraction = options.fraction
    if options.resume and options.output and not fraction:
        fraction = _recorded_fraction(options.output, len(options.dataset))
    how: dict[str, Any] = {"download": options.download, "skip_bad_episodes": options.skip_bad_episodes}
    parts = [load(one, spaces=spaces, environment=environment, **how) for one in options.dataset]
    return join(parts, fraction, options.config.training.seed), environment


def check_request(options: "Evaluate") -> EnvironmentSpec | None:
    """Refuse what `dt evaluate` cannot write and what is no run; the world that it is given."""
    _check_places(options)
    environment = environment_of(options.world)
    require_run(options.run)
    check_description(read_json(options.run / "run.json"), options.run / "run.json")
    if not checkpoints(options.run):
        raise CheckpointError(f"{options.run}: no checkpoint in it")
    return environment


def _check_places(options: "Evaluate") -> None:
    """Refuse what could not be written, before hours are played for it."""
    for path in (options.json, options.plot):
        if path is not None:
            check_place(path, picture=path == options.plot)
    if options.video is not None and options.video.exists() and not options.video.is_dir():
        raise ConfigError(f"{options.video}: is a file, a folder is meant")


def check_description(document: Any, path: Path) -> None:
    """Raise `CheckpointError` unless this is the run.json of a Decision Transformer, as this version writes it."""
    if not isinstance(document, dict) or document.get("kind") != "decision-transformer":
        raise CheckpointError(f"{path}: not a Decision Transformer's run")
    if document.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: schema {document.get('schema')}, this version reads {SCHEMA}")


def import_data(options: "Import") -> None:
    """`dt import`: any data as a Minari dataset."""
    from envs.writer import new_folder, write_minari

    new_folder(options.dataset_id)  # refused before anything is read
    environment, spaces = environment_of(options.world), declared(options.spaces)
    how: dict[str, Any] = {"download": options.download, "skip_bad_episodes": options.skip_bad_episodes}
    dataset = load(options.source, spaces=spaces, environment=environment, **how)
    for note in dataset.notes:
        print(f"note          {note}", file=sys.stderr)
    folder = write_minari(dataset, options.dataset_id)
    print(f"{options.dataset_id}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, in {folder}")


def environment_of(world: "World") -> EnvironmentSpec | None:
    """The world that the options name, None where they name none."""
    kwargs = world_arguments(world)
    if world.environment is None:
        if kwargs:
            raise ConfigError("--environment-kwargs needs --environment")
        return None
    return EnvironmentSpec(world.environment, kwargs)


def world_arguments(world: "WorldSettings") -> dict[str, Any]:
    """What the options say a world is made with; the module that they name is imported first."""
    if world.import_module:
        import_environments(world.import_module)
    try:
        kwargs = json.loads(world.environment_kwargs or "{}")
    except ValueError:
        raise ConfigError(f"--environment-kwargs: not JSON: {world.environment_kwargs}") from None
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--environment-kwargs: not a JSON object: {world.environment_kwargs}")
    return kwargs


def declared(spaces: str | None, resumed: Path | None = None) -> dict[str, Any]:
    """The spaces that the user declares, or those that a run to resume was begun with."""
    if spaces is not None:
        return spaces_from_json(spaces)
    if resumed is None:
        return {}
    return declared_spaces(f"{resumed}/run.json", read_json(resumed / "run.json"))


def _recorded_fraction(resumed: Path, datasets: int) -> tuple[float, ...]:
    """The share of each dataset that a run to resume was begun with; none if it was of another number of them."""
    document = read_json(resumed / "run.json")
    try:
        fraction = tuple(float(part["fraction"]) for part in document["dataset"].get("parts", ()))
        return fraction if len(fraction) == datasets else ()
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"{resumed}/run.json: does not say what data it is of") from None
