"""Runs that are trained side by side: which dataset, which seed, which folder. Checked before torch comes in."""

from collections.abc import Sequence
from pathlib import Path

from dt.config import Config
from envs.datasets.dataset import Dataset
from transformer.config import check_seed, require
from transformer.runs.folder import check_run
from transformer.runs.outputs import check_folder


def cells_of(
    datasets: Sequence[Dataset], config: Config, seeds: Sequence[int], output: Path
) -> list[tuple[Dataset, int, Path]]:
    """Each dataset at each seed, and the folder of its run: a new one, or a run to go on with."""
    require(len(datasets) > 0 and len(seeds) > 0, "no dataset or no seed to train")
    for seed in seeds:
        check_seed(seed)
    require(not config.model.activation_checkpointing, "activation_checkpointing: many runs at once cannot have it")
    require(not config.training.compile, "compile: many runs at once cannot have it, a GPU records their step anyway")
    cells = [(dataset, seed, run_folder(output, dataset, seed)) for dataset in datasets for seed in seeds]
    folders = [folder for _, _, folder in cells]
    twice = [str(folder) for folder in folders if folders.count(folder) > 1]
    require(not twice, f"{twice[:1]}: two runs of one dataset and seed")
    for folder in folders:
        (check_run if folder.exists() else check_folder)(folder)
    return cells


def run_folder(output: Path, dataset: Dataset, seed: int) -> Path:
    """Where the run of a dataset and a seed lies."""
    return output / f"{dataset.name.replace('/', '-').replace(' ', '')}-s{seed}"
