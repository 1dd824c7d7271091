"""The Decision Transformer (Chen et al. 2021): trajectories as sentences, an action as the next word.

token       R_1 s_1 a_1 R_2 s_2 a_2 ...   the action is read from the state's output, which saw R_1 .. R_t
decoupled   s_1 a_1 s_2 a_2 ...           the same, but only R_t acts, by modulating that output
none        s_1 a_1 s_2 a_2 ...           no return at all: behaviour cloning
single      s_1 s_2+a_1 s_3+a_2 ...       one token a step: the state and the action before it; the return as decoupled
"""

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.spaces import Space
from torch import Tensor, nn
from torch.nn import functional as F

from dt.asking.guidance import MODULATED
from dt.config import ModelConfig
from dt.data import Batch, TensorLeaves, return_scale, returns_to_go
from dt.encoders import (
    ContinuousHead,
    LinearEncoder,
    Normalizer,
    is_image,
    make_action_encoder,
    make_head,
    make_state_encoder,
)
from dt.units import ModelUnits, Units
from envs.datasets.dataset import Dataset
from envs.errors import DataError
from envs.spaces import leaf_spaces
from transformer.blocks import Transformer, initialize
from transformer.config import require
from transformer.positions import LearnedPositions


def interleave(parts: list[Tensor]) -> Tensor:
    """P sequences (B, T, D) as one (B, T P, D): first of each, second of each, ..."""
    return torch.stack(parts, dim=2).flatten(1, 2)  # (B, T, P, D) -> (B, T P, D)


def previous(encoded: Tensor) -> Tensor:
    """Each step gets what the step before it had, the window's first step zeros: (B, T, D) -> (B, T, D).

    A window's first step has no previous action, even where its episode began earlier: the window holds all that the
    model knows, in training as in a rollout, as with the other conditionings.
    """
    return F.pad(encoded[:, :-1], (0, 0, 1, 0))


STEEPNESS = 8.0
"""How far a hidden unit's input of `ReturnModulation` moves, at first, over the range of the data's returns."""

MOST_RETURNS = 100_000
"""Quantiles are taken of every k-th return-to-go, k = max(1, number // this): of fewer than twice this many."""


class ReturnModulation(nn.Module):
    """Adaptive layer norm: the return-to-go of a step scales and shifts that step's normalised output.

    norm(x) (1 + scale(R)) + shift(R), with scale and shift zero at first (Peebles & Xie 2023, adaLN-Zero).

    Guidance w moves the output further in the direction in which the return moves it: n + w (c - n), with n the plain
    output norm(x) and c the modulated one (classifier-free guidance, Ho & Salimans 2022). Since n does not depend on
    the return, this is the same modulation with scale and shift multiplied by w.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.input = nn.Linear(1, width)
        self.output = nn.Linear(width, 2 * width)

    @torch.no_grad()
    def fit(self, returns: Tensor) -> None:
        """Let each hidden unit begin to respond at a different return, spread over those of the data.

        With small random weights all units are nearly linear in the return at first, and returns that are close to each
        other take long to tell apart. Half of the units begin at quantiles of the data, half evenly over its range;
        half of them respond above their return and half below it.

        returns: (N,), returns-to-go of the data, divided by the return scale.
        """
        count, low, high = self.input.out_features, returns.min(), returns.max()
        if not high > low:
            return
        quantiles = torch.quantile(returns, torch.linspace(0, 1, count // 2, device=returns.device))
        even = low + (high - low) * torch.linspace(0, 1, count - count // 2, device=returns.device)
        begin = torch.cat([quantiles, even])  # (D,)
        slope = STEEPNESS / (high - low) * (1 - 2 * (torch.arange(count, device=returns.device) % 2))  # (D,)
        self.input.weight.copy_(slope[:, None])
        self.input.bias.copy_(-slope * begin)

    def forward(self, x: Tensor, returns: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Modulate the outputs x by their returns-to-go: (B, Q, D).

        x: (B, Q, D), the Transformer's outputs.
        returns: (B, Q), returns-to-go divided by the return scale.
        guidance: (B,), w for each row; None is 1 everywhere and multiplies nothing.
        """
        scale, shift = self.output(F.gelu(self.input(returns[..., None]))).chunk(2, dim=-1)  # each (B, Q, D)
        if guidance is not None:
            w = guidance[:, None, None]  # (B, 1, 1) float32: a row with w = 1 keeps its bits in bf16 too
            scale, shift = (w * scale.float()).to(scale.dtype), (w * shift.float()).to(shift.dtype)
        return self.norm(x) * (1 + scale) + shift


class DecisionTransformer(nn.Module):
    """Predicts, for each state of a window, the action that leads to the return-to-go (Chen et al. 2021).

    Raw values go in and raw actions come out: normaliser, return scale and the table of timesteps are part of the
    model.

    Args:
        config: shape and conditioning.
        observation_space: of the states.
        action_space: of the actions.
        max_timesteps: rows of the timestep table; see `timestep_limit`.
    """

    def __init__(self, config: ModelConfig, observation_space: Space, action_space: Space, max_timesteps: int):  # type: ignore[type-arg]
        super().__init__()
        self.config, self.max_timesteps = config, max_timesteps
        self.observation_space, self.action_space = observation_space, action_space
        # In the order of their names: a Dict's own order is lost in its JSON, and weights are known by their place.
        states, actions = (dict(sorted(leaf_spaces(space).items())) for space in (observation_space, action_space))
        stack, images = config.frame_stack, any(map(is_image, states.values()))
        require(stack == 1 or images, f"frame_stack {stack}: the observations hold no images, {observation_space}")
        noise = config.observation_noise
        self.state_encoders = nn.ModuleList(make_state_encoder(s, config.width, stack, noise) for s in states.values())
        self.action_encoders = nn.ModuleList(make_action_encoder(s, config.width) for s in actions.values())
        self.heads = nn.ModuleList(make_head(s, config.width) for s in actions.values())
        self.state_leaves, self.action_leaves = tuple(states), tuple(actions)
        if config.positions == "timesteps":
            self.timestep_encoder = LearnedPositions(max_timesteps, config.width)
        self.embedding_norm = nn.LayerNorm(config.width)
        self.register_buffer("return_scale", torch.tensor(float(config.return_scale or 1.0)))
        self.return_scale: Tensor
        self.apply(initialize)
        self.transformer = Transformer(config)
        if config.conditioning == "token":
            self.return_encoder = nn.Linear(1, config.width)
            initialize(self.return_encoder)
        elif config.conditioning in MODULATED:
            self.modulation = ReturnModulation(config.width)
            nn.init.zeros_(self.modulation.output.weight)
            nn.init.zeros_(self.modulation.output.bias)

    def fit(self, dataset: Dataset) -> None:
        """Take from the data: normaliser, units of unbounded actions, return scale unless set, where the returns lie.

        The last is for `ReturnModulation.fit`, if the model has one.
        """
        for encoder, name in zip(self.state_encoders, self.state_leaves, strict=True):
            if isinstance(encoder, LinearEncoder) and encoder.normalizer is not None:
                encoder.normalizer.fit(dataset.observations[name])
        for head, name in zip(self.heads, self.action_leaves, strict=True):
            head.fit(dataset.actions[name])  # type: ignore[operator]
        try:
            scale = return_scale(dataset)
        except DataError:  # float32 does not hold the returns
            if self.config.uses_returns:
                raise
            scale = 1.0
        self.return_scale.fill_(self.config.return_scale or scale)
        if self.config.conditioning in MODULATED:
            returns = returns_to_go(dataset.rewards, dataset.offsets)
            some = torch.from_numpy(returns[:: max(1, len(returns) // MOST_RETURNS)].copy())
            self.modulation.fit((some / self.return_scale.cpu()).to(self.return_scale))

    @property
    def units(self) -> ModelUnits:
        """How recorded numbers become what the model sees, of leaves that float32 does not hold as recorded."""
        observations = _units_by_leaf(self.state_leaves, self.state_encoders)
        actions = _units_by_leaf(self.action_leaves, self.heads)
        return ModelUnits(observations, actions)

    def set_units(self, document: Mapping[str, Any]) -> None:
        """Take the units that `ModelUnits.to_json` wrote, and no others; `ValueError` where they do not fit."""
        takers: dict[tuple[str, str], Normalizer | ContinuousHead] = {}
        for name, encoder in zip(self.state_leaves, self.state_encoders, strict=True):
            normalizer = getattr(encoder, "normalizer", None)
            if isinstance(normalizer, Normalizer):
                takers["observations", name] = normalizer
        for name, head in zip(self.action_leaves, self.heads, strict=True):
            if isinstance(head, ContinuousHead):
                takers["actions", name] = head
        given = {(kind, name): units for kind, leaves in document.items() for name, units in leaves.items()}
        for place, taker in takers.items():
            units = given.pop(place, None)
            taker.units = None if units is None else Units.from_json(units, taker.shape)
        if given:
            raise ValueError(f"units of {'/'.join(min(given))}, which takes none")

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over the real steps, and their number: two scalars.

        Args:
            batch: B windows of T steps.
        """
        outputs = self.predict(batch)
        loss = torch.zeros((), device=batch.mask.device)
        for head, name in zip(self.heads, self.action_leaves, strict=True):
            target = _masked(batch.actions[name], batch.mask, head.padding)  # type: ignore[arg-type]
            steps = head.loss(outputs[name], target)  # type: ignore[operator]  # (B, T)
            loss = loss + torch.where(batch.mask, steps, 0.0).sum()
        return loss, batch.mask.sum()

    def predict(self, batch: Batch, steps: Tensor | None = None, guidance: Tensor | None = None) -> TensorLeaves:
        """Head outputs for each action leaf: (B, Q, *outputs).

        Args:
            batch: B windows of T steps.
            steps: indices into the window, (Q,) or (B, Q). None takes every step, real or padding.
            guidance: (B,), as in `act`.
        """
        if steps is None:
            steps = torch.arange(batch.mask.shape[1], device=batch.mask.device)
            tokens = None if self.tokens_per_step == 1 else self.state_tokens(steps)  # None: every token is a state's
        else:
            tokens = self.state_tokens(steps)
        x = self.transformer(self.embed(batch), read=tokens)  # (B, Q, D)
        return self.apply_heads(x, batch, steps, guidance)

    @torch.no_grad()
    def act(
        self,
        batch: Batch,
        allowed: Mapping[str, Tensor] | None = None,
        noise: Mapping[str, Tensor] | None = None,
        guidance: Tensor | None = None,
    ) -> TensorLeaves:
        """The action for the last real step of each row, in the space's units, for each leaf: (B, *leaf).

        Args:
            batch: B windows of T steps.
            allowed: for leaves of choices, what may be chosen; see `DiscreteHead.choose`.
            noise: for leaves of choices, the noise that samples them; see `DiscreteHead.choose`.
            guidance: (B,), how strongly each row follows its return-to-go; None is 1. Only where the return modulates.
        """
        return self.choose(self.predict(batch, last_step(batch.mask), guidance), allowed, noise)

    def choose(
        self,
        outputs: TensorLeaves,
        allowed: Mapping[str, Tensor] | None = None,
        noise: Mapping[str, Tensor] | None = None,
    ) -> TensorLeaves:
        """The action that head outputs at one step give, for each leaf: (B, *leaf).

        Args:
            outputs: for each action leaf (B, 1, *outputs).
            allowed: as in `act`.
            noise: as in `act`.
        """
        allowed, noise = allowed or {}, noise or {}
        return {
            name: head.choose(outputs[name][:, 0], allowed.get(name), noise.get(name))  # type: ignore[operator]
            for head, name in zip(self.heads, self.action_leaves, strict=True)
        }

    @property
    def timestep_limit(self) -> int | None:
        """Steps of an episode that the model has an encoding for; None where it needs none."""
        return self.max_timesteps if self.config.positions == "timesteps" else None

    @property
    def tokens_per_step(self) -> int:
        """P: return-to-go, state and action; the last two; or one for both."""
        if self.config.conditioning == "token":
            return 3
        return 1 if self.config.conditioning == "single" else 2

    def state_tokens(self, steps: Tensor) -> Tensor:
        """Index of each step's state among the window's tokens: second after a return token, else first of its step."""
        offset = 1 if self.config.conditioning == "token" else 0
        return steps * self.tokens_per_step + offset

    def embed(self, batch: Batch) -> Tensor:
        """The tokens of a batch of windows, in the order of their steps: (B, T P, D)."""
        timed = self.config.positions == "timesteps"
        time = self.timestep_encoder(_masked(batch.timesteps, batch.mask)) if timed else 0.0  # (B, T, D)
        state = _encode(self.state_encoders, self.state_leaves, batch.states, batch.mask) + time
        action = _encode(self.action_encoders, self.action_leaves, batch.actions, batch.mask)
        if self.config.conditioning == "single":
            return self.embedding_norm(state + previous(action))  # (B, T, D)
        parts = [state, action + time]
        if self.config.conditioning == "token":
            parts.insert(0, self.return_encoder(self._scaled_returns(batch)[..., None]) + time)
        return self.embedding_norm(interleave(parts))  # (B, T P, D)

    def apply_heads(self, x: Tensor, batch: Batch, steps: Tensor, guidance: Tensor | None = None) -> TensorLeaves:
        """Head outputs for each action leaf: (B, Q, *outputs).

        Args:
            x: (B, Q, D), the Transformer's outputs at the states of these steps.
            batch: B windows of T steps, which hold the returns-to-go.
            steps: indices into the window, (Q,) or (B, Q).
            guidance: (B,), as in `act`.
        """
        if self.config.conditioning in MODULATED:
            returns = self._scaled_returns(batch)
            own = returns[:, steps] if steps.dim() == 1 else returns.gather(1, steps)  # (B, Q)
            x = self.modulation(x, own, guidance)
        return {name: head(x) for head, name in zip(self.heads, self.action_leaves, strict=True)}

    def _scaled_returns(self, batch: Batch) -> Tensor:
        return _masked(batch.returns_to_go, batch.mask).to(self.return_scale.dtype) / self.return_scale  # (B, T)


def _units_by_leaf(names: tuple[str, ...], modules: nn.ModuleList) -> dict[str, Units]:
    """The units of each leaf, if its encoder or head has any."""
    found = {}
    for name, module in zip(names, modules, strict=True):
        normalizer = getattr(module, "normalizer", None)
        units = getattr(normalizer or module, "units", None)
        if units is not None:
            found[name] = units
    return found


def last_step(mask: Tensor) -> Tensor:
    """Index of each row's last real step, (B, T) -> (B, 1); 0 where there is none."""
    return mask.sum(1, keepdim=True).clamp(min=1) - 1


def _masked(x: Tensor, mask: Tensor, padding: Tensor | int = 0) -> Tensor:
    """x (B, T, ...) with `padding` where the step is not real: not even NaN gets past this."""
    real = mask.reshape(*mask.shape, *[1] * (x.dim() - 2))  # (B, T, 1, ...)
    return torch.where(real, x, padding)


def _encode(encoders: nn.ModuleList, names: tuple[str, ...], leaves: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Sum of the leaves' encodings, which is one linear map of them all side by side: (B, T, D)."""
    parts = [
        encoder(_masked(leaves[name], mask, encoder.padding))  # type: ignore[arg-type]
        for encoder, name in zip(encoders, names, strict=True)
    ]
    return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]  # (B, T, D)
