"""Decision Transformers: learn from recorded trajectories, ask for a return, get it.

Names are loaded when they are used, so the command line's help needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig
    from dt.data import Batch, TrajectoryDataset
    from dt.evaluation import TargetResult, evaluate
    from dt.huggingface import import_huggingface
    from dt.many import train_many
    from dt.model import DecisionTransformer
    from dt.policy import PolicyError, ReturnConditionedPolicy
    from dt.training import Run, load_run, train
    from envs.loading import load
    from envs.readers import DataError
    from envs.worlds import EnvironmentSpec, WorldError
    from transformer.checkpoint import CheckpointError
    from transformer.config import ConfigError, TrainingConfig
    from transformer.training import NonFiniteError, Stopped, TrainingError

_HOMES = {
    "Config": "dt.config",
    "DataConfig": "dt.config",
    "EvaluationConfig": "dt.config",
    "ModelConfig": "dt.config",
    "ConfigError": "transformer.config",
    "TrainingConfig": "transformer.config",
    "Batch": "dt.data",
    "TrajectoryDataset": "dt.data",
    "TargetResult": "dt.evaluation",
    "evaluate": "dt.evaluation",
    "import_huggingface": "dt.huggingface",
    "train_many": "dt.many",
    "DecisionTransformer": "dt.model",
    "PolicyError": "dt.policy",
    "ReturnConditionedPolicy": "dt.policy",
    "Run": "dt.training",
    "load_run": "dt.training",
    "train": "dt.training",
    "DataError": "envs.readers",
    "load": "envs.loading",
    "EnvironmentSpec": "envs.worlds",
    "WorldError": "envs.worlds",
    "CheckpointError": "transformer.checkpoint",
    "NonFiniteError": "transformer.training",
    "TrainingError": "transformer.training",
    "Stopped": "transformer.training",
}

__all__ = [
    "Batch",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DecisionTransformer",
    "EnvironmentSpec",
    "EvaluationConfig",
    "ModelConfig",
    "NonFiniteError",
    "PolicyError",
    "ReturnConditionedPolicy",
    "Run",
    "Stopped",
    "TargetResult",
    "TrainingConfig",
    "TrainingError",
    "TrajectoryDataset",
    "WorldError",
    "evaluate",
    "import_huggingface",
    "load",
    "load_run",
    "train",
    "train_many",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
