"""Windows that keep keys and values from step to step: the policy acts several times faster."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dt.data import Batch, TensorLeaves
from dt.model import DecisionTransformer, last_step
from transformer.blocks import BlockCache
from transformer.cache import RaggedCache


class CachedWindows:
    """Keys and values of each environment's window; it grows step by step and, when full, restarts from its last half.

    The outputs are those of a plain forward over the same window. Each environment's window restarts at its own
    time, whatever plays next to it, and a call has one of two fixed shapes: `restart_rows` windows of half the
    length, or one step of `rows`.
    """

    def __init__(self, model: DecisionTransformer, rows: int, bf16: bool, context_length: int):
        self.model, self.rows, self.restart_rows = model, rows, min(4, rows)
        self.context_length = context_length
        self.keep = max(1, context_length // 2) - 1  # steps that a full window keeps, apart from the new one
        self._like = model.return_scale.new_empty(0, dtype=torch.bfloat16 if bf16 else torch.float32)
        self._caches: dict[int, list[RaggedCache]] = {}  # of environments 0 to rows - 1, the next, ...

    def begin(self, environments: list[int], batch: Batch, guidance: Tensor | None) -> TensorLeaves:
        """Encode these environments' windows, the batch's first rows: head outputs of the last step, (rows, 1, ...)."""
        steps = torch.arange(self.keep + 1, device=batch.mask.device).expand(self.restart_rows, -1)
        windows = _cut(batch, steps)
        last, fresh = last_step(windows.mask), self._make(self.restart_rows)
        x = self._transform(self.model.embed(windows), self.model.state_tokens(last), fresh)  # (restart_rows, 1, D)
        for row, env in enumerate(environments):
            number, place = divmod(env, self.rows)
            if number not in self._caches:
                self._caches[number] = self._make(self.rows)
            for old, new in zip(self._caches[number], fresh, strict=True):
                old.keys[place], old.values[place] = new.keys[row], new.values[row]
                old.lengths[place] = self.model.state_tokens(last[row, 0]) + 1
        # A narrow head's product of a few rows has, on some processors, last bits that depend on the row.
        idle = self.rows - self.restart_rows
        return self.model.apply_heads(F.pad(x, (0, 0, 0, 0, 0, idle)), batch, F.pad(last, (0, 0, 0, idle)), guidance)

    def go_on(self, number: int, batch: Batch, guidance: Tensor | None) -> TensorLeaves:
        """One step of the environments from `number * rows` on; the batch holds their windows: (rows, 1, ...).

        What it takes in are the tokens from the action before to the state. Rows without a step stay as they are.
        """
        caches, present = self._caches[number], batch.mask.any(1)
        last = last_step(batch.mask)
        two = _cut(batch, torch.cat([last - 1, last], dim=1).clamp(min=0))
        now, end = torch.ones(1, dtype=torch.int64, device=last.device), int(self.model.state_tokens(torch.tensor(1)))
        tokens = self.model.embed(two)[:, end + 1 - self.model.tokens_per_step : end + 1]  # (rows, P, D)
        x = self._transform(tokens, now * (tokens.shape[1] - 1), caches)  # (rows, 1, D)
        for cache in caches:
            cache.lengths += present * tokens.shape[1]
        return self.model.apply_heads(x, two, now, guidance)

    def _transform(self, tokens: Tensor, read: Tensor, caches: list[RaggedCache]) -> Tensor:
        """The Transformer's outputs at one token of each row, (B, 1, D), for tokens (B, L, D)."""
        positions = caches[0].start + torch.arange(tokens.shape[1], device=tokens.device)  # (B, L)
        output: Tensor = self.model.transformer(
            tokens, read, positions=positions, cache=[BlockCache(cache, None) for cache in caches]
        )
        return output

    def _make(self, count: int) -> list[RaggedCache]:
        config = self.model.config
        capacity = (self.context_length + 1) * self.model.tokens_per_step  # rows without a step write past their end
        shape = (count, config.num_heads, capacity, config.width // config.num_heads)
        return [RaggedCache(*shape, self._like) for _ in range(config.num_layers)]


def _cut(batch: Batch, steps: Tensor) -> Batch:
    """Steps of the first rows of a batch, at these indices (b, t)."""
    row = torch.arange(len(steps), device=steps.device)[:, None]
    return Batch(
        states={name: x[row, steps] for name, x in batch.states.items()},
        actions={name: x[row, steps] for name, x in batch.actions.items()},
        returns_to_go=batch.returns_to_go[row, steps],
        timesteps=batch.timesteps[row, steps],
        mask=batch.mask[row, steps],
    )
