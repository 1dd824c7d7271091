"""`dt record`: play a policy and write its episodes as a Minari dataset."""

from dataclasses import replace
from pathlib import Path

from dt.cli.checks import check_environment_seed, check_trained_run
from dt.cli.environments import environment_arguments
from dt.cli.options import Record
from dt.errors import FailedEpisodesError
from dt.learning.description import left_out_in, read_description
from dt.policy_files import names_run, saved_algorithm
from envs.datasets.dataset import Dataset
from envs.datasets.writer import keep_elsewhere, new_folder, write_minari
from envs.errors import DataError
from envs.simulate.rollout import PlayedEpisode
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError
from transformer.runs.console import show, tell
from transformer.runs.progress import progress


def run(options: Record, command: str) -> None:
    """Check the options, then play the policy. command: what was typed, for the metadata."""
    environment = recording_environment(options)
    _record(options, environment, command)  # torch comes in here


def recording_environment(options: Record) -> EnvironmentSpec:
    """The environment that `dt record` plays in; a policy that is none, and what does not go with it, is refused."""
    new_folder(options.dataset_id)  # refused before anything is played
    arguments = environment_arguments(options.env)
    environment = EnvironmentSpec(options.environment, arguments, options.env.max_episode_steps)
    environment.check_registered()
    check_environment_seed(options.seed)
    config, policy = options.config, options.policy
    if config.target_return == "auto":
        raise ConfigError("--target-return auto chooses what is scored; a recording asks for returns that are named")
    if options.vec_normalize is not None and (policy == "random" or names_run(policy)):
        raise ConfigError(f"--vec-normalize is of a Stable-Baselines3 policy, and {policy} is none")
    if names_run(policy):
        check_trained_run(Path(policy))
        return environment.leaving_out(left_out_in(read_description(Path(policy) / "run.json")["dataset"]))
    if config.named_targets:
        raise ConfigError(f"--target-return is asked of a run, and {policy} is none")
    if policy != "random":
        saved_algorithm(Path(policy), options.trust)
    return environment


def _record(options: Record, environment: EnvironmentSpec, command: str) -> None:
    """`dt record`: a policy played into a Minari dataset. command: what was typed, for the metadata."""
    from dt.recording import record, recording_plan

    chosen = recording_plan(
        options.policy,
        environment,
        options.config,
        seed=options.seed,
        checkpoint=options.checkpoint,
        trust=options.trust,
        vec_normalize=options.vec_normalize,
    )
    failed: list[PlayedEpisode] = []
    with progress("record", len(chosen.requests), "episode") as bar:
        dataset = record(
            chosen,
            environment,
            options.dataset_id,
            env_timeout=options.config.env_timeout,
            on_episode=lambda _: bar.update(),
            on_failure=failed.append,
        )
    recorded = {"command": command, **dataset.provenance["recorded"]}
    if failed:
        recorded["failed_episodes"] = [str(episode.failure) for episode in failed]
    folder = _write_recording(
        replace(dataset, provenance={**dataset.provenance, "recorded": recorded}), options.dataset_id
    )
    show(f"{options.dataset_id}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, in {folder}")
    for episode in failed[:20]:
        tell(f"failed        {episode.failure}")
    if failed:
        raise FailedEpisodesError(f"{len(failed)} of {len(chosen.requests)} episodes failed and are not in the dataset")


def _write_recording(dataset: Dataset, dataset_id: str) -> Path:
    """Write what was played under its id; where that fails it is kept elsewhere, and the error says where."""
    try:
        return write_minari(dataset, dataset_id)
    except DataError as error:
        kept = keep_elsewhere(dataset)
        if kept is None:
            raise
        raise DataError(
            f"{error}. The {dataset.num_episodes} episodes are kept in {kept}; when there is room: "
            f"dt import {kept} {dataset_id}"
        ) from error
