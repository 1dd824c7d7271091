"""What a command's options say of data and worlds, read and checked before torch comes in: so a refusal is quick."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dt.description import columns_in, read_description
from envs.datasets import Dataset, load
from envs.fields import Columns, named_columns
from envs.readers import READERS, declared_spaces, is_flat, spaces_from_json
from envs.scores import reference_in
from envs.selection import join
from envs.worlds import EnvironmentSpec, check_spaces, import_environments
from transformer.checkpoint import CheckpointError, checkpoints, require_run
from transformer.config import ConfigError
from transformer.console import show, tell
from transformer.places import check_place, check_spared

if TYPE_CHECKING:
    from dt.cli import Evaluate, Import, Reading, Train, World, WorldSettings


def training_data(options: "Train") -> tuple[Dataset, EnvironmentSpec | None]:
    """The datasets that `dt train` is given, as one, and the world that it is given beside them."""
    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output, the run's folder")
    environment = environment_of(options.world)
    resumed = options.output if options.resume else None
    recorded = _recorded_parts(resumed, len(options.dataset)) if resumed else []
    fraction = options.fraction or tuple(share for share, _ in recorded)
    parts = [*load_each(options.dataset, options.reading, environment, resumed)]
    return join(parts, fraction, options.config.training.seed), environment


def load_each(
    sources: Sequence[str],
    reading: "Reading",
    environment: EnvironmentSpec | None = None,
    resumed: Path | None = None,
) -> Iterator[Dataset]:
    """The datasets that a command is given, one after the other, read as its options say.

    resumed: a run whose spaces and columns hold where the options name none.
    """
    if not sources:
        raise ConfigError("no dataset named")
    spaces, columns = declared(reading.spaces, resumed), columns_for(reading.columns, sources)
    if resumed and not reading.columns and (recorded := _recorded_parts(resumed, len(sources))):
        columns = [each for _, each in recorded]
    how: dict[str, Any] = {"download": reading.download, "skip_bad_episodes": reading.skip_bad_episodes}
    for source, names in zip(sources, columns, strict=True):
        yield load(source, columns=names, spaces=spaces, environment=environment, **how)


def seen_in(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """The same for `dt inspect`, which makes that world and refuses one whose spaces are not the data's."""
    if environment is not None:
        world = environment.make()
        world.close()
        recorded = (dataset.observation_space, dataset.action_space)
        check_spaces(environment, recorded, (world.observation_space, world.action_space))
    return in_world(dataset, environment)


def in_world(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """A dataset as it is told of where the user names the world to play in: with its step limit and reference."""
    if environment is None:
        return dataset
    reference = reference_in(environment, dataset.environment, dataset.reference)
    return replace(dataset, environment=environment, reference=reference)


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
    (dataset,) = load_each([options.source], options.reading, environment_of(options.world))
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
