"""What can be said to each command, and in what words it is explained: `dt.cli` reads them, the commands do them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dt.config import FINAL_SEED, RECORDING_SEED, CalibrationConfig, Config, EvaluationConfig, PlayConfig


@dataclass(frozen=True, kw_only=True)
class EnvironmentSettings:
    """What the environment is made with, and where it comes from."""

    environment_kwargs: str | None = None
    """What the environment is made with, as a JSON object."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated, in place of the environment's own limit."""
    import_module: Annotated[str | None, arg(name="import", metavar="MODULE")] = None
    """A Python module to import first, which registers environments."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentOptions(EnvironmentSettings):
    """Where to play, if not in the registered environment that the dataset names."""

    environment: str | None = None
    """Id of a registered Gymnasium environment."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read."""

    download: bool = False
    """Fetch datasets that are not here: from Minari's server, or hf://datasets/USER/NAME from the Hugging Face hub."""
    skip_bad_episodes: bool = False
    """Leave out episodes that are broken or hold NaN, infinity, nothing or no such choice, and say which and why."""
    spaces: Annotated[str | None, arg(metavar="JSON|FILE")] = None
    """Spaces of data that declares none or wrong ones: JSON, or a JSON file, such as
    {"action_space": {"type": "Discrete", "n": 3}}; with observation_space or without."""
    columns: Annotated[tuple[str, ...], arg(metavar="FIELD=COLUMN,... ...", help_behavior_hint="")] = ()
    """Which columns or arrays of a file hold which field, where their names are not the usual ones, such as
    episode=ep_id observations=x,x_dot actions=act rewards=rew done=done."""
    episode_length: Annotated[int | None, arg(metavar="N")] = None
    """Steps of an episode, in files that do not mark every end: one is cut after N steps, unless a flag ends it
    sooner."""
    file_is_episode: bool = False
    """All rows of a file are one episode."""
    last_row_is_final: bool = False
    """The last row of each episode holds an observation only. RLDS and OGBench are known to be so."""
    leave_out: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """Parts of the observations that are not read, such as texts (mission), in the data and in the environment."""
    reward: Literal["success", "last", "none"] | None = None
    """Rewards of demonstrations that have none: 1 at each step at which the recorded success flag is true (success), or
    at each episode's last step (last), else 0; or a recording without rewards as it is (none)."""


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a Decision Transformer on a dataset, evaluate it, and leave a run folder."""

    dataset: Annotated[Positional[tuple[str, ...]], arg(metavar="DATASET ...", help_behavior_hint="")]
    """A Minari id, or a file or folder in a format that docs/data.md lists, such as CSV or HDF5; several are learned
    from as one. hopper/replay-v0 ships with the package."""
    fraction: Annotated[tuple[float, ...], arg(help_behavior_hint="")] = ()
    """Share of each dataset's episodes, drawn by the seed: one number for each dataset, or one for all."""
    preset: Literal["default", "demo", "paper-hopper", "paper-halfcheetah", "paper-walker2d", "paper-breakout"] = (
        "default"
    )
    """A named run to start from; the other options change it. A resumed run has its own configuration instead."""
    start: Annotated[Path | None, arg(name="config", metavar="RUN|FILE")] = None
    """Instead of a preset, a run's folder or a JSON file of its configuration to start from; the other options change
    it."""
    print_config: bool = False
    """Print the settled configuration as JSON, which --config takes, and train nothing."""
    output: Path | None = None
    """The run's folder; runs/DATASET-sSEED if not given."""
    resume: bool = False
    """Go on with the run in --output from its newest checkpoint, with its configuration."""
    reading: Reading = field(default_factory=Reading)
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    config: Config = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class TrainMany:
    """Train several seeds, on one dataset or on several of one shape, side by side as one program."""

    dataset: Annotated[Positional[tuple[str, ...]], arg(metavar="DATASET ...", help_behavior_hint="")]
    """Datasets, each as in dt train; each is learned from by itself, at each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train; replaces --seed."""
    preset: Literal["default", "demo", "paper-hopper", "paper-halfcheetah", "paper-walker2d", "paper-breakout"] = (
        "default"
    )
    """A named run to start from; the other options change it."""
    start: Annotated[Path | None, arg(name="config", metavar="RUN|FILE")] = None
    """As in dt train, but for the seed, which --seeds replaces."""
    output: Path = Path("runs")
    """Where the runs' folders, DATASET-sSEED, lie. The same command again goes on with what is there."""
    minutes: float | None = None
    """Stop after so long, with a checkpoint of each run."""
    reading: Reading = field(default_factory=Reading)
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    config: Config = field(default_factory=Config)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Ask a trained run for returns in its environment."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """A run's folder, or hf://USER/NAME[@REVISION] on the Hugging Face hub."""
    download: bool = False
    """Fetch a run of the hub that is not here. Nothing is fetched without it."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint: the newest, or the one that scored best on the way."""
    seed: int = FINAL_SEED
    """Episode i of each target starts from environment seed SEED + i."""
    dataset: Annotated[tuple[str, ...], arg(metavar="SOURCE ...", help_behavior_hint="")] = ()
    """Where the data lies now that a run without an environment is measured on: as many, and in the order, as the run
    learned from. It must be the same data."""
    json: Path | None = None
    """Also write the results to this file."""
    plot: Path | None = None
    """Also draw target against achieved return into this file; its suffix is the kind of picture: .png, .pdf, ..."""
    video: Path | None = None
    """Also film the first episode at each target into this folder. It needs the extra video, or
    pip install 'imageio[ffmpeg]'."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 plays faster where the hardware has such products; its returns are a little different. auto takes the
    precision of the run's training."""
    cached: bool = False
    """Reuse keys and values between steps. It is several times faster but a slightly different policy: a full window
    restarts from its most recent half."""
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    config: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Measure which request earns which return, so that a run earns its target returns; dt train does so by itself."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder; the calibration is written into it."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint: the newest, or the one that scored best on the way."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the model runs; auto takes a GPU if there is one."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """As in dt evaluate; a calibration holds for one precision."""
    cached: bool = False
    """As in dt evaluate; a calibration holds with or without."""
    dataset: Annotated[tuple[str, ...], arg(metavar="SOURCE ...", help_behavior_hint="")] = ()
    """What the run was trained on. Needed if the run does not know its data's returns: it was imported, or it is of an
    earlier version and its data has moved."""
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    play: PlayConfig = field(default_factory=PlayConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Tell what a dataset holds, or what a run is and how it scored."""

    what: Annotated[Positional[tuple[str, ...]], arg(metavar="DATASET|RUN ...", help_behavior_hint="")]
    """A dataset, as in dt train, or a run's folder; several datasets are described as one."""
    reading: Reading = field(default_factory=Reading)
    plot: Annotated[Path | None, arg(metavar="FILE")] = None
    """Also draw a dataset's returns into this file. Its suffix is the kind of picture: .png, .pdf, .svg, ..."""
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write runs of one environment as one HTML file to look at: data, curves, target and achieved return, films."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN ...", help_behavior_hint="")]
    """Folders of runs. Seeds of one training are shown together, with intervals."""
    output: Path = Path("report.html")
    """The file to write; one that is there is replaced."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run's policy as a folder that acts without this package: a model, policy.json and runner.py."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder."""
    output: Path
    """The folder to write, a new one."""
    format: Literal["onnx", "torch-export"] = "onnx"
    """onnx runs in onnxruntime, torch-export in torch. onnx needs pip install 'decision-transformer[export]'."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint: the newest, or the one that scored best on the way."""
    calibration: bool = True
    """Take the run's calibration along."""
    verify: bool = False
    """Play 300 steps of the environment and compare each action with the original's, before anything is written."""
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)


@dataclass(frozen=True, kw_only=True)
class Push:
    """Send a run to the Hugging Face hub, with a model card; lists the files and asks first."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run's folder."""
    repository: Annotated[Positional[str], arg(metavar="USER/NAME")]
    """The repository; it is made if there is none."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint: the newest, or the one that scored best on the way."""
    private: bool = False
    """A new repository can be seen by its owner only."""
    yes: bool = False
    """Send without asking; needed where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class ImportHuggingFace:
    """Make a run of a Decision Transformer that Hugging Face's library has trained."""

    model: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """Its folder, with config.json and model.safetensors."""
    output: Path
    """The run's folder, a new one."""
    context_length: int
    """Steps that it was trained to see, K; 20 in the paper's Gym environments."""
    return_scale: float
    """What returns were divided by in its training; 1000 in the paper's Gym environments."""
    normalizer: Path | None = None
    """The states' mean and deviation in its training: a JSON file {"mean": [...], "std": [...]}."""
    dataset: str | None = None
    """Instead of --normalizer, the dataset that it was trained on: a Minari id, a folder or a file."""
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)


@dataclass(frozen=True, kw_only=True)
class Import:
    """Write data as a Minari dataset, under Minari's root."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """A dataset, as in dt train."""
    dataset_id: Annotated[Positional[str], arg(metavar="DATASET_ID")]
    """Its id from now on, such as mine/door-v0; one that exists is refused."""
    reading: Reading = field(default_factory=Reading)
    env: EnvironmentOptions = field(default_factory=EnvironmentOptions)


@dataclass(frozen=True, kw_only=True)
class Record:
    """Play a policy in an environment and write its episodes as a Minari dataset, under Minari's root."""

    environment: Annotated[Positional[str], arg(metavar="ENVIRONMENT")]
    """Id of a registered Gymnasium environment."""
    dataset_id: Annotated[Positional[str], arg(metavar="DATASET_ID")]
    """The dataset's id, such as mine/hopper-medium-v0; one that exists is refused."""
    policy: Annotated[str, arg(metavar="random|RUN|FILE")]
    """random draws from the action space; a run's folder; or a file of Stable-Baselines3's, which needs --trust."""
    checkpoint: Literal["last", "best"] = "last"
    """Which checkpoint of a run."""
    trust: bool = False
    """Open files of Stable-Baselines3's: they are pickle, which may run any code."""
    vec_normalize: Annotated[str | None, arg(metavar="FILE")] = None
    """What VecNormalize.save wrote, for a policy that was trained on observations so scaled; needs --trust."""
    seed: int = RECORDING_SEED
    """Episode i (of each target, if a run is given several) starts from environment seed SEED + i. Models are scored on
    other seeds."""
    env: EnvironmentSettings = field(default_factory=EnvironmentSettings)
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
