"""Shortest paths from random walks (Chen et al. 2021, section 1 and appendix): the paper's illustrative example.

    python -m benchmarks.random_graph

draws graphs, records random walks in each, trains on nothing else, and counts the steps to the goal: of the walks, of
the paths that the model generates, and of the shortest ones. Writes the counts and draws the paper's histogram.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import tyro
from gymnasium import spaces
from numpy.typing import NDArray
from tyro.conf import OmitArgPrefixes

from benchmarks.gym import hardware
from benchmarks.random_play import dataset_of, record
from dt.config import Config, DataConfig, EvaluationConfig, ModelConfig
from dt.learning.run import versions
from dt.learning.training import train
from dt.model import DecisionTransformer
from dt.policy import ReturnConditionedPolicy
from envs.simulate.environments import Environments
from envs.simulate.rollout import EpisodeRequest, PlayedEpisode, rollout
from envs.simulate.spec import EnvironmentSpec
from transformer.config import TrainingConfig
from transformer.files import write_json

NODES, EDGE_PROBABILITY, GOAL = 20, 0.1, 0
WALKS, STEPS = 1_000, 10
"""Random walks to learn from, and steps after which each path is cut."""
PRIOR_POWER = 10
"""How much the paper's prior weighs against the returns of the data."""
NEVER = 0
"""The length of a path that did not reach the goal, among the counts."""


def draw_graph(seed: int) -> NDArray[np.bool_]:
    """A directed graph, (from, to), without loops, in which the goal can be reached from every node."""
    rng = np.random.default_rng(seed)
    while True:
        edges = rng.random((NODES, NODES)) < EDGE_PROBABILITY
        np.fill_diagonal(edges, False)
        if (distances(edges) <= NODES).all():
            return edges


def distances(edges: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Steps of the shortest path from each node to the goal; more than there are nodes where there is none."""
    steps = np.full(NODES, NODES + 1)
    steps[GOAL] = 0
    for length in range(1, NODES):
        next_to_it = edges[:, steps == length - 1].any(1)
        steps[next_to_it] = np.minimum(steps[next_to_it], length)
    return steps


class GraphWalk(gymnasium.Env[np.int64, np.int64]):
    """Walk from a random node to the goal: an action names the next node, a step without such an edge stays.

    Every step costs 1, and the goal ends the episode: so the return is minus the path's length.
    show_edges: whether info's `action_mask` tells which edges there are; a random walk needs it, a model does not.
    """

    def __init__(self, graph: int = 0, show_edges: bool = False):
        self.observation_space = self.action_space = spaces.Discrete(NODES)
        self.edges, self.show_edges = draw_graph(graph), show_edges
        self.node = np.int64(GOAL)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed, options=options)
        self.node = self.np_random.choice(np.delete(np.arange(NODES), GOAL))
        return self.node, self._info()

    def step(self, action: np.int64):
        if self.edges[self.node, action]:
            self.node = np.int64(action)
        return self.node, -1.0, bool(self.node == GOAL), False, self._info()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self.edges[self.node].astype(np.int8)} if self.show_edges else {}


gymnasium.register("RandomGraph-v0", GraphWalk, max_episode_steps=STEPS, disable_env_checker=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Steps to the goal: random walks, the model's paths, the shortest ones."""

    graphs: int = 5
    """Graphs, each with its own walks and its own model; the paper has one."""
    paths: int = 200
    """Paths that the model generates in each."""
    conditionings: tuple[Literal["token", "decoupled", "single"], ...] = ("token", "decoupled", "single")
    """How the return enters the models; the paper's is token."""
    steps: int = 1_000
    """Gradient steps of each model."""
    runs: Path = Path("runs/random-graph")
    """Folder of the runs."""
    results: Path = Path("docs/results/random_graph.json")
    """File of the counts."""
    picture: Path = Path("docs/pictures/random-graph.png")
    """Where they are drawn."""


class ShortestPaths(ReturnConditionedPolicy):
    """Asks at each step for the return that the data and the paper's prior for short paths together make likeliest.

    In the paper the model itself predicts the return's probabilities; here they are counted in the data, for each
    node over the walks that reach the goal from there.
    """

    def __init__(self, model: DecisionTransformer, walks: list[PlayedEpisode]):
        super().__init__(model)
        lengths = np.zeros((NODES, STEPS + 1))  # how often the goal was so many steps away
        for walk in walks:
            if walk.terminated:
                for steps_before, node in enumerate(walk.observations[:-1]):
                    lengths[node, walk.length - steps_before] += 1
        prior = (STEPS + 1.0 - np.arange(STEPS + 1)) ** PRIOR_POWER
        self._steps_to_ask = (lengths * prior).argmax(1)  # (nodes,)

    def choose(self, observations: Mapping[int, Any], infos: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
        """The action towards the likeliest short path from where each environment is."""
        for env, node in observations.items():
            history = self._histories[env]
            history.target_return = history.earned - float(self._steps_to_ask[node])
        return super().choose(observations, infos)


def recipe(conditioning: Any, steps: int) -> Config:
    """The whole path is the context."""
    return Config(
        data=DataConfig(balanced=0.0, from_start=0.0),
        evaluation=EvaluationConfig(calibration=False),
        model=ModelConfig(
            conditioning=conditioning,
            positions="timesteps",
            rotary=False,
            observation_noise=0.0,
            width=32,
            num_layers=2,
            activation="gelu",
            context_length=STEPS,
        ),
        training=TrainingConfig(
            precision="float32",
            steps=steps,
            learning_rate=2e-3,
            learning_rate_floor=0.1,
            warmup_steps=100,
            gradient_clip=1.0,
            evaluate_every=0,
        ),
    )


def walk_graph(graph: int, options: Options) -> dict[str, Any]:
    """Record, train, generate in one graph: how many paths have which length, and what of the generated is optimal."""
    shown = EnvironmentSpec("RandomGraph-v0", {"graph": graph, "show_edges": True})
    walks, shortest = record(shown, WALKS), distances(draw_graph(graph))
    dataset = dataset_of(walks, shown, f"random-graph-{graph}")
    known = {tuple(walk.observations[i:]) for walk in walks if walk.terminated for i in range(walk.length)}
    row: dict[str, Any] = {"graph": graph, "walks": counts(walks), "generated": {}}
    for conditioning in options.conditionings:
        folder = options.runs / f"{conditioning}-{graph}"
        run = train(dataset, recipe(conditioning, options.steps), folder, resume=folder.exists())
        paths = generate(ShortestPaths(run.model, walks), graph, options.paths)
        row["shortest"] = [
            int(n) for n in np.bincount([shortest[p.observations[0]] for p in paths], minlength=STEPS + 1)
        ]
        row["generated"][conditioning] = {
            "lengths": counts(paths),
            "optimal": sum(path.terminated and path.length == int(shortest[path.observations[0]]) for path in paths),
            "in_no_walk": sum(path.terminated and tuple(path.observations) not in known for path in paths),
        }
    return row


def generate(policy: ShortestPaths, graph: int, paths: int) -> list[PlayedEpisode]:
    """Paths from random nodes, in an environment that does not tell which edges there are."""
    env = EnvironmentSpec("RandomGraph-v0", {"graph": graph})
    with Environments(env.make, 16) as environments:
        return rollout(
            environments, policy, [EpisodeRequest(seed, -1.0) for seed in range(paths)], keep_trajectories=True
        )


def counts(paths: list[PlayedEpisode]) -> list[int]:
    """How many paths have each length, from NEVER to the longest."""
    found = Counter(path.length if path.terminated else NEVER for path in paths)
    return [found[length] for length in range(STEPS + 1)]


def arrived(lengths: list[int]) -> tuple[str, str]:
    """What share reaches the goal, and in how many steps on average."""
    number = sum(lengths) - lengths[NEVER]
    return f"{number / sum(lengths):.1%}", f"{np.dot(lengths, range(STEPS + 1)) / max(number, 1):.2f}"


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each graph and each of its kinds of paths."""
    lines = [
        "| graph | paths | reach the goal | mean steps | optimal | in no walk |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        graph = f"| {row['graph']}"
        lines.append(f"{graph} | random walks | {' | '.join(arrived(row['walks']))} | - | - |")
        for conditioning, found in row["generated"].items():
            shares = [f"{found[name] / sum(found['lengths']):.1%}" for name in ("optimal", "in_no_walk")]
            cells = [f"generated, {conditioning}", *arrived(found["lengths"]), *shares]
            lines.append(f"{graph} | {' | '.join(cells)} |")
        lines.append(f"{graph} | shortest | {' | '.join(arrived(row['shortest']))} | - | - |")
    return "\n".join(lines)


COLORS = {"the data": "C7", "token": "C0", "decoupled": "C1", "single": "C4", "shortest possible": "C2"}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The paper's histogram, over all graphs: what share of the paths took how many steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {"random walks, the data": [row["walks"] for row in rows]}
    for conditioning in rows[0]["generated"]:
        kinds[f"generated, {conditioning}"] = [row["generated"][conditioning]["lengths"] for row in rows]
    kinds["shortest possible"] = [row["shortest"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    width = 0.84 / len(kinds)
    for i, (label, lengths) in enumerate(kinds.items()):
        total = np.roll(np.sum(lengths, axis=0), -1)  # those that never arrive stand last
        places = np.arange(STEPS + 1) + (i - (len(kinds) - 1) / 2) * width
        axes.bar(places, 100 * total / total.sum(), width, label=label, color=COLORS[label.split(",")[-1].strip()])
    axes.set_xticks(range(STEPS + 1), [*map(str, range(1, STEPS + 1)), "never"])
    axes.set(
        xlabel="steps to the goal", ylabel="share of the paths, %", title=f"{len(rows)} random graphs of {NODES} nodes"
    )
    axes.grid(alpha=0.25, axis="y")
    axes.legend()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main() -> None:
    options = tyro.cli(Options, config=(OmitArgPrefixes,), description=__doc__)
    rows = [walk_graph(graph, options) for graph in range(options.graphs)]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    document = {"schema": 1, "steps": options.steps, "hardware": hardware(Config()), "versions": versions()}
    write_json(options.results, {**document, "rows": rows})
    print(table(rows))
    plot(rows, options.picture)


if __name__ == "__main__":
    main()
