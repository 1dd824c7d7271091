"""What a command's options say of data, environments and places, checked before torch comes in: so a refusal is quick.

`dt import`, which needs no torch at all, is done here.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dt.cli.options import (
    Calibrate,
    EnvironmentOptions,
    EnvironmentSettings,
    Evaluate,
    Export,
    Import,
    ImportHuggingFace,
    Reading,
    Record,
    Train,
    TrainMany,
)
from dt.config import CALIBRATION_SEED, CALIBRATION_SEEDS, SWEEP_OFFSET
from dt.learning.cells import cells_of, run_folder
from dt.learning.description import environment_in, left_out_in, read_description, reading_in
from dt.policy_files import names_run, saved_algorithm
from dt.sharing.hub import find_run
from dt.sharing.huggingface_config import Published, read_published
from envs.datasets.dataset import Dataset
from envs.datasets.hub import on_hub
from envs.datasets.loading import load
from envs.datasets.selection import join
from envs.reading.flat_files import READERS, is_flat
from envs.reading.lerobot import is_lerobot
from envs.reading.options import ReadingOptions
from envs.reading.readers import declared_spaces, spaces_from_json
from envs.simulate.importing import import_environments
from envs.simulate.scores import reference_in
from envs.simulate.spec import EnvironmentSpec, check_spaces
from transformer.config import require
from transformer.errors import CheckpointError, ConfigError
from transformer.files import check_new
from transformer.runs import distributed
from transformer.runs.checkpoint import checkpoints
from transformer.runs.console import show, tell
from transformer.runs.folder import check_new_run, check_run
from transformer.runs.outputs import check_folder, check_place

NEEDED_TO_EXPORT = ("onnx", "onnxscript", "onnxruntime")
"""What `--format onnx` needs beyond the base installation."""


def training_data(options: Train) -> tuple[Dataset, EnvironmentSpec | None]:
    """The datasets that `dt train` is given, as one, and the environment that it is given beside them."""
    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output, the run's folder")
    begins = not options.resume and not options.print_config
    if options.output is not None and begins:
        _check_begun(options.output)
    resumed = options.output if options.resume else None
    environment = environment_to_play_in(options.env)
    if environment is None and resumed is not None and options.env.max_episode_steps is not None:
        environment = with_step_limit(environment_in(read_description(resumed / "run.json")), options.env)
    recorded = _recorded_parts(resumed, len(options.dataset)) if resumed else []
    fraction = options.fraction or tuple(share for share, _ in recorded)
    cloning = not options.config.model.hears_returns
    parts = [*load_each(options.dataset, options.reading, environment, resumed, without_rewards=cloning)]
    dataset = join(parts, fraction, options.config.training.seed)
    if environment is None:
        dataset = with_limited_environment(dataset, options.env)
    options.config.check_rewards(dataset.name, dataset.rewards_from)
    if options.output is None and begins:
        _check_begun(run_folder(Path("runs"), dataset, options.config.training.seed))
    return dataset, environment


def _check_begun(folder: Path) -> None:
    """Refuse to begin a run where one cannot be. Under torchrun it may be its own, which `train` tells apart."""
    check_folder(folder)
    if distributed.launch_id() is None:
        check_new_run(folder)


def data_of_many(options: TrainMany) -> tuple[list[Dataset], EnvironmentSpec | None]:
    """The datasets that `dt train-many` is given, and the environment that it is given beside them."""
    config, limit = options.config, options.minutes
    require(config.training.seed == 0, f"seed {config.training.seed}: train-many has --seeds")
    require(limit is None or 0 <= limit < math.inf, f"minutes must be 0 or more and finite, not {limit}")
    environment = environment_to_play_in(options.env)
    cloning = not config.model.hears_returns
    datasets = [*load_each(options.dataset, options.reading, environment, without_rewards=cloning)]
    if environment is None:
        datasets = [with_limited_environment(dataset, options.env) for dataset in datasets]
    for dataset in datasets:
        config.check_rewards(dataset.name, dataset.rewards_from)
    cells_of(datasets, config, options.seeds, options.output)
    return datasets, environment


def load_each(
    sources: Sequence[str],
    reading: Reading,
    environment: EnvironmentSpec | None = None,
    resumed: Path | None = None,
    *,
    without_rewards: bool = False,
) -> Iterator[Dataset]:
    """The datasets that a command is given, one after the other, read as its options say.

    resumed: a run whose spaces and reading options are used where the command gives none.
    without_rewards: read recordings that have no rewards too.
    """
    if not sources:
        raise ConfigError("no dataset named")
    spaces, options = declared(reading.spaces, resumed), options_for(reading, sources)
    if resumed and not any(map(ReadingOptions.is_said, options)):
        options = [each for _, each in _recorded_parts(resumed, len(sources))] or options
    if without_rewards:
        options = [replace(each, reward=each.reward or "none") for each in options]
    how: dict[str, Any] = {"download": reading.download, "skip_bad_episodes": reading.skip_bad_episodes}
    for source, each in zip(sources, options, strict=True):
        yield load(source, spaces=spaces, environment=environment, **vars(each), **how)


def seen_in(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """`in_environment` for `dt inspect`, which makes the environment and refuses one of other spaces."""
    if environment is not None:
        environment = environment.leaving_out(dataset.leave_out)
        info = environment.info()
        recorded = (dataset.observation_space, dataset.action_space)
        check_spaces(environment, recorded, (info.observation_space, info.action_space))
    return in_environment(dataset, environment)


def in_environment(dataset: Dataset, environment: EnvironmentSpec | None) -> Dataset:
    """A dataset in the environment that the user names, with its step limit and reference returns."""
    if environment is None:
        return dataset
    recorded = dataset.environment
    if recorded is not None and recorded.id == environment.id and recorded.put_back != environment.put_back:
        names = ", ".join(wrapper.name for wrapper in recorded.put_back)
        note = f"recorded inside the wrappers {names}; --environment {environment.id} is played without them"
        dataset = replace(dataset, notes=(*dataset.notes, note))
    reference = reference_in(environment, dataset.environment, dataset.reference)
    environment = environment.leaving_out(dataset.leave_out)
    return replace(dataset, environment=environment, reference=reference)


def with_limited_environment(dataset: Dataset, env: EnvironmentSettings) -> Dataset:
    """A dataset whose own environment has the step limit of the options."""
    if env.max_episode_steps is None:
        return dataset
    return in_environment(dataset, with_step_limit(dataset.environment, env))


def check_request(options: Evaluate) -> EnvironmentSpec | None:
    """Refuse what `dt evaluate` cannot write and what is no run; the environment that it is given."""
    _check_environment_seed(options.seed)
    _check_scoring_seed(options.seed)
    _check_places(options)
    environment = environment_to_play_in(options.env)
    folder, source = find_run(options.run, options.download)
    if source is not None:
        tell(f"run           {source} in {folder}")
    _check_trained_run(folder)
    return environment


def check_calibration(options: Calibrate) -> EnvironmentSpec | None:
    """Refuse what is no run for `dt calibrate`; the environment that it is given."""
    environment = environment_to_play_in(options.env)
    _check_trained_run(options.run)
    return environment


def check_export(options: Export) -> EnvironmentSpec | None:
    """Refuse what is no run for `dt export`, a folder that is taken and missing packages; the environment given."""
    check_folder(options.output)
    check_new(options.output)
    environment = environment_to_play_in(options.env)
    _check_trained_run(options.run)
    missing = [name for name in NEEDED_TO_EXPORT if options.format == "onnx" and find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format onnx needs {', '.join(missing)}: pip install 'decision-transformer[export]'")
    recorded = environment_in(read_description(options.run / "run.json"))
    if options.verify and environment is None and recorded is None:
        raise ConfigError(f"{options.run}: --verify plays in an environment, and the run names none: --environment ID")
    return environment


def _check_environment_seed(seed: int) -> None:
    require(0 <= seed < 2**32, f"seed must be at least 0 and below 2^32, not {seed}")


def _check_scoring_seed(seed: int) -> None:
    """Refuse seeds on which runs are calibrated: their scores would be of episodes that chose the requests."""
    for first in (seed, seed + SWEEP_OFFSET):
        require(
            not CALIBRATION_SEED <= first < CALIBRATION_SEED + CALIBRATION_SEEDS,
            f"seed {seed}: runs are calibrated on environment seeds {CALIBRATION_SEED} to "
            f"{CALIBRATION_SEED + CALIBRATION_SEEDS - 1}, so scores would not be of unseen episodes; give another seed",
        )


def _check_trained_run(folder: Path) -> None:
    """Raise `CheckpointError` where this is no run, or one without a checkpoint."""
    if folder.parts[:1] == ("hf:",):
        name = "/".join(folder.parts[1:])
        raise ConfigError(
            f"hf://{name}: this command takes a run's folder; dt evaluate hf://{name} --download prints where it is"
        )
    check_run(folder)
    read_description(folder / "run.json")
    if not checkpoints(folder):
        raise CheckpointError(f"{folder}: no checkpoint in it")


def _check_places(options: Evaluate) -> None:
    """Refuse what could not be written, before hours are played for it."""
    for path in (options.json, options.plot):
        if path is not None:
            check_place(path, picture=path == options.plot)
    if options.video is not None:
        check_folder(options.video)


def import_data(options: Import) -> None:
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


def recording_environment(options: Record) -> EnvironmentSpec:
    """The environment that `dt record` plays in; a policy that is none, and what does not go with it, is refused."""
    from envs.datasets.writer import new_folder

    new_folder(options.dataset_id)  # refused before anything is played
    arguments = environment_arguments(options.env)
    environment = EnvironmentSpec(options.environment, arguments, options.env.max_episode_steps)
    environment.check_registered()
    _check_environment_seed(options.seed)
    config, policy = options.config, options.policy
    if config.target_return == "auto":
        raise ConfigError("--target-return auto chooses what is scored; a recording asks for returns that are named")
    if options.vec_normalize is not None and (policy == "random" or names_run(policy)):
        raise ConfigError(f"--vec-normalize is of a Stable-Baselines3 policy, and {policy} is none")
    if names_run(policy):
        _check_trained_run(Path(policy))
        return environment.leaving_out(left_out_in(read_description(Path(policy) / "run.json")["dataset"]))
    if config.named_targets:
        raise ConfigError(f"--target-return is asked of a run, and {policy} is none")
    if policy != "random":
        saved_algorithm(Path(policy), options.trust)
    return environment


def published_model(options: ImportHuggingFace) -> Published:
    """What `dt import-huggingface` makes a run of, all but the weights; a place for it that is taken is refused."""
    check_folder(options.output)
    check_new(options.output)
    return read_published(
        options.model,
        context_length=options.context_length,
        return_scale=options.return_scale,
        normalizer=options.normalizer,
        dataset=load(options.dataset) if options.dataset is not None else None,
        environment=environment_to_play_in(options.env),
    )


def environment_of(env: EnvironmentOptions) -> EnvironmentSpec | None:
    """The environment that the options name, None where they name none."""
    kwargs = environment_arguments(env)
    if env.environment is None:
        if kwargs:
            raise ConfigError("--environment-kwargs needs --environment")
        return None
    return EnvironmentSpec(env.environment, kwargs, env.max_episode_steps)


def with_step_limit(environment: EnvironmentSpec | None, env: EnvironmentSettings) -> EnvironmentSpec:
    """An environment that a file names, with the step limit of the options."""
    if environment is None:
        raise ConfigError("--max-episode-steps needs an environment; --environment ID names one")
    return replace(environment, max_episode_steps=env.max_episode_steps)


def environment_to_play_in(env: EnvironmentOptions) -> EnvironmentSpec | None:
    """The same of a command that plays: one that is not registered is refused."""
    environment = environment_of(env)
    if environment is not None:
        environment.check_registered()
    return environment


def environment_arguments(env: EnvironmentSettings) -> dict[str, Any]:
    """What the options say an environment is made with; the module that they name is imported first."""
    if env.import_module:
        import_environments(env.import_module)
    try:
        kwargs = json.loads(env.environment_kwargs or "{}")
    except (ValueError, RecursionError):
        raise ConfigError(f"--environment-kwargs: not JSON: {str(env.environment_kwargs)[:80]}") from None
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--environment-kwargs: not a JSON object: {str(env.environment_kwargs)[:80]}")
    if "max_episode_steps" in kwargs:
        raise ConfigError(
            "--environment-kwargs: max_episode_steps is not an argument of the environment. Use --max-episode-steps N"
        )
    limit = env.max_episode_steps
    require(limit is None or limit >= 1, f"max_episode_steps must be at least 1, not {limit}")
    return kwargs


def declared(spaces: str | None, resumed: Path | None = None) -> dict[str, Any]:
    """The spaces that the user declares, or those that a run to resume was begun with."""
    if spaces is not None:
        return spaces_from_json(spaces)
    if resumed is None:
        return {}
    return declared_spaces(f"{resumed}/run.json", read_description(resumed / "run.json"))


def options_for(reading: Reading, sources: Sequence[str]) -> list[ReadingOptions]:
    """How each source is read; a Minari dataset goes by its own names and rows, whatever is said of flat files."""
    pairs = [each.partition("=") for each in reading.columns]
    for text, (field, sign, names) in zip(reading.columns, pairs, strict=True):
        if not (field and sign and names):
            raise ConfigError(f"--columns: {text!r}, expected FIELD=COLUMN or FIELD=COLUMN,COLUMN,...")
    if twice := [field for field, _, _ in pairs if [other for other, _, _ in pairs].count(field) > 1]:
        raise ConfigError(f"--columns: {twice[0]} twice; several columns are FIELD=COLUMN,COLUMN,...")
    said = ReadingOptions.of(
        columns={field: names.split(",") for field, _, names in pairs},
        episode_length=reading.episode_length,
        file_is_episode=reading.file_is_episode,
        last_row_is_final=reading.last_row_is_final,
        leave_out=reading.leave_out,
        reward=reading.reward,
    )
    flat = [is_flat(Path(source)) or is_lerobot(Path(source)) or on_hub(source) for source in sources]
    usual = replace(said, columns={}, episode_length=None, file_is_episode=False, last_row_is_final=False)
    for name in ("columns", "episode_length", "file_is_episode", "last_row_is_final"):
        if getattr(said, name) != getattr(usual, name) and not any(flat):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} is for files ({', '.join(READERS)}), and {' '.join(sources)} is none")
    return [said if is_one else usual for is_one in flat]


def _recorded_parts(resumed: Path, datasets: int) -> list[tuple[float, ReadingOptions]]:
    """Fraction and reading options of each dataset of a run to resume; none if it has a different number of them."""
    parts = read_description(resumed / "run.json")["dataset"].get("parts", ())
    return [(part["fraction"], reading_in(part)) for part in parts] if len(parts) == datasets else []
