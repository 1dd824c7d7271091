"""The command line: `dt train`, `evaluate`, `inspect`, `import`. Results go to standard output, messages to error."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, subcommand

from dt.config import Config, EvaluationConfig
from dt.presets import PRESETS
from transformer.config import ConfigError

if TYPE_CHECKING:
    from dt.evaluation import TargetResult
    from dt.training import Run
    from envs.worlds import EnvironmentSpec


@dataclass(frozen=True, kw_only=True)
class World:
    """Where to play, if not in the registered environment that the dataset names."""

    environment: str | None = None
    """Id of a registered Gymnasium environment."""
    environment_kwargs: str | None = None
    """What the environment is made with, as a JSON object."""
    import_module: Annotated[str | None, tyro.conf.arg(name="import", metavar="MODULE")] = None
    """A Python module to import first, which registers environments."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a Decision Transformer on a dataset, evaluate it, and leave a run folder."""

    dataset: Positional[str]
    """A Minari id or folder, or an .npz, .hdf5, .csv or .parquet file; hopper/replay-v0 ships with the package."""
    preset: Literal["default", "demo", "paper-hopper", "paper-halfcheetah", "paper-walker2d"] = "default"
    """A named run to start from; the other options change it."""
    output: Path | None = None
    """The run's folder; runs/DATASET-sSEED if not given."""
    resume: bool = False
    """Go on with the run in --output from its newest checkpoint, with its configuration."""
    download: bool = False
    """Fetch the dataset from Minari's server if it is not here."""
    spaces: str | None = None
    """Spaces of data that declares none or wrong ones: JSON, or a JSON file, with observation_space, action_space."""
    world: World = field(default_factory=World)
    config: Config = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Ask a trained run for returns in its environment."""

    run: Positional[Path]
    """A run's folder."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint: the newest, or the one that scored best on the way."""
    seed: int = 0
    """Episode i of each target starts from world seed SEED + i."""
    json: Path | None = None
    """Also write the results to this file."""
    plot: Path | None = None
    """Also draw asked against achieved into this PNG."""
    video: Path | None = None
    """Also film the first episode at each target into this folder (pip install 'imageio[ffmpeg]')."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    world: World = field(default_factory=World)
    config: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Tell what a dataset holds, or what a run is and how it scored."""

    what: Positional[str]
    """A dataset (Minari id or folder, .npz, .hdf5, .csv or .parquet file) or a run's folder."""
    download: bool = False
    """Fetch the dataset from Minari's server if it is not here."""
    spaces: str | None = None
    """Spaces of data that declares none or wrong ones: JSON, or a JSON file, with observation_space, action_space."""
    plot: Path | None = None
    """Also draw a dataset's returns into this PNG."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Write data as a Minari dataset, under Minari's root."""

    source: Positional[str]
    """A Minari id or folder, or an .npz, .hdf5, .csv or .parquet file."""
    dataset_id: Positional[str]
    """Its id from now on, such as mine/door-v0; one that exists is refused."""
    download: bool = False
    """Fetch the source from Minari's server if it is not here."""
    spaces: str | None = None
    """Spaces of data that declares none or wrong ones: JSON, or a JSON file, with observation_space, action_space."""
    world: World = field(default_factory=World)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 2 bad input, 3 training broke down, 130 and 143 signals."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = _parse(arguments)
        if isinstance(command, Train):
            return _train(command)
        if isinstance(command, Import):
            return _import(command)
        return _evaluate(command) if isinstance(command, Evaluate) else _inspect(command)
    except (ConfigError, OSError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from dt.policy import PolicyError
        from envs.readers import DataError
        from envs.worlds import WorldError
        from transformer.checkpoint import CheckpointError
        from transformer.training import NonFiniteError, Stopped

        if isinstance(error, DataError | WorldError | CheckpointError | PolicyError):
            return _refuse(error)
        if isinstance(error, NonFiniteError):
            return _refuse(error, 3)
        if isinstance(error, Stopped):
            return _refuse(error, error.code)
        raise


def _refuse(error: Exception, code: int = 2) -> int:
    print(f"dt: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _parse(arguments: list[str]) -> Train | Evaluate | Inspect | Import:
    """Options in two passes: the preset, or the run to resume, first gives every other option its default."""
    start = Train(dataset=tyro.MISSING, config=_starting_config(arguments))
    commands = (
        Annotated[Train, subcommand("train", default=start)]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Inspect, subcommand("inspect")]
        | Annotated[Import, subcommand("import")]
    )
    return tyro.cli(
        commands,
        prog="dt",
        args=arguments,
        description="Decision Transformers: learn from recorded trajectories, ask for a return, get it.",
        config=(OmitArgPrefixes, OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _starting_config(arguments: list[str]) -> Config:
    if "--resume" in arguments and (folder := _option(arguments, "output")):
        from transformer.checkpoint import read_json

        document = read_json(Path(folder) / "run.json")
        return Config.from_json(document.get("config") if isinstance(document, dict) else None)
    preset = _option(arguments, "preset")
    return PRESETS.get(preset or "default", PRESETS["default"])()


def _option(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == f"--{name}" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"--{name}="):
            return argument.split("=", 1)[1]
    return None


def _train(options: Train) -> int:
    from envs.datasets import load
    from envs.worlds import MissingWorldError

    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output, the run's folder")
    environment = _environment(options.world)
    spaces = _spaces(options.spaces, options.output if options.resume else None)
    dataset = load(options.dataset, download=options.download, spaces=spaces, environment=environment)
    from dt.inspection import describe_dataset
    from dt.training import load_run, train

    config = options.config
    default = Path("runs") / f"{dataset.name.replace('/', '-')}-s{config.training.seed}"
    folder = options.output or default
    _tell(describe_dataset(dataset))
    run = train(dataset, config, folder, environment=environment, resume=options.resume)
    if run.environment is None:
        _tell(f"no environment is named, so there is no score; the run is in {folder}")
        return 0
    try:
        results = _score(run, "last", config.evaluation)
    except MissingWorldError as error:
        _tell(f"no score: {error}\nrun folder    {folder}")
        return 0
    _print_results(results, run)
    if (folder / "best.json").exists():
        from dt.training import BEST_SEED

        _tell("\nbest on the way, scored anew on seeds that did not choose it:")
        best = load_run(folder, "best", run.model.return_scale.device)
        _print_results(_score(best, "best", config.evaluation, seed=BEST_SEED), best)
    _tell(
        f"\nrun folder    {folder}"
        f"\npicture       {folder / 'results' / 'asked-against-achieved.png'}"
        f"\ncurves        tensorboard --logdir {folder / 'tensorboard'}"
        f"\nask it again  dt evaluate {folder} --target-return G"
    )
    return 0


def _evaluate(options: Evaluate) -> int:
    from dt.report import plot_asked_against_achieved
    from dt.training import load_run
    from transformer.checkpoint import write_json
    from transformer.training import pick_device

    run = load_run(options.run, options.checkpoint, pick_device(options.device))
    environment = _environment(options.world) or run.environment
    if environment is None:
        raise ConfigError(f"{options.run}: the dataset names no environment; --environment ID does")
    run = replace(run, environment=environment)
    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{path}: its folder does not exist")
    results = _play(run, options.config, options.seed)
    _print_results(results, run)
    if options.json:
        write_json(options.json, _document(results, run, options.seed))
    if options.plot:
        plot_asked_against_achieved(results, options.plot, run.dataset["name"], run.dataset["maximum"])
    if options.video:
        from dt.video import film

        for path in film(run, [result.target_return for result in results], options.seed, options.video):
            _tell(f"film          {path}")
    return 0


def _inspect(options: Inspect) -> int:
    if (Path(options.what) / "run.json").exists():
        from dt.report import describe_run
        from dt.training import load_run

        print(describe_run(load_run(options.what)))
        return 0
    return _inspect_dataset(options)


def _inspect_dataset(options: Inspect) -> int:
    from envs.datasets import load
    from envs.readers import DataError

    if options.plot is not None and not options.plot.parent.is_dir():
        raise ConfigError(f"{options.plot}: its folder does not exist")
    try:
        dataset = load(options.what, download=options.download, spaces=_spaces(options.spaces))
    except DataError as error:
        for problem in error.problems[:20]:
            _tell(f"dt: {' '.join(problem.split())}")
        if len(error.problems) > 20:
            _tell(f"dt: and {len(error.problems) - 20} more")
        return 2
    from dt.inspection import describe_dataset, plot_dataset

    print(describe_dataset(dataset))
    if options.plot is not None:
        plot_dataset(dataset, options.plot)
    return 0


def _import(options: Import) -> int:
    from envs.datasets import load
    from envs.writer import new_folder, write_minari

    new_folder(options.dataset_id)  # refused before anything is read
    environment, spaces = _environment(options.world), _spaces(options.spaces)
    dataset = load(options.source, download=options.download, spaces=spaces, environment=environment)
    for note in dataset.notes:
        _tell(f"note          {note}")
    folder = write_minari(dataset, options.dataset_id)
    print(f"{options.dataset_id}: {dataset.num_episodes} episodes, {dataset.num_steps} steps, in {folder}")
    return 0


def _spaces(given: str | None, resumed: Path | None = None) -> "dict[str, Any]":
    """The spaces that the user declares, or those that a run to resume was begun with."""
    from envs.readers import declared_spaces, spaces_from_json

    if given is not None:
        return spaces_from_json(given)
    if resumed is None:
        return {}
    from transformer.checkpoint import read_json

    return declared_spaces(f"{resumed}/run.json", read_json(resumed / "run.json"))


def _environment(world: World) -> "EnvironmentSpec | None":
    from envs.worlds import EnvironmentSpec, import_environments

    if world.import_module:
        import_environments(world.import_module)
    try:
        kwargs = json.loads(world.environment_kwargs or "{}")
    except ValueError:
        raise ConfigError(f"--environment-kwargs: not JSON: {world.environment_kwargs}") from None
    if not isinstance(kwargs, dict):
        raise ConfigError(f"--environment-kwargs: not a JSON object: {world.environment_kwargs}")
    if world.environment is None:
        if kwargs:
            raise ConfigError("--environment-kwargs needs --environment")
        return None
    return EnvironmentSpec(world.environment, kwargs)


def _play(run: "Run", config: EvaluationConfig, seed: int) -> "list[TargetResult]":
    from tqdm import tqdm

    from dt.evaluation import check_environment, evaluate
    from dt.policy import ReturnConditionedPolicy

    assert run.environment is not None
    check_environment(run.environment, run.model)
    targets = config.target_return or tuple(run.dataset["targets"])
    with tqdm(total=len(targets) * config.episodes, unit="episode", desc="evaluate") as bar:
        return evaluate(
            ReturnConditionedPolicy(run.model),
            run.environment,
            targets,
            episodes=config.episodes,
            seed=seed,
            num_worlds=config.num_worlds,
            reference=run.reference,
            on_episode=lambda _: bar.update(),
        )


def _score(run: "Run", which: str, config: EvaluationConfig, seed: int = 0) -> "list[TargetResult]":
    """Score a finished run and leave results and picture in its folder."""
    from dt.report import plot_asked_against_achieved
    from transformer.checkpoint import write_json

    results = _play(run, config, seed)
    folder = run.folder / "results"
    folder.mkdir(exist_ok=True)
    write_json(folder / f"{which}.json", _document(results, run, seed))
    picture = folder / ("asked-against-achieved.png" if which == "last" else f"asked-against-achieved-{which}.png")
    plot_asked_against_achieved(results, picture, f"{run.dataset['name']} ({which})", run.dataset["maximum"])
    return results


def _document(results: "list[TargetResult]", run: "Run", seed: int) -> dict[str, Any]:
    from dt.report import results_document
    from dt.training import versions

    assert run.environment is not None
    return results_document(
        results,
        dataset=run.dataset["name"],
        environment=run.environment.id,
        versions=versions(),
        reference=run.reference,
        checkpoint=run.checkpoint.name,
        seed=seed,
    )


def _print_results(results: "list[TargetResult]", run: "Run") -> None:
    from dt.report import score_table

    assert run.environment is not None
    print(f"{run.dataset['name']} in {run.environment.id}, checkpoint {run.checkpoint.name}")
    print(score_table(results, run.reference))


def _tell(message: str) -> None:
    print(message, file=sys.stderr)
