"""Decision Transformers: learn from recorded trajectories, ask for a return, get it.

Names are loaded when they are used, so the command line's help needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dt.config import Config, EvaluationConfig, ModelConfig
    from dt.data import Batch, TrajectoryDataset
    from dt.evaluation import TargetResult, evaluate
    from dt.huggingface import import_huggingface
    from dt.model import DecisionTransformer
    from dt.policy import ReturnConditionedPolicy
    from dt.training import Run, load_run, train
    from envs.datasets import load
    from transformer.config import TrainingConfig

_HOMES = {
    "Config": "dt.config",
    "EvaluationConfig": "dt.config",
    "ModelConfig": "dt.config",
    "TrainingConfig": "transformer.config",
    "Batch": "dt.data",
    "TrajectoryDataset": "dt.data",
    "TargetResult": "dt.evaluation",
    "evaluate": "dt.evaluation",
    "import_huggingface": "dt.huggingface",
    "DecisionTransformer": "dt.model",
    "ReturnConditionedPolicy": "dt.policy",
    "Run": "dt.training",
    "load_run": "dt.training",
    "train": "dt.training",
    "load": "envs.datasets",
}

__all__ = [
    "Batch",
    "Config",
    "DecisionTransformer",
    "EvaluationConfig",
    "ModelConfig",
    "ReturnConditionedPolicy",
    "Run",
    "TargetResult",
    "TrainingConfig",
    "TrajectoryDataset",
    "evaluate",
    "import_huggingface",
    "load",
    "load_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
