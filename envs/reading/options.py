"""`ReadingOptions`: what a user says of how a source is to be read. A run remembers it with its data."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from envs.errors import DataError
from envs.reading.fields import Columns, named_columns

RewardRule = Literal["success", "last", "none"]
"""What stands for rewards where a recording of demonstrations has none."""


@dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """How a source is to be read, beyond what its format says; `load` and the command line use the same names.

    columns: by field the names that hold it in the file; several make a vector.
    episode_length: episodes last so many steps, unless a flag ends them sooner.
    file_is_episode: all rows of a file are one episode.
    last_row_is_final: the last row of each episode holds an observation only.
    leave_out: parts of Dict observations that are not read, by their paths, such as "mission"; the environment's
    observations lack them too.
    reward: "success" is 1 at each step at which the recording's success flag is true, else 0. "last" is 1 at each
    episode's last step, else 0. "none" reads a recording that has no rewards, as zeros.
    """

    columns: Columns = field(default_factory=dict)
    episode_length: int | None = None
    file_is_episode: bool = False
    last_row_is_final: bool = False
    leave_out: tuple[str, ...] = ()
    reward: RewardRule | None = None

    def __post_init__(self) -> None:
        if self.reward not in (None, *get_args(RewardRule)):
            raise DataError(f"reward: {str(self.reward)[:40]!r}, expected one of {', '.join(get_args(RewardRule))}")
        for name in ("last_row_is_final", "file_is_episode"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name}: {str(getattr(self, name))[:40]!r}, expected True or False")
        length = self.episode_length
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise DataError(f"episode_length: {str(length)[:40]!r}, expected a whole number of at least 1")
        if length is not None and self.file_is_episode:
            raise DataError("episode_length and file_is_episode: give one of them")

        if not all(isinstance(name, str) and name for name in self.leave_out):
            raise DataError(f"leave_out: {str(self.leave_out)[:40]}, expected names of observations")

    @staticmethod
    def of(
        columns: Mapping[str, str | Iterable[str]] | None = None, leave_out: str | Iterable[str] = (), **options: Any
    ) -> "ReadingOptions":
        """The options as Python and run.json give them; `DataError` names a wrong one."""
        names = (leave_out,) if isinstance(leave_out, str) else tuple(leave_out)
        return ReadingOptions(columns=named_columns(columns or {}), leave_out=names, **options)

    def is_said(self) -> bool:
        """Whether anything is not as usual."""
        return self != ReadingOptions()

    def to_json(self) -> dict[str, Any]:
        """The columns, and all else that is not as usual, as plain JSON."""
        usual = ReadingOptions()
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        said = {name: value for name, value in said.items() if value != getattr(usual, name)}
        said |= {"leave_out": list(self.leave_out)} if self.leave_out else {}
        return {**said, "columns": {name: list(names) for name, names in self.columns.items()}}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "ReadingOptions":
        """From an object that has `to_json`'s entries among others; what is not there is as usual."""
        known = {each.name for each in fields(ReadingOptions)}
        return ReadingOptions.of(**{name: value for name, value in document.items() if name in known})
