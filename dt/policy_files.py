"""What `--policy` of `dt record` names: "random", a run's folder, or a Stable-Baselines3 file. No torch, no pickle."""

import json
import zipfile
from pathlib import Path

from transformer.errors import ConfigError

ALGORITHMS = {"sac": "SAC", "td3": "TD3", "dqn": "DQN", "common": "PPO"}
"""Which algorithm opens the policies of which module of Stable-Baselines3: TD3 also DDPG's, PPO also A2C's."""


def names_run(policy: str) -> bool:
    """Whether --policy names a run's folder."""
    return policy != "random" and (Path(policy) / "run.json").exists()


def saved_algorithm(path: Path, trust: bool) -> str:
    """What opens a Stable-Baselines3 file, which is pickle: refused where the user does not trust it."""
    if not path.is_file():
        raise ConfigError(f"--policy {path}: neither random, nor a run's folder (no run.json), nor a file")
    try:
        with zipfile.ZipFile(path) as file:
            module = json.loads(file.read("data"))["policy_class"]["__module__"]
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError):
        raise ConfigError(f"--policy {path}: no file of Stable-Baselines3's") from None
    package, _, rest = str(module).partition(".")
    algorithm = ALGORITHMS.get(rest.removesuffix(".policies")) if package == "stable_baselines3" else None
    if algorithm is None:
        raise ConfigError(f"--policy {path}: a policy of {module}; those of SAC, TD3, DDPG, DQN, PPO and A2C are known")
    if not trust:
        raise ConfigError(
            f"--policy {path}: a Stable-Baselines3 file is pickle, which may run any code; --trust opens it"
        )
    return algorithm
