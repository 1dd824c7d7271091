"""`dt import`: any data as a Minari dataset. No torch."""

from dt.cli.datasets import load_each
from dt.cli.environments import environment_of, with_limited_environment
from dt.cli.options import Import
from transformer.runs.console import show, tell


def run(options: Import) -> None:
    """`dt import`: any data as a Minari dataset."""
    from envs.datasets.writer import new_folder, write_minari

    new_folder(options.dataset_id)  # refused before anything is read
    environment = environment_of(options.env)
    (dataset,) = load_each([options.source], options.reading, environment)
    if environment is None:
        dataset = with_limited_environment(dataset, options.env)
    for note in dataset.notes:
        tell(f"note          {note}")
    folder = write_minari(dataset, options.dataset_id)
    show(f"{options.dataset_id}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, in {folder}")
