"""Films of episodes: what a policy does when it is asked for a return."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dt.policy import ReturnConditionedPolicy
from dt.training import Run
from envs.rollout import Job, Played, rollout
from envs.worlds import WorldError, Worlds


def film(run: Run, targets: Sequence[float], seed: int, folder: Path, temperature: float = 0.0) -> list[Path]:
    """Film one episode at each target into `folder`, as MP4; returns the files."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401 (imageio needs it for MP4)
    except ImportError:
        raise WorldError("--video needs imageio and ffmpeg: pip install 'imageio[ffmpeg]'") from None
    assert run.environment is not None
    environment, paths = run.environment, []
    folder.mkdir(parents=True, exist_ok=True)
    with Worlds(lambda: environment.make(render_mode="rgb_array"), 1) as worlds:
        for target in targets:
            path = folder / f"target-{target:g}.mp4"
            frames: list[Any] = []
            policy = ReturnConditionedPolicy(run.model, temperature=temperature)
            rollout(worlds, policy, [Job(seed, target)], on_step=_camera(worlds, frames))
            imageio.mimwrite(path, frames, fps=worlds.frames_per_second, macro_block_size=8)
            paths.append(path)
    return paths


def _camera(worlds: Worlds, frames: list[Any]) -> Callable[[int, Played], None]:
    return lambda world, _: frames.append(worlds.render(world))
