"""Keys and values that attention keeps between calls, so that generation computes each of them once."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values that one attention has computed, in the order in which they came; all room is taken at once.

    If a row's prompt was padded, there is padding between its tokens, and the caller's mask hides it.
    """

    def __init__(self, batch_size: int, num_heads: int, capacity: int, head_width: int, like: Tensor):
        """capacity: columns, one for each token. like: a tensor of the wanted type, on the wanted device."""
        shape = (batch_size, num_heads, capacity, head_width)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.length = 0  # columns that hold a token or its padding

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, L, Hd) behind what is there; returns all keys and values so far, (B, H, length, Hd)."""
        before, new = self.length, keys.shape[2]
        self.length = length = before + new
        self.keys.narrow(2, before, new).copy_(keys)  # for one token, indexing costs half as much again
        self.values.narrow(2, before, new).copy_(values)
        return self.keys.narrow(2, 0, length), self.values.narrow(2, 0, length)

    @property
    def start(self) -> int | Tensor:
        """Column of the next token, where it is the same in all rows; or one for each row, (B, 1)."""
        return self.length

    def rows(self, rows: Sequence[int]) -> "KeyValueCache":
        """A cache of these rows, in this order; a row may be taken more than once."""
        chosen = copy.copy(self)
        index = torch.tensor(rows, device=self.keys.device)
        chosen.keys, chosen.values = self.keys[index], self.values[index]
        return chosen


class RaggedCache(KeyValueCache):
    """A cache with rows of different lengths: each writes behind its own tokens, and no padding is between them.

    What lies at or past a row's length is left over from before, and later than any query: no query sees it. The
    caller sets `lengths` (B,), so that a row is forgotten or a call's writing undone by a number.
    """

    def __init__(self, batch_size: int, num_heads: int, capacity: int, head_width: int, like: Tensor):
        super().__init__(batch_size, num_heads, capacity, head_width, like)
        self.keys.zero_()  # a NaN that no query sees is a NaN all the same
        self.values.zero_()
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=like.device)

    @property
    def start(self) -> Tensor:
        """Column of each row's next token: (B, 1)."""
        return self.lengths[:, None]

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, H, L, Hd) behind what each row holds; returns all columns, (B, H, capacity, Hd)."""
        row = torch.arange(len(keys), device=keys.device)[:, None]
        columns = self.start + torch.arange(keys.shape[2], device=keys.device)  # (B, L)
        self.keys[row, :, columns] = keys.transpose(1, 2).to(self.keys.dtype)  # (B, L, H, Hd)
        self.values[row, :, columns] = values.transpose(1, 2).to(self.values.dtype)
        return self.keys, self.values
