"""Decision Transformers: learn from recorded trajectories, ask for a return, get it.

Names are loaded when they are used, so the command line's help needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dt.siblings import find_siblings

find_siblings()

if TYPE_CHECKING:
    from dt.config import CalibrationConfig, Config, DataConfig, EvaluationConfig, ModelConfig
    from dt.data import Batch, TrajectoryDataset
    from dt.errors import PolicyError
    from dt.evaluation import TargetResult, evaluate
    from dt.learning.run import Run, load_run
    from dt.learning.train_many import train_many
    from dt.learning.training import train
    from dt.model import DecisionTransformer
    from dt.policy import ReturnConditionedPolicy
    from dt.sharing.huggingface import import_huggingface
    from dt.vector import VectorPolicy
    from envs.datasets.loading import load
    from envs.errors import DataError, EnvError
    from envs.simulate.spec import EnvironmentSpec
    from transformer.config import TrainingConfig
    from transformer.errors import CheckpointError, ConfigError, NonFiniteError, Stopped, TrainingError
    from transformer.runs.callbacks import Callback

_HOMES = {
    "CalibrationConfig": "dt.config",
    "Config": "dt.config",
    "DataConfig": "dt.config",
    "EvaluationConfig": "dt.config",
    "ModelConfig": "dt.config",
    "ConfigError": "transformer.errors",
    "TrainingConfig": "transformer.config",
    "Batch": "dt.data",
    "Callback": "transformer.runs.callbacks",
    "TrajectoryDataset": "dt.data",
    "TargetResult": "dt.evaluation",
    "evaluate": "dt.evaluation",
    "import_huggingface": "dt.sharing.huggingface",
    "train_many": "dt.learning.train_many",
    "DecisionTransformer": "dt.model",
    "PolicyError": "dt.errors",
    "ReturnConditionedPolicy": "dt.policy",
    "VectorPolicy": "dt.vector",
    "Run": "dt.learning.run",
    "load_run": "dt.learning.run",
    "train": "dt.learning.training",
    "DataError": "envs.errors",
    "load": "envs.datasets.loading",
    "EnvironmentSpec": "envs.simulate.spec",
    "EnvError": "envs.errors",
    "CheckpointError": "transformer.errors",
    "NonFiniteError": "transformer.errors",
    "TrainingError": "transformer.errors",
    "Stopped": "transformer.errors",
}

__all__ = [
    "Batch",
    "CalibrationConfig",
    "Callback",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "DecisionTransformer",
    "EnvError",
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
    "VectorPolicy",
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
