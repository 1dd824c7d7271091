"""Films of episodes: what a policy does when it is asked for a return."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from dt.evaluation import labels
from dt.learning.run import Run
from dt.policy import ReturnConditionedPolicy
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode, rollout
from envs.simulate.spec import EnvironmentSpec
from transformer.errors import ConfigError


def check_camera(environment: EnvironmentSpec, env_timeout: float | None = None) -> None:
    """Raise `ConfigError` or `EnvError` unless films of this environment can be made here: one picture is taken."""
    if find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None:
        raise ConfigError("--video needs imageio and ffmpeg: pip install 'imageio[ffmpeg]'")
    with _filmed(environment, env_timeout) as environments:
        environments.reset(0, seed=0)
        environments.render(0)


def film(
    run: Run,
    policy: ReturnConditionedPolicy,
    targets: Sequence[float],
    seed: int,
    folder: Path,
    env_timeout: float | None = None,
) -> list[Path]:
    """Film the episode of this seed at each target into `folder`, as MP4, from its reset on; returns the files.

    Each picture goes to its file as it is made; a film takes its name when it is complete.
    """
    import imageio.v2 as imageio

    assert run.environment is not None
    targets = list(dict.fromkeys(targets))
    paths = [folder / f"target-{label}.mp4" for label in labels(targets)]
    folder.mkdir(parents=True, exist_ok=True)
    with _filmed(run.environment, env_timeout) as environments:
        for target, path in zip(targets, paths, strict=True):
            # A folder of its own: no link can have been laid there, and an ffmpeg that is still starting when a signal
            # ends this has nowhere left to write.
            with TemporaryDirectory(dir=folder, prefix=".filming-", ignore_cleanup_errors=True) as own:
                unfinished = Path(own, path.name)
                writer: Any = imageio.get_writer(
                    unfinished, fps=environments.info.frames_per_second, macro_block_size=8
                )
                with writer:
                    _play(environments, policy, EpisodeRequest(seed, target), writer.append_data)
                unfinished.replace(path)
    return paths


def _filmed(environment: EnvironmentSpec, env_timeout: float | None) -> Environments:
    return Environments(environment.maker(render_mode="rgb_array"), 1, env_timeout)


def _play(
    environments: Environments,
    policy: ReturnConditionedPolicy,
    request: EpisodeRequest,
    show: Callable[[NDArray[Any]], None],
) -> None:
    def picture(env: int, _: PlayedEpisode) -> None:
        show(environments.render(env))

    rollout(environments, policy, [request], on_reset=picture, on_step=picture)
