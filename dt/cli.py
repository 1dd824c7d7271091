"""The command line: `dt train`, `dt evaluate`, `dt inspect`. Results on standard output, messages on standard error."""

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
    """A Minari id, a Minari dataset's folder, or an .npz file; hopper/replay-v0 ships with the package."""
    preset: Literal["default", "demo", "paper-hopper", "paper-halfcheetah", "paper-walker2d", "paper-breakout"] = (
        "default"
    )
    """A named run to start from; the other options change it."""
    output: Path | None = None
    """The run's folder; runs/DATASET-sSEED if not given."""
    resume: bool = False
    """Go on with the run in --output from its newest checkpoint, with its configuration."""
    download: bool = False
    """Fetch the dataset from Minari's server if it is not here."""
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
    """A dataset (Minari id, folder or .npz file) or a run's folder."""
    download: bool = False
    """Fetch the dataset from Minari's server if it is not here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 2 bad input, 3 training broke down, 130 and 143 signals."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        command = _parse(arguments)
        if isinstance(command, Train):
            return _train(command)
        return _evaluate(command) if isinstance(command, Evaluate) else _inspect(command)
    except (ConfigError, OSError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from dt.policy import PolicyError
        from envs.datasets import DataError
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


def _parse(arguments: list[str]) -> Train | Evaluate | Inspect:
    """Options in two passes: the preset, or the run to resume, first gives every other option its default."""
    start = Train(dataset=tyro.MISSING, config=_starting_config(arguments))
    commands = (
        Annotated[Train, subcommand("train", default=start)]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Inspect, subcommand("inspect")]
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
    from dt.report import describe_dataset
    from dt.training import load_run, train
    from envs.datasets import load
    from envs.worlds import MissingWorldError

    if options.resume and options.output is None:
        raise ConfigError("--resume needs --output, the run's folder")
    environment = _environment(options.world)
    dataset = load(options.dataset, download=options.download)
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
        write_json(options.json, _document(results, run, options.seed, options.config.temperature))
    if options.plot:
        plot_asked_against_achieved(results, options.plot, run.dataset["name"], run.dataset["maximum"])
    if options.video:
        from dt.video import film

        targets, temperature = [result.target_return for result in results], options.config.temperature
        for path in film(run, targets, options.seed, options.video, temperature):
            _tell(f"film          {path}")
    return 0


def _inspect(options: Inspect) -> int:
    from dt.report import describe_dataset, describe_run

    if (Path(options.what) / "run.json").exists():
        from dt.training import load_run

        print(describe_run(load_run(options.what)))
    else:
        from envs.datasets import load

        print(describe_dataset(load(options.what, download=options.download)))
    return 0


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
            ReturnConditionedPolicy(run.model, temperature=config.temperature),
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
    write_json(folder / f"{which}.json", _document(results, run, seed, config.temperature))
    picture = folder / ("asked-against-achieved.png" if which == "last" else f"asked-against-achieved-{which}.png")
    plot_asked_against_achieved(results, picture, f"{run.dataset['name']} ({which})", run.dataset["maximum"])
    return results


def _document(results: "list[TargetResult]", run: "Run", seed: int, temperature: float) -> dict[str, Any]:
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
        temperature=temperature,
    )


def _print_results(results: "list[TargetResult]", run: "Run") -> None:
    from dt.report import score_table

    assert run.environment is not None
    print(f"{run.dataset['name']} in {run.environment.id}, checkpoint {run.checkpoint.name}")
    print(score_table(results, run.reference))


def _tell(message: str) -> None:
    print(message, file=sys.stderr)
