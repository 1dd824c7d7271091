"""What a command's options say of data and worlds, read and checked before torch comes in: so a refusal is quick."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt.description import columns_in, read_description
from envs.datasets import Dataset, load
from envs.fields import Columns, named_columns
from envs.readers import READERS, declared_spaces, is_flat, spaces_from_json
from envs.selection import join
from envs.worlds import EnvironmentSpec, import_environments
from transformer.checkpoint import CheckpointError, checkpoints, require_run
from transformer.config import ConfigError
from transformer.console import show, tell
from transformer.places import check_place, check_spared

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
    fraction, columns = options.fraction, columns_for(options.columns, options.dataset)
    recorded = _recorded_parts(options.output, len(options.dataset)) if options.resume and options.output else []
    if recorded and not fraction:
        fraction = tuple(share for share, _ in recorded)
    if recorded and not options.columns:
        columns = [each for _, each in recorded]
    how: dict[str, Any] = {"download": options.download, "skip_bad_episodes": options.skip_bad_episodes}
    how |= {"spaces": spaces, "environment": environment}
    parts = [load(one, columns=each, **how) for one, each in zip(options.dataset, columns, strict=True)]
    return join(parts, fraction, options.config.training.seed), environment


def check_request(options: "Evaluate") -> EnvironmentSpec | None:
    """Refuse what `dt evaluate` cannot write and what is no run; the world that it is given."""
    _check_places(options)
    environment = environment_of(options.world)
    require_run(options.run)
    read_description(options.run / "run.json")
    if not checkpoints(options.run):
        raise CheckpointError(f"{options.run}: no checkpoint in it")
    return environment


def _check_places(options: "Evaluate") -> None:
    """Refuse what could not be written, before hours are played for it."""
    for path in (options.json, options.plot):
        if path is not None:
            check_place(path, picture=path == options.plot)
    if options.video is not None:
        if options.video.exists() and not options.video.is_dir():
            raise ConfigError(f"{options.video}: is a file, a folder is meant")
        check_spared(options.video)


def import_data(options: "Import") -> None:
    """`dt import`: any data as a Minari dataset."""
    from envs.writer import new_folder, write_minari

    new_folder(options.dataset_id)  # refused before anything is read
    environment, spaces = environment_of(options.world), declared(options.spaces)
    how: dict[str, Any] = {"download": options.download, "skip_bad_episodes": options.skip_bad_episodes}
    (how["columns"],) = columns_for(options.columns, [options.source])
    dataset = load(options.source, spaces=spaces, environment=environment, **how)
    for note in dataset.notes:
        tell(f"note          {note}")
    folder = write_minari(dataset, options.dataset_id)
    show(f"{options.dataset_id}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, in {folder}")


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
    except (ValueError, RecursionError):
        raise ConfigError(f"--environment-kwargs: not JSON: {str(world.environment_kwargs)[:80]}") from None
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--environment-kwargs: not a JSON object: {str(world.environment_kwargs)[:80]}")
    return kwargs


def declared(spaces: str | None, resumed: Path | None = None) -> dict[str, Any]:
    """The spaces that the user declares, or those that a run to resume was begun with."""
    if spaces is not None:
        return spaces_from_json(spaces)
    if resumed is None:
        return {}
    return declared_spaces(f"{resumed}/run.json", read_description(resumed / "run.json"))


def columns_for(given: Sequence[str], sources: Sequence[str]) -> list[Columns]:
    """What --columns says, for each dataset: a Minari dataset beside flat files goes by its own names."""
    pairs = [each.partition("=") for each in given]
    for text, (field, sign, names) in zip(given, pairs, strict=True):
        if not (field and sign and names):
            raise ConfigError(f"--columns: {text!r}, expected FIELD=COLUMN or FIELD=COLUMN,COLUMN,...")
    if twice := [field for field, _, _ in pairs if [other for other, _, _ in pairs].count(field) > 1]:
        raise ConfigError(f"--columns: {twice[0]} twice; several columns are FIELD=COLUMN,COLUMN,...")
    columns = named_columns({field: names.split(",") for field, _, names in pairs})
    if columns and not any(is_flat(Path(source)) for source in sources):
        raise ConfigError(f"--columns is for files ({', '.join(READERS)}), and {' '.join(sources)} is none")
    return [columns if is_flat(Path(source)) else {} for source in sources]


def _recorded_parts(resumed: Path, datasets: int) -> list[tuple[float, Columns]]:
    """Share and columns of each dataset that a run to resume was begun with; none if it was of another number."""
    parts = read_description(resumed / "run.json")["dataset"].get("parts", ())
    return [(part["fraction"], columns_in(part)) for part in parts] if len(parts) == datasets else []
