"""A run's policy, with its calibration if that holds for how the run is played."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dt.asking.calibration import Calibration, from_json
from dt.config import EvaluationConfig, PlayConfig
from dt.policy import ReturnConditionedPolicy
from transformer.errors import ConfigError
from transformer.files import read_json
from transformer.runs.console import tell

if TYPE_CHECKING:
    from dt.learning.run import Run

AnyPlayConfig = TypeVar("AnyPlayConfig", bound=PlayConfig)

Precision = Literal["float32", "bf16"]


def policy_of(
    run: "Run",
    config: EvaluationConfig | None = None,
    *,
    precision: Precision | None = None,
    cached: bool = False,
    which: str = "last",
) -> ReturnConditionedPolicy:
    """A run's policy, with its calibration where that holds; where it does not, this is said.

    run: with the environment that it is to play in, if any.
    config: how it is played; None is as it was trained to be.
    precision: as in `ReturnConditionedPolicy`; None is that of its training.
    cached: as in `ReturnConditionedPolicy`.
    which: the name of its checkpoint, "last" or "best".
    """
    own = replace(run.config.evaluation, calibration=True)  # one that is there is used
    config, precision = played_as(run, config or own), precision or precision_of(run)
    guidance = 1.0 if config.guidance == "auto" else config.guidance
    asked_for = config.calibration and config.guidance == "auto" and run.environment is not None
    calibration = read_calibration(run, which, precision) if asked_for else None
    why = calibration and difference(calibration, binding_of(run, config, precision, cached))
    if why:
        tell(
            f"the calibration is not used: it was measured with a different {why}; "
            f"dt calibrate {run.folder} measures it again"
        )
        calibration = None
    return ReturnConditionedPolicy(
        run.model,
        temperature=config.temperature or 0.0,
        precision=precision,
        cached=cached,
        guidance=guidance,
        context_length=config.eval_context_length,
        calibration=calibration,
    )


def read_calibration(run: "Run", which: str = "last", precision: Precision | None = None) -> Calibration | None:
    """The calibration in a run's folder, None where there is none.

    which: the checkpoint's name, "last" or "best".
    precision: as in `ReturnConditionedPolicy`; None is that of the run's training, and so it is where there is no
        calibration in this precision.

    Raises:
        CheckpointError: the file cannot be read.
        ConfigError: it is not a calibration.
    """
    own = precision_of(run)
    path = calibration_file(run, which, precision or own)
    if not path.is_file():
        path = calibration_file(run, which, own)
    if not path.is_file():
        return None
    document = read_json(path)
    try:
        return from_json(document)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; dt calibrate writes it again") from None


def calibration_file(run: "Run", which: str, precision: Precision) -> Path:
    """Where a run keeps its calibration in a precision."""
    name = f"calibration-{which}" if precision == precision_of(run) else f"calibration-{which}-{precision}"
    return run.folder / f"{name}.json"


def drop_calibrations(folder: Path) -> None:
    """Remove a run's calibrations: its weights are about to change."""
    for path in folder.glob("calibration-*.json"):
        path.unlink(missing_ok=True)


def difference(calibration: Calibration, binding: Mapping[str, Any]) -> str | None:
    """The first thing in which a binding differs from that of a calibration; None where the calibration holds."""
    for name, value in binding.items():
        known = calibration.binding.get(name)
        if known != value:
            return name if name == "checkpoint" else f"{name} {value} (calibrated with {known})"
    return None


def binding_of(run: "Run", config: PlayConfig, precision: Precision, cached: bool) -> dict[str, Any]:
    """What a calibration holds for; where one of these differs, achieved returns differ.

    run: with the environment that it is played in.
    config: how it is played.
    precision, cached: as in `ReturnConditionedPolicy`.
    """
    assert run.environment is not None
    settled = played_as(run, config)
    manifest = read_json(run.checkpoint / "manifest.json")
    return {
        "checkpoint": manifest["sha256"]["model.safetensors"],
        "environment": run.environment.id,
        "environment_kwargs": dict(run.environment.kwargs),
        "max_episode_steps": run.environment.step_limit,
        "wrappers": [wrapper.to_json() for wrapper in run.environment.put_back],
        "context_length": settled.eval_context_length,
        "temperature": settled.temperature,
        "precision": precision,
        "cached": cached,
    }


def played_as(run: "Run", config: AnyPlayConfig) -> AnyPlayConfig:
    """How a run is played where a configuration leaves it open: as its training was configured to play it."""
    own = run.config.evaluation
    length = config.eval_context_length or own.eval_context_length or run.config.model.context_length
    temperature = own.temperature or 0.0 if config.temperature is None else config.temperature
    return replace(config, eval_context_length=length, temperature=temperature)


def precision_of(run: "Run") -> Precision:
    """The precision that a run was trained with, in which it also plays."""
    return "bf16" if run.config.training.precision == "bf16" else "float32"
