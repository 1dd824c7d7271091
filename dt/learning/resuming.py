"""A run that training goes on with: what must be as it was, and where it goes on from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dt.config import NO_SHARES, Config
from dt.learning.description import environment_in, read_description
from dt.learning.run import check_model_size
from dt.model import DecisionTransformer
from envs.datasets.dataset import Dataset
from envs.simulate.spec import EnvironmentSpec
from transformer.config import TrainingConfig
from transformer.errors import CheckpointError
from transformer.runs.checkpoint import folder_of
from transformer.runs.console import tell
from transformer.runs.record import check_same_recipe, newest_state
from transformer.runs.schedule import learning_rate_at
from transformer.runs.training import Trainer
from transformer.weights import read_tensors


@dataclass(frozen=True)
class PreviousRun:
    """A run that training goes on with.

    folder: the run's.
    checkpoint: where it goes on from; None from the beginning.
    document: its run.json, as the checkpoint holds it.
    config: its configuration then.
    """

    folder: Path
    checkpoint: Path | None
    document: dict[str, Any]
    config: Config

    @staticmethod
    def open(folder: Path, at_step: int | None = None) -> "PreviousRun":
        """The run in a folder at its newest checkpoint, or at that of a step; at step 0 there is none."""
        newest = newest_state(folder) if at_step is None else None
        checkpoint = folder_of(folder, at_step) if at_step else newest
        document = read_description((checkpoint or folder) / "run.json")
        return PreviousRun(folder, checkpoint, document, Config.from_json(document["config"]))

    @property
    def environment(self) -> EnvironmentSpec | None:
        """Where it was evaluated."""
        return environment_in(self.document)

    def check_model(self, dataset: Dataset, config: Config, rows: int) -> None:
        """Refuse another model or recipe, or weights that do not fit them, before the model is made.

        rows: of its timestep table.
        """
        if "imported" in self.document:
            raise CheckpointError(
                f"{self.folder}: imported from {self.document['imported']}, "
                "without the state that training goes on from"
            )
        if config.model.positions == "timesteps" and self.document["max_timesteps"] != rows:
            raise CheckpointError(f"{self.folder}: max_timesteps was {self.document['max_timesteps']}, now {rows}")
        check_same_recipe(self.config.to_json(), config.to_json(), self.folder)
        if self.checkpoint is not None:
            weights = read_tensors(self.checkpoint / "model.safetensors")
            try:
                check_model_size(weights, config.model, dataset.observation_space, dataset.action_space, rows)
            except ValueError as error:
                raise CheckpointError(f"{self.checkpoint}: {error}") from None

    def restore_units(self, model: DecisionTransformer) -> None:
        """The units that the weights were learned with; early versions had none."""
        if self.checkpoint is not None:
            model.set_units(self.document.get("units", {}))

    def check_data(self, new: dict[str, Any]) -> None:
        """Refuse other data than the run was begun with, or other episodes of it, by the name of what differs.

        new: the run.json that the training would write.
        """
        was = self.document["dataset"]
        now = new["dataset"]
        for before, after in zip(was.get("parts", ()), now["parts"], strict=False):
            for name in ("name", "fingerprint", "fraction"):
                if before[name] != after[name]:
                    raise CheckpointError(f"{self.folder}: trained on dataset {before['name']}, its {name} differs now")
        for name in ("name", "fingerprint"):
            if was.get(name) != now[name]:
                raise CheckpointError(f"{self.folder}: trained on dataset {was.get('name')}, its {name} differs now")
        chosen = NO_SHARES | self.document["config"].get("data", {"top_fraction": 1.0, "held_out": 0.0})
        for name, value in new["config"]["data"].items():
            if chosen.get(name) != value:
                raise CheckpointError(
                    f"{self.folder}: {name} was {chosen.get(name)}, now {value}; a resumed run cannot change it"
                )

    def resume(self, trainer: Trainer, config: Config, environment: EnvironmentSpec | None) -> None:
        """Bring a trainer to where this run stands; a best checkpoint of another evaluation counts no more.

        config, environment: of the training that goes on.
        """
        trainer.resume(self.checkpoint)
        self._warn_of_another_length(trainer.step, config.training)
        scored_by = trainer.record.document["scored_by"]
        was = (self.config.evaluation, self.environment, self.document.get("scored_by", scored_by))
        best = trainer.record.best
        if best and was != (config.evaluation, environment, scored_by):
            tell(f"step {best['step']} was best at another evaluation: the search for the best starts again here")
            trainer.record.best = None

    def _warn_of_another_length(self, step: int, new: TrainingConfig) -> None:
        """A cosine ends with the run, so another end bends it from here on: no more the run that never stopped."""
        old = self.config.training
        if new.schedule == "cosine" and new.steps != old.steps:
            before, now = (learning_rate_at(step, config) for config in (old, new))
            tell(
                f"steps was {old.steps}, now {new.steps}, and the cosine falls until the last: "
                f"the learning rate at step {step} is {now:.3g}, was {before:.3g}"
            )
