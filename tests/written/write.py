"""Write the files of this folder, each by the library that its name says: `python write.py d3rlpy`, `tianshou`, ...

Each needs an environment of its own; CI reads the files and installs none of the libraries. All of them hold the
recording of tests/formats.py.

    pip install d3rlpy==2.8.1        d3rlpy-2.8.1.h5
    pip install tianshou==2.0.1      tianshou-2.0.1.hdf5, tianshou-2.0.1-vector.hdf5
    pip install datasets==5.2.0      datasets-5.2.0.parquet
    pip install lerobot==0.4.0       lerobot-0.4.0/; it needs numpy below 2.4 and the torchvision of torch's version
    pip install lerobot==0.3.3       lerobot-0.3.3/, format v2.1: `python write.py lerobot_2`
"""

import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from formats import recording  # noqa: E402 (tests/formats.py)


def write_d3rlpy() -> None:
    from d3rlpy.dataset import Episode, InfiniteBuffer, ReplayBuffer

    episodes = [
        Episode(each.observations[:-1], each.actions, each.rewards[:, None], each.terminated) for each in recording()
    ]
    with (HERE / "d3rlpy-2.8.1.h5").open("w+b") as file:
        ReplayBuffer(InfiniteBuffer(), episodes=episodes).dump(file)


def write_tianshou() -> None:
    from tianshou.data import Batch, ReplayBuffer, VectorReplayBuffer

    def steps(episode):
        for i in range(len(episode.rewards)):
            last = i == len(episode.rewards) - 1
            yield {
                "obs": episode.observations[i],
                "act": episode.actions[i],
                "rew": float(episode.rewards[i]),
                "terminated": last and episode.terminated,
                "truncated": last and episode.truncated,
                "obs_next": episode.observations[i + 1],
            }

    ring = ReplayBuffer(12)  # ten of its places are filled
    for episode in recording():
        for step in steps(episode):
            ring.add(Batch(**step, done=step["terminated"] or step["truncated"], info={}))
    ring.save_hdf5(str(HERE / "tianshou-2.0.1.hdf5"), compression="gzip")
    vector = VectorReplayBuffer(18, 3)
    for i, episode in enumerate(recording()):
        for step in steps(episode):
            batch = Batch(**step, done=step["terminated"] or step["truncated"], info={})
            vector.add(Batch.stack([batch]), buffer_ids=[i])
    vector.save_hdf5(str(HERE / "tianshou-2.0.1-vector.hdf5"), compression="gzip")


def write_datasets() -> None:
    from datasets import Dataset

    rows = {
        "observations": [each.observations[:-1].tolist() for each in recording()],
        "actions": [each.actions.tolist() for each in recording()],
        "rewards": [each.rewards.tolist() for each in recording()],
        "dones": [[False] * (len(each.rewards) - 1) + [True] for each in recording()],
    }
    Dataset.from_dict(rows).to_parquet(str(HERE / "datasets-5.2.0.parquet"))


FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (3,), "names": None},
    "action": {"dtype": "float32", "shape": (1,), "names": None},
    "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
}


def write_lerobot(version: str = "0.4.0") -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    folder = HERE / f"lerobot-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    made = LeRobotDataset.create("someone/numbers", fps=10, features=FEATURES, root=folder, use_videos=False)
    for each in recording():
        for i in range(len(each.rewards)):
            frame = {
                "observation.state": each.observations[i],
                "action": each.actions[i],
                "next.reward": each.rewards[i : i + 1],
                "next.done": np.array([i == len(each.rewards) - 1]),
            }
            if version.startswith("0.3"):
                made.add_frame(frame, "swing up")
            else:
                made.add_frame({**frame, "task": "swing up"})
        made.save_episode()
    if not version.startswith("0.3"):
        made.finalize()


def write_lerobot_2() -> None:
    write_lerobot("0.3.3")


if __name__ == "__main__":
    globals()[f"write_{sys.argv[1]}"]()
