"""What several commands refuse before torch comes in, so that a refusal is quick."""

from pathlib import Path

from dt.learning.description import read_description
from transformer.config import require
from transformer.errors import CheckpointError, ConfigError
from transformer.runs.checkpoint import checkpoints
from transformer.runs.folder import check_run


def check_environment_seed(seed: int) -> None:
    """Refuse a seed that Gymnasium's generators do not take."""
    require(0 <= seed < 2**32, f"seed must be at least 0 and below 2^32, not {seed}")


def check_trained_run(folder: Path) -> None:
    """Raise `CheckpointError` where this is not a run, or has no checkpoint."""
    if folder.parts[:1] == ("hf:",):
        name = "/".join(folder.parts[1:])
        raise ConfigError(
            f"hf://{name}: this command takes a run's folder; dt evaluate hf://{name} --download prints where it is"
        )
    check_run(folder)
    read_description(folder / "run.json")
    if not checkpoints(folder):
        raise CheckpointError(f"{folder}: no checkpoint in it")
