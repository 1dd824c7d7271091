"""Bugs that others have shipped, planted one at a time: the check that guards against each must fail."""

from dataclasses import replace

import numpy as np
import pytest
import test_attention
import test_data
import test_every_space
import test_model
import test_policy
import test_training
import torch
from conftest import small_model

from dt import data, encoders, policy
from dt import model as model_module
from dt.data import TrajectoryDataset
from envs.errors import EnvError
from transformer import attention as attention_module
from transformer.runs import log, training


def no_causal_mask(patch):
    kernel = attention_module.F.scaled_dot_product_attention
    patch.setattr(attention_module.F, "scaled_dot_product_attention", lambda q, k, v, **_: kernel(q, k, v))


def causal_mask_by_shape_when_queries_are_fewer(patch):
    kernel = attention_module.F.scaled_dot_product_attention

    def top_left(q, k, v, attn_mask=None, is_causal=False, dropout_p=0.0):
        return kernel(q, k, v, is_causal=True, dropout_p=dropout_p)

    patch.setattr(attention_module.F, "scaled_dot_product_attention", top_left)


def tokens_one_kind_after_the_other(patch):
    patch.setattr(model_module, "interleave", lambda parts: torch.cat(parts, dim=1))


def action_before_its_state(patch):
    original = model_module.interleave
    patch.setattr(model_module, "interleave", lambda parts: original([*parts[:-2], parts[-1], parts[-2]]))


def present_action_in_the_states_token(patch):
    patch.setattr(model_module, "previous", lambda encoded: encoded)


def previous_action_round_the_end(patch):
    patch.setattr(model_module, "previous", lambda encoded: encoded.roll(1, dims=1))


def return_to_go_without_the_present_reward(patch):
    original = data.returns_to_go
    patch.setattr(test_data, "returns_to_go", lambda rewards, offsets: original(rewards, offsets) - rewards)


def normaliser_skipped(patch):
    patch.setattr(encoders.Normalizer, "forward", lambda self, x: x)


def loss_over_padding(patch):
    original = model_module.DecisionTransformer.forward
    patch.setattr(
        model_module.DecisionTransformer,
        "forward",
        lambda self, batch: original(self, replace(batch, mask=torch.ones_like(batch.mask))),
    )


def return_told_to_a_clone(patch):
    original = model_module.DecisionTransformer.predict

    def telling(self, batch, *rest):
        leaking = replace(batch, states={name: x + batch.returns_to_go[..., None] for name, x in batch.states.items()})
        return original(self, leaking, *rest)

    patch.setattr(model_module.DecisionTransformer, "predict", telling)


def padding_multiplied_by_zero(patch):
    def by_product(x, mask, padding=0):
        return x * mask.reshape(*mask.shape, *[1] * (x.dim() - 2))

    patch.setattr(model_module, "_masked", by_product)


def window_across_episodes(patch):
    original = TrajectoryDataset.__init__

    def without_ends(self, *arguments, **named):
        original(self, *arguments, **named)
        self.offsets = self.offsets[[0, -1]]  # all of it one episode

    patch.setattr(TrajectoryDataset, "__init__", without_ends)


def reward_never_subtracted(patch):
    patch.setattr(policy.ReturnConditionedPolicy, "receive", lambda self, env, reward: None)


def reward_summed_in_float32(patch):
    def receive(self, env, reward):
        history = self._histories[env]
        history.earned = np.float32(history.earned) + np.float32(reward)

    patch.setattr(policy.ReturnConditionedPolicy, "receive", receive)


def action_taken_not_remembered(patch):
    patch.setattr(policy.History, "set_action", lambda self, action: None)


def window_of_the_first_steps_instead_of_the_last(patch):
    original = policy.History.add_state

    def stuck(self, state):
        if self.length == len(self.timesteps):
            self.elapsed += 1
        else:
            original(self, state)

    patch.setattr(policy.History, "add_state", stuck)


def rows_of_the_model_as_many_as_environments(patch):
    original = policy.ReturnConditionedPolicy._batch

    def just_enough(self, histories):
        rows, self.rows = self.rows, len(histories)
        batch = original(self, histories)
        self.rows = rows
        return batch

    patch.setattr(policy.ReturnConditionedPolicy, "_batch", just_enough)


def frames_of_the_episode_before(patch):
    original = TrajectoryDataset.gather

    def careless(self, first):
        shifted = TrajectoryDataset.__new__(TrajectoryDataset)
        vars(shifted).update(vars(self), offsets=self.offsets[[0, -1]])  # all of it one episode
        return replace(original(self, first), states=original(shifted, first).states)

    patch.setattr(TrajectoryDataset, "gather", careless)


def black_frames_before_the_first(patch):
    original = policy.History._stacked

    def black(self, name, frame):
        self.elapsed, elapsed = max(self.elapsed, 1), self.elapsed
        stack = original(self, name, frame)
        self.elapsed = elapsed
        return stack

    patch.setattr(policy.History, "_stacked", black)


def newest_frame_first(patch):
    original = policy.History._stacked
    patch.setattr(policy.History, "_stacked", lambda self, name, frame: original(self, name, frame)[::-1])


def colours_reshaped_to_the_front(patch):
    def reshaped(x, source, target):
        return x.reshape(*x.shape[:-3], x.shape[-1], *x.shape[-3:-1])

    patch.setattr(encoders.Tensor, "movedim", reshaped)


def action_mask_ignored(patch):
    patch.setattr(policy.ReturnConditionedPolicy, "_allowed", lambda self, histories: {})


def temperature_ignored(patch):
    original = policy.ReturnConditionedPolicy._noise

    def at_one(self, histories):
        self.temperature, temperature = float(self.temperature > 0), self.temperature
        noise = original(self, histories)
        self.temperature = temperature
        return noise

    patch.setattr(policy.ReturnConditionedPolicy, "_noise", at_one)


def one_generator_for_all_environments(patch):
    original, shared = policy.History.__init__, np.random.default_rng(0)

    def sharing(self, *arguments, **named):
        original(self, *arguments, **named)
        self.generator = shared

    patch.setattr(policy.History, "__init__", sharing)


def dropout_not_seeded_by_the_step(patch):
    patch.setattr(training, "step_seed", lambda *_: torch.initial_seed() + 1)


def optimizer_forgotten_on_resume(patch):
    patch.setattr(training.Trainer, "_load_optimizer", lambda self, tensors: None)


def log_not_cut_on_resume(patch):
    patch.setattr(log, "cut_log", lambda path, step: None)


def future_at_a_block(_):
    test_attention.test_output_ignores_the_future({})


def pruned_queries(_):
    test_attention.test_reading_some_positions_gives_the_same_numbers_and_gradients({}, torch.tensor([2, 4]))


def dependence(request):
    test_model.check_dependence(request("model"), request("full"))


def clones_dependence(request):
    test_model.check_dependence(small_model("none", request("dataset")), request("full"))


def single_dependence(request):
    test_model.check_dependence(small_model("single", request("dataset")), request("full"))


def padding(request):
    test_model.test_padding_changes_neither_loss_nor_outputs_nor_gradients(
        request("model"), request("batch"), float("nan")
    )


def loss_loop(request):
    test_model.test_the_loss_is_the_mean_over_real_steps_as_a_plain_loop(
        request("model"), request("batch"), request("dataset")
    )


def normaliser(request):
    test_model.test_the_normaliser_is_the_datas_and_travels_with_the_weights(request("model"), request("dataset"))


def returns_loop(request):
    test_data.test_returns_to_go_equal_a_plain_loop(request("dataset"))


def windows_loop(request):
    dataset = request("dataset")
    test_data.test_a_window_is_what_a_plain_loop_cuts_out(dataset, TrajectoryDataset(dataset, 4))


def replayed(request):
    test_policy.check_replay(request("model"), request("dataset"))


def environments(_):
    test_policy.test_returns_do_not_depend_on_the_number_of_environments("token")


def stacks(request):
    test_data.check_stacks(request("pictures"), 3)


def replayed_pictures(request):
    pictures = request("pictures")
    test_policy.check_replay(small_model("token", pictures, frame_stack=3), pictures)


def channels(_):
    test_every_space.check_channels()


def masks(_):
    test_every_space.check_masks("discrete", 0.0)


def frequencies(_):
    test_every_space.check_frequencies(0.7, with_masks=False)


def draws(_):
    test_every_space.check_draws_alone_and_together()


def resumed(request):
    cut_at, folder = request("cut_at"), request("tmp_path")
    test_training.test_a_resumed_run_is_the_uninterrupted_run(request("payday"), folder, cut_at, "decoupled")


@pytest.fixture
def model(dataset):
    return small_model("token", dataset)


full, cut_at = test_model.full, test_training.cut_at  # fixtures of theirs that the checks above ask for

BUGS = [
    (no_causal_mask, future_at_a_block),
    (no_causal_mask, dependence),
    (causal_mask_by_shape_when_queries_are_fewer, pruned_queries),
    (tokens_one_kind_after_the_other, dependence),
    (action_before_its_state, dependence),
    (present_action_in_the_states_token, single_dependence),
    (previous_action_round_the_end, single_dependence),
    (no_causal_mask, single_dependence),
    (return_told_to_a_clone, clones_dependence),
    (return_to_go_without_the_present_reward, returns_loop),
    (normaliser_skipped, normaliser),
    (loss_over_padding, loss_loop),
    (padding_multiplied_by_zero, padding),
    (window_across_episodes, windows_loop),
    (reward_never_subtracted, replayed),
    (reward_summed_in_float32, replayed),
    (action_taken_not_remembered, replayed),
    (window_of_the_first_steps_instead_of_the_last, replayed),
    (rows_of_the_model_as_many_as_environments, environments),
    (frames_of_the_episode_before, stacks),
    (frames_of_the_episode_before, replayed_pictures),
    (black_frames_before_the_first, replayed_pictures),
    (newest_frame_first, replayed_pictures),
    (colours_reshaped_to_the_front, channels),
    (action_mask_ignored, masks),
    (temperature_ignored, frequencies),
    (one_generator_for_all_environments, draws),
    (dropout_not_seeded_by_the_step, resumed),
    (optimizer_forgotten_on_resume, resumed),
    (log_not_cut_on_resume, resumed),
]


@pytest.mark.parametrize(("bug", "check"), BUGS, ids=[f"{bug.__name__}-{check.__name__}" for bug, check in BUGS])
def test_a_planted_bug_is_caught(bug, check, request):
    # The bug lives in a context of its own: some checks undo their own patches, which must not undo this one.
    with pytest.MonkeyPatch.context() as patch:
        bug(patch)
        with pytest.raises((AssertionError, IndexError, EnvError)):
            check(request.getfixturevalue)


@pytest.mark.parametrize("check", sorted({check for _, check in BUGS}, key=lambda check: check.__name__))
def test_without_a_bug_the_same_check_passes(check, request):
    check(request.getfixturevalue)
