"""Sequence to sequence: an encoder reads the source, a decoder writes the target (Vaswani et al. 2017, figure 1)."""

from typing import Any

import torch
from torch import Tensor, nn

from transformer.blocks import BlockCache, Transformer
from transformer.config import LanguageConfig
from transformer.language import TokenEmbedding


class EncoderDecoder(nn.Module):
    """Source tokens and the target so far in, logits of the next target token out.

    Both sides and the read-out share one embedding, so source and target use one vocabulary.

    Args:
        config: shape of both stacks, and their vocabulary.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config)
        self.encoder = Transformer(config, causal=False)
        self.decoder = Transformer(config, cross=True)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """The memory: (B, M, D).

        Args:
            source: (B, M) tokens.
            source_mask: (B, M), True where a token is real.
        """
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
        """Logits of the token after each target token: (B, L, V), or (B, Q, V) with `read`.

        Args:
            target: (B, L) tokens so far, padded on the right.
            memory: (B, M, D), from `encode`; every block of the decoder sees it.
            source_mask: (B, M), True where a source token is real.
            positions: as in `LanguageModel.forward`.
            read: as in `LanguageModel.forward`.
            cache: as in `LanguageModel.forward`.
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
        """Logits (B, L, V) after each token of a known target, as in training.

        Args:
            source: (B, M) tokens.
            target: (B, L) tokens.
            source_mask: (B, M), True where a source token is real.
        """
        return self.decode(target, self.encode(source, source_mask), source_mask)

    @torch.no_grad()
    def alignments(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        """How much each block's heads look at each source token from each target token: (blocks, B, H, L, M).

        Args:
            source: (B, M) tokens.
            target: (B, L) tokens.
            source_mask: (B, M), True where a source token is real.
        """
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
