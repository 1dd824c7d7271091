"""Memory: the peak of loading and of training against the data's size, and `dt inspect` of more data than memory.

Data is generated. Each point is a process of its own, forked from this one: the most memory of its own that it held
above what it began with (`benchmarks.growth`). Pages of mapped files are not counted: the system may take them back.

    pip install "decision-transformer[benchmark]"
    python -m benchmarks.memory                                    # the picture
    python -m benchmarks.memory --inspect 10000 --limit 2000       # megabytes: the peak of one `dt inspect`

The limit is the kernel's on private memory (RLIMIT_DATA): a process that wants more gets an error. It does not count
pages of mapped files either.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import minari
import numpy as np
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from minari.dataset.minari_storage import MinariStorage
from tqdm import tqdm

from benchmarks.growth import PAGE, in_a_process
from dt.config import Config, ModelConfig
from dt.learning.training import train
from envs.datasets.cache import FRESH
from envs.datasets.loading import load
from transformer.config import TrainingConfig
from transformer.files import write_json

SEEN, DONE = spaces.Box(-np.inf, np.inf, (60,), np.float32), spaces.Box(-1, 1, (3,), np.float32)

LENGTH = 1_000
"""Steps of an episode, which has a quarter of a megabyte."""

BYTES = LENGTH * 4 * (60 + 3 + 1)
"""Of an episode's observations, actions and rewards."""

Points = dict[str, dict[int, float]]
"""By what is done, the peak in megabytes at each size in megabytes."""


def episodes(megabytes: int) -> Iterator[EpisodeBuffer]:
    """As many episodes of random numbers as have this size."""
    ends = {"terminations": np.arange(LENGTH) == LENGTH - 1, "truncations": np.zeros(LENGTH, bool)}
    for i in range(max(2, megabytes * 1_000_000 // BYTES)):
        rng = np.random.default_rng(i)
        seen, done = rng.random((LENGTH + 1, 60), np.float32), rng.random((LENGTH, 3), np.float32)
        yield EpisodeBuffer(observations=seen, actions=done, rewards=seen[1:, 0], **ends)


def write_minari_data(folder: Path, megabytes: int, layout: str) -> Path:
    """A Minari dataset of this size, in HDF5 or Arrow; one episode at a time is in memory."""
    (folder / "data").mkdir(parents=True)
    storage = MinariStorage.new(folder / "data", SEEN, DONE, data_format=layout)
    storage.update_episodes(episodes(megabytes))
    storage.update_metadata({"dataset_id": "generated/memory-v0", "minari_version": minari.__version__})
    return folder


def write_large(folder: Path, megabytes: int) -> Path:
    """A Minari dataset of this size in HDF5, of episodes ten times as wide; without Minari, which takes long."""
    wide, rng = spaces.Box(-np.inf, np.inf, (600,), np.float32), np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    MinariStorage.new(folder / "data", wide, DONE, data_format="hdf5")
    seen = rng.random((LENGTH + 1, 600), np.float32)
    count = max(2, round(megabytes * 1e6 / seen.nbytes))
    with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
        for i in range(count):
            group = file.create_group(f"episode_{i}")
            group["observations"] = seen + np.float32(i)
            group["actions"] = rng.random((LENGTH, 3), np.float32)
            group["rewards"] = rng.random(LENGTH)
            group["terminations"], group["truncations"] = np.arange(LENGTH) == LENGTH - 1, np.zeros(LENGTH, bool)
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    counts = {"total_episodes": count, "total_steps": count * LENGTH, "dataset_id": "generated/memory-v0"}
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata | counts))
    return folder


def write_npz(folder: Path, megabytes: int) -> Path:
    """The same as a flat file."""
    folder.mkdir(parents=True)
    played = list(episodes(megabytes))
    np.savez(
        folder / "flat.npz",
        observations=np.concatenate([episode.observations[:-1] for episode in played]),
        actions=np.concatenate([episode.actions for episode in played]),
        rewards=np.concatenate([episode.rewards for episode in played]),
        terminals=np.concatenate([episode.terminations for episode in played]),
    )
    return folder / "flat.npz"


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    ".npz": write_npz,
    "HDF5": partial(write_minari_data, layout="hdf5"),
    "Arrow": partial(write_minari_data, layout="arrow"),
}
"""What writes each format."""

CONFIG = Config(
    model=ModelConfig(width=16, num_layers=1),
    training=TrainingConfig(steps=5, device="cpu", precision="float32", threads=1),
)
"""A small model, so that the peak is the data's."""


def peak(work: Callable[[], object]) -> float:
    """The most memory of its own that a process held for this work, in megabytes above what it began with."""

    def once() -> float:
        work()
        return 0.0

    return in_a_process(once)[1]


def learn(source: Path, folder: Path) -> None:
    """Train a few steps on data that is in the cache."""
    train(load(source), CONFIG, folder)


def points(sizes: list[int], folder: Path) -> Points:
    """The peak of the first load of each format, and of training from the cache, at each size."""
    found: Points = {f"first load, {name}": {} for name in WRITERS} | {"training, from the cache": {}}
    with tqdm(total=len(sizes) * (len(WRITERS) + 1), unit="point") as bar:
        for size in sizes:
            for name, write in WRITERS.items():
                place = folder / f"{name.strip('.')}-{size}"
                peak(partial(write, place, size))
                source = place / "flat.npz" if name == ".npz" else place
                time.sleep(FRESH / 1e9)  # what changed just now is not kept in the cache
                found[f"first load, {name}"][size] = peak(partial(load, source))
                bar.update()
            found["training, from the cache"][size] = peak(partial(learn, source, folder / f"run-{size}"))
            bar.update()
    return found


def inspect(megabytes: int, limit: int, folder: Path) -> dict[str, float]:
    """Run `dt inspect` on generated HDF5 under a limit of private memory: seconds, and peaks in megabytes."""
    source = folder / "large"
    if not source.exists():
        peak(partial(write_large, source, megabytes))
    size = (source / "data" / "main_data.hdf5").stat().st_size
    time.sleep(FRESH / 1e9)
    began, own, resident = time.perf_counter(), 0, 0
    child = subprocess.Popen(
        [sys.executable, "-m", "dt", "inspect", str(source)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit * 1_000_000,) * 2),
    )
    while child.poll() is None:
        pages = Path(f"/proc/{child.pid}/statm").read_text().split()[1:3]
        if len(pages) == 2:
            own, resident = max(own, int(pages[0]) - int(pages[1])), max(resident, int(pages[0]))
        time.sleep(0.01)
    return {
        "exit_code": child.returncode,
        "file_megabytes": round(size / 1e6),
        "limit_megabytes": limit,
        "seconds": round(time.perf_counter() - began),
        "peak_megabytes": round(own * PAGE / 1e6),
        "peak_megabytes_with_pages_of_files": round(resident * PAGE / 1e6),
    }


def draw(found: Points, picture: Path) -> None:
    """Peaks against the size; dotted, as much memory as there is data."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, by_size in found.items():
        axis.plot(list(by_size), list(by_size.values()), "o-", label=name)
    sizes = sorted({size for by_size in found.values() for size in by_size})
    axis.plot([0, sizes[-1]], [0, sizes[-1]], ":", color="grey", label="the data's size")
    axis.set(xlabel="data, MB", ylabel="peak of own memory, MB", xlim=(0, None), ylim=(0, None))
    axis.legend(fontsize="small")
    figure.savefig(picture, dpi=110)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 100, 200, 400], help="sizes of the data")
    parser.add_argument("--json", type=Path, default=Path("docs/results/memory.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/pictures/memory.png"))
    parser.add_argument("--inspect", type=int, metavar="MB", help="only `dt inspect` of so many megabytes of HDF5")
    parser.add_argument("--limit", type=int, metavar="MB", default=2_000, help="private memory that it may have")
    parser.add_argument("--folder", type=Path, help="where the data is generated, and removed again")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.environ["DECISION_TRANSFORMER_CACHE"] = f"{name}/cache"
        if options.inspect:
            for what, number in inspect(options.inspect, options.limit, Path(name)).items():
                print(f"{what.replace('_', ' ')}: {number:,}")
            return
        found = points(options.megabytes, Path(name))
    write_json(options.json, {"peak in megabytes, by the data's megabytes": found})
    draw(found, options.picture)


if __name__ == "__main__":
    main()
