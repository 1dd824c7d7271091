"""Sequence to sequence: an encoder reads the source, a decoder writes the target (Vaswani et al. 2017, figure 1)."""

from typing import Any

import torch
from torch import Tensor, nn

from transformer.blocks import BlockCache, Transformer
from transformer.config import LanguageConfig
from transformer.language import TokenEmbedding


class EncoderDecoder(nn.Module):
    """Source tokens and the target so far to logits of the next target token.

    Both sides and the read-out share one embedding: source and target use one vocabulary.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.encoder = Transformer(config, causal=False)
        self.decoder = Transformer(config, cross=True)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """source: (B, M) tokens; source_mask: (B, M), True where a token is real. Returns the memory, (B, M, D)."""
        return self.encoder(self.embedding(source), mask=source_mask)

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        source_mask: Tensor,
        *,
        positions: Tensor | None = None,
        read: Tensor | None = None,
        cache: list[BlockCache] | None = None,
    ) -> Tensor:
        """target: (B, L) tokens so far, padded on the right. Returns logits of the token after each: (B, L, V).

        positions, read and cache are as in `LanguageModel`. Every block of the decoder sees the encoder's last output.
        """
        x = self.decoder(
            self.embedding(target, positions),
            read,
            positions=positions,
            memory=memory,
            memory_mask=source_mask,
            cache=cache,
        )  # (B, Q, D)
        return self.embedding.logits(x)  # (B, Q, V)

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        """Logits (B, L, V) after each token of a target that is known, as in training."""
        return self.decode(target, self.encode(source, source_mask), source_mask)

    @torch.no_grad()
    def alignments(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        """How much each block's heads look at each source token from each target token: (blocks, B, H, L, M)."""
        maps: list[Tensor] = []

        def note(attention: nn.Module, arguments: tuple[Tensor, Tensor], options: dict[str, Any]) -> None:
            maps.append(attention.weights(*arguments, mask=options["mask"]))  # type: ignore[operator]

        crossings = [block.cross_attention for block in self.decoder.blocks]
        hooks = [crossing.register_forward_pre_hook(note, with_kwargs=True) for crossing in crossings]  # type: ignore
        try:
            self(source, target, source_mask)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(maps)
