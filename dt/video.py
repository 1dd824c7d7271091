"""Films of episodes: what a policy does when it is asked for a return."""

from collections.abc import Sequence
from pathlib import Path

from dt.policy import ReturnConditionedPolicy
from dt.training import Run
from envs.rollout import Job, rollout
from envs.worlds import WorldError, Worlds


def film(run: Run, targets: Sequence[float], seed: int, folder: Path) -> list[Path]:
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
            with imageio.get_writer(path, fps=worlds.frames_per_second, macro_block_size=8) as writer:
                policy = ReturnConditionedPolicy(run.model)
                add = writer.append_data  # type: ignore[attr-defined]
                rollout(worlds, policy, [Job(seed, target)], on_step=lambda world, _: add(worlds.render(world)))
            paths.append(path)
    return paths
