"""The datasets that a command is given, read as its options say. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dt.cli.options import Reading
from dt.learning.description import read_description, reading_in
from envs.datasets.dataset import Dataset
from envs.datasets.hub import SCHEME
from envs.datasets.loading import load
from envs.errors import problems_of
from envs.reading.fields import split_names
from envs.reading.flat_files import READERS, is_flat
from envs.reading.lerobot import is_lerobot
from envs.reading.options import ReadingOptions
from envs.reading.readers import declared_spaces, spaces_from_json
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError


def load_each(
    sources: Sequence[str],
    reading: Reading,
    environment: EnvironmentSpec | None = None,
    resumed: Path | None = None,
    *,
    without_rewards: bool = False,
) -> Iterator[Dataset]:
    """The datasets that a command is given, one after the other, read as its options say.

    resumed: a run; its spaces and reading options are used if the command gives none.
    without_rewards: read recordings that have no rewards too.
    """
    if not sources:
        raise ConfigError("no dataset named")
    spaces, options = declared(reading.spaces, resumed), reading_options_of(reading, sources)
    if resumed and not any(map(ReadingOptions.is_said, options)):
        options = [each for _, each in recorded_parts(resumed, len(sources))] or options
    if without_rewards:
        options = [replace(each, reward=each.reward or "none") for each in options]
    how: dict[str, Any] = {"download": reading.download, "skip_bad_episodes": reading.skip_bad_episodes}
    for source, each in zip(sources, options, strict=True):
        yield load(source, spaces=spaces, environment=environment, **vars(each), **how)


def declared(spaces: str | None, resumed: Path | None = None) -> dict[str, Any]:
    """The spaces that the user declares, or those that a run to resume was begun with."""
    if spaces is not None:
        return spaces_from_json(spaces)
    if resumed is None:
        return {}
    with problems_of(f"{resumed}/run.json"):
        return declared_spaces(read_description(resumed / "run.json"))


def parse_columns(texts: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each field, from texts FIELD=COLUMN or FIELD=COLUMN,COLUMN,...

    Raises:
        ConfigError: a text has another form, or a field is there twice.
    """
    columns: dict[str, list[str]] = {}
    for text in texts:
        field, _, names = text.partition("=")
        if not (field and names):
            raise ConfigError(f"--columns: {text!r}, expected FIELD=COLUMN or FIELD=COLUMN,COLUMN,...")
        if field in columns:
            raise ConfigError(f"--columns: {field} twice; several columns are FIELD=COLUMN,COLUMN,...")
        columns[field] = list(split_names(names))
    return columns


def reading_options_of(reading: Reading, sources: Sequence[str]) -> list[ReadingOptions]:
    """How each source is read; options for flat files do not apply to a Minari dataset."""
    said = ReadingOptions.of(
        columns=parse_columns(reading.columns),
        episode_length=reading.episode_length,
        file_is_episode=reading.file_is_episode,
        last_row_is_final=reading.last_row_is_final,
        leave_out=reading.leave_out,
        reward=reading.reward,
    )
    flat = [is_flat(Path(source)) or is_lerobot(Path(source)) or source.startswith(SCHEME) for source in sources]
    usual = replace(said, columns={}, episode_length=None, file_is_episode=False, last_row_is_final=False)
    for name in ("columns", "episode_length", "file_is_episode", "last_row_is_final"):
        if getattr(said, name) != getattr(usual, name) and not any(flat):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for files ({', '.join(READERS)}), and {' '.join(sources)} is none")
    return [said if is_one else usual for is_one in flat]


def recorded_parts(resumed: Path, datasets: int) -> list[tuple[float, ReadingOptions]]:
    """Fraction and reading options of each dataset of a run to resume; none if it has a different number of them."""
    parts = read_description(resumed / "run.json")["dataset"].get("parts", ())
    return [(part["fraction"], reading_in(part)) for part in parts] if len(parts) == datasets else []
