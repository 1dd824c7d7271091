"""The error of a run on episodes that it held out, and the data that it learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dt.asking.targets import percentiles_of
from dt.cli.runs import keep_results
from dt.learning.description import reading_in
from dt.learning.run import Run, load_run, versions
from dt.sharing.report import held_out_document
from dt.validation import Validation, choose_episodes, error_table
from envs.datasets.dataset import Dataset, DatasetSource
from envs.datasets.loading import load
from envs.datasets.selection import join
from envs.errors import DataError
from envs.reading.flat_files import is_flat
from transformer.errors import ConfigError
from transformer.files import write_json
from transformer.runs import distributed
from transformer.runs.console import show


def measure_at_the_end(run: Run, dataset: Dataset, chosen: bool) -> None:
    """Leave the error on held-out episodes in the run's folder; of the best too, where this error has chosen it."""
    if not distributed.is_first_rank():
        return
    last = measure_held_out(run, dataset)
    keep_results(run, lambda place: write_json(place / "held-out.json", last))
    if chosen and (run.folder / "best.json").exists():
        show("\nbest on the way, on the same episodes, which chose it:")
        best = load_run(run.folder, "best", run.model.return_scale.device)
        chosen_one = measure_held_out(best, dataset)
        keep_results(run, lambda place: write_json(place / "held-out-best.json", chosen_one))


def measure_held_out(run: Run, dataset: Dataset) -> dict[str, Any]:
    """Print a run's error on the episodes of its data that it held out; returns it as JSON."""
    learned, held_out = choose_episodes(dataset, run.config.data, run.config.training.seed)
    assert held_out is not None
    result = Validation(run.model, learned, held_out).measure()
    show(f"{run.dataset['name']}, checkpoint {run.checkpoint.name}\n{error_table(result)}")
    return held_out_document(result, dataset=run.dataset["name"], checkpoint=run.checkpoint.name, versions=versions())


def known_returns(run: Run, sources: Sequence[str]) -> list[float]:
    """The percentiles of the returns that a run learned from, from the data itself, since its run.json has none."""
    if run.imported is None:
        learned, _ = choose_episodes(learned_from(run, sources), run.config.data, run.config.training.seed)
        return percentiles_of(learned.returns)
    if not sources:
        raise ConfigError(f"{run.folder}: was imported without its data's returns; --dataset SOURCE gives them")
    return percentiles_of(join([load(source) for source in sources]).returns)


def learned_from(run: Run, sources: Sequence[str]) -> Dataset:
    """All the data that a run learned from and held out, as its run.json names it, or where it lies now: sources."""
    recorded = run.dataset.get("parts", ())
    if not recorded:
        raise ConfigError(f"{run.checkpoint}/run.json: does not say what data it is of")
    names = " ".join(part["name"] for part in recorded)
    if sources and len(sources) != len(recorded):
        raise ConfigError(
            f"{run.folder}: --dataset names {len(sources)}, the run learned from {len(recorded)}: {names}"
        )
    datasets = [_part(run, part, source) for part, source in zip_longest(recorded, sources)]
    dataset = join(datasets, [part["fraction"] for part in recorded], run.config.training.seed)
    for before, after in zip(recorded, dataset.parts or [DatasetSource.of(dataset)], strict=True):
        if before["fingerprint"] != after.fingerprint:
            others = [part["name"] for part in recorded if part["fingerprint"] == after.fingerprint]
            raise ConfigError(
                f"{run.folder}: dataset {before['name']} is not what it was when the run learned from it: "
                f"{after.source} has the fingerprint {after.fingerprint[:12]}, it had {before['fingerprint'][:12]}"
                + (f"; this is {others[0]}, and the run's order is {names}" if others else "")
            )
    return dataset


def _part(run: Run, part: Mapping[str, Any], source: str | None) -> Dataset:
    """One of the datasets that a run learned from. source: where it lies now; None where it did then."""
    given, source = source, source or part["source"]
    if source is None:
        raise ConfigError(
            f"{run.folder}: dataset {part['name']} came from Python: measure it there (dt.validation), "
            "or --dataset names a file of it"
        )
    reading = reading_in(part)
    if not is_flat(Path(source)):  # a dataset that was imported since has names of its own
        reading = replace(reading, columns={})
    spaces = {"observation_space": run.model.observation_space, "action_space": run.model.action_space}
    try:
        # whether training left bad episodes out is not kept: if it did not there are none, or the data is another now
        return load(source, spaces=spaces, skip_bad_episodes=True, **vars(reading))
    except DataError as error:
        if given is not None or Path(source).exists():
            raise
        raise DataError(f"{error}; --dataset says where {part['name']} lies now") from None
