"""Returns-to-go and windows, against plain loops."""

import numpy as np
import pytest
import torch
from conftest import CONTEXT, LENGTHS

from dt.config import Config, DataConfig, ModelConfig
from dt.data import Batches, ReturnBins, TrajectoryDataset, returns_to_go
from dt.units import ModelUnits


@pytest.fixture
def data(dataset):
    return TrajectoryDataset(dataset, CONTEXT)


def test_returns_to_go_equal_a_plain_loop(dataset):
    expected = []
    for start, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        for t in range(start, end):
            expected.append(sum(float(dataset.rewards[k]) for k in range(t, end)))  # the present reward counts
    result = returns_to_go(dataset.rewards, dataset.offsets)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_returns_to_go_are_the_return_minus_what_was_earned_bit_for_bit(dataset):
    result = returns_to_go(dataset.rewards, dataset.offsets)
    for start, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        earned = 0.0
        for t in range(start, end):
            assert result[t] == result[start] - earned
            earned += float(dataset.rewards[t])


def test_a_window_is_what_a_plain_loop_cuts_out(dataset, data):
    batch = data.gather(torch.arange(dataset.num_steps))
    wanted = returns_to_go(dataset.rewards, dataset.offsets)
    for first in range(dataset.num_steps):
        episode = int(np.searchsorted(dataset.offsets, first, side="right")) - 1
        for t in range(CONTEXT):
            row = first + t
            real = row < dataset.offsets[episode + 1]
            assert bool(batch.mask[first, t]) == real
            if real:
                assert np.array_equal(batch.states["value"][first, t], dataset.observations["value"][row])
                assert np.array_equal(batch.actions["value"][first, t], dataset.actions["value"][row])
                assert batch.returns_to_go[first, t] == np.float32(wanted[row])
                assert batch.timesteps[first, t] == row - dataset.offsets[episode]


def check_stacks(dataset, frame_stack):
    """Each step's pictures are its own and those before it, an episode's first one repeated."""
    data = TrajectoryDataset(dataset, CONTEXT, frame_stack=frame_stack)
    batch = data.gather(torch.arange(dataset.num_steps))
    assert batch.states["value"].dtype == torch.uint8
    for b, t in batch.mask.nonzero().tolist():
        row = b + t
        begin = int(dataset.offsets[np.searchsorted(dataset.offsets, row, side="right") - 1])
        expected = [dataset.observations["value"][max(begin, row - back)] for back in reversed(range(frame_stack))]
        assert np.array_equal(batch.states["value"][b, t], expected)


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_a_stack_of_pictures_is_what_a_plain_loop_cuts_out(pictures, frame_stack):
    check_stacks(pictures, frame_stack)


def test_batches_are_a_pure_function_of_seed_and_step(data):
    first = data.indices(seed=3, step=17, batch_size=64)
    data.indices(seed=3, step=18, batch_size=64)
    assert torch.equal(first, data.indices(seed=3, step=17, batch_size=64))
    for seed, step in ((3, 18), (4, 17), (17, 3)):
        assert not torch.equal(first, data.indices(seed, step, 64))


def test_every_step_of_every_episode_is_as_likely(dataset, data):
    counts = torch.zeros(dataset.num_steps)
    for step in range(200):
        counts += torch.bincount(data.indices(0, step, 64), minlength=dataset.num_steps)
    expected = 200 * 64 / dataset.num_steps
    assert (((counts - expected) ** 2) / expected).sum() < 49  # chi-squared, 21 degrees of freedom, p = 0.0005


def test_the_episodes_of_a_batch_can_be_named(dataset, data):
    assert sum(LENGTHS) == dataset.num_steps
    assert data.episodes_of(torch.tensor([0, 2, 13, 14, 21])) == [0, 1, 2, 3]


def test_balanced_windows_are_drawn_evenly_over_the_returns():
    returns, offsets = np.array([0.0, 10, 0.2, 5, 10, 9.99]), np.array([0, 3, 5, 10, 11, 15, 16])
    drawn = ReturnBins(returns, offsets, num_bins=4).draw(np.random.default_rng(0), 60_000)
    share = np.bincount(drawn, minlength=16) / 60_000
    low, middle, high = [0, 1, 2, 5, 6, 7, 8, 9], [10], [3, 4, 11, 12, 13, 14, 15]
    for steps in (low, middle, high):
        assert share[steps].sum() == pytest.approx(1 / 3, abs=0.01)
        assert share[steps] == pytest.approx(np.full(len(steps), 1 / 3 / len(steps)), abs=0.01)


def test_a_share_of_each_batch_is_balanced_and_none_leaves_the_draws_as_they_were(dataset):
    plain, half = TrajectoryDataset(dataset, CONTEXT), TrajectoryDataset(dataset, CONTEXT, balanced=0.5)
    first, balanced = plain.indices(3, 4, 10), half.indices(3, 4, 10)
    assert torch.equal(first[5:], balanced[5:])
    assert not torch.equal(first[:5], balanced[:5])
    assert torch.equal(balanced, TrajectoryDataset(dataset, CONTEXT, balanced=0.5).indices(3, 4, 10))
    assert torch.equal(first, TrajectoryDataset(dataset, CONTEXT, balanced=0.0).indices(3, 4, 10))


def test_a_share_of_each_batch_begins_where_its_episodes_begin(dataset):
    plain = TrajectoryDataset(dataset, CONTEXT).indices(3, 4, 10)
    moved = TrajectoryDataset(dataset, CONTEXT, from_start=0.3).indices(3, 4, 10)
    begin = dataset.offsets[np.searchsorted(dataset.offsets, plain, side="right") - 1]
    expected = plain.clone()
    expected[[0, 3, 6]] = torch.from_numpy(begin)[[0, 3, 6]]
    assert not torch.equal(plain, expected)
    assert torch.equal(moved, expected)
    assert torch.equal(plain, TrajectoryDataset(dataset, CONTEXT, from_start=0.04).indices(3, 4, 10))


def test_a_runs_batches_have_the_shares_of_its_configuration(dataset):
    config = Config(data=DataConfig(from_start=1.0, balanced=0.5), model=ModelConfig(context_length=CONTEXT))
    batches = Batches.of(dataset, config, ModelUnits(), torch.device("cpu"))
    assert set(batches.starts(0).tolist()) <= set(dataset.offsets.tolist())
    assert batches.data.balanced == 0.5


def test_balanced_windows_of_equal_returns_are_any_windows():
    drawn = ReturnBins(np.full(3, 7.0), np.array([0, 2, 5, 9])).draw(np.random.default_rng(0), 9_000)
    assert np.bincount(drawn) / 9_000 == pytest.approx(np.full(9, 1 / 9), abs=0.02)
