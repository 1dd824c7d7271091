"""What came before the Transformer: a recurrent translator with attention, beside `EncoderDecoder` and called like it.

A GRU reads the source in both directions; another writes the target and looks, before each word, at what the first one
left at every word of the source (Bahdanau et al. 2015). The look is `attention_weights`, the Transformer's own formula
(Luong et al. 2015, "general", with the scale); what the Transformer took away is the loop over the words.

It knows of no data: tokens in, logits out. `GRUReader` serves `write_on` and `beam_search` of `transformer.generation`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from transformer.attention import Dropout, attention_weights
from transformer.generation import pad


class GRUTranslator(nn.Module):
    """Source tokens and the target so far to logits of the next target token.

    Both sides and the read-out share one embedding, as in `EncoderDecoder`: one vocabulary. The width D is that of the
    embedding, of the encoder's two directions side by side, and of the decoder's state.
    """

    def __init__(self, *, vocabulary_size: int, width: int = 128, dropout: float = 0.1):
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, half for each direction, not {width}")
        self.embedding = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)  # it reads out too: logits of about one
        self.encoder = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)
        self.start = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.decoder = nn.GRUCell(2 * width, width)  # from the last word and what was looked at
        self.output = nn.Linear(2 * width, width)
        self.dropout = Dropout(dropout)

    def encode(self, source: Tensor, source_mask: Tensor) -> Tensor:
        """What the encoder leaves at each word, in both directions side by side: the memory, (B, M, D).

        source: (B, M) tokens, padded on the right. source_mask: (B, M), True where a token is real; each row has one.
        """
        words = self.dropout(self.embedding(source))  # (B, M, D)
        lengths = source_mask.sum(1).cpu()  # packed, so the backward direction begins at each row's last real word
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        memory, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=source.shape[1])
        return memory  # (B, M, D), zero where the source is padding

    def first_state(self, memory: Tensor, source_mask: Tensor) -> Tensor:
        """Where the decoder begins: the mean of the source's words, through one layer (B, D)."""
        return self.start(memory.sum(1) / source_mask.sum(1, keepdim=True)).tanh()

    def step(self, token: Tensor, state: Tensor, memory: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One word further: look at the source from the last state, then take the word in.

        token: (B,), the newest word of the target. state: (B, D).
        Returns what logits are read from, (B, D), the next state, (B, D), and the look, (B, M); its rows sum to 1.
        """
        look = attention_weights(self.query(state)[:, None], memory, source_mask[:, None])  # (B, 1, M)
        seen = (look @ memory)[:, 0]  # (B, D)
        word = self.dropout(self.embedding(token))  # (B, D)
        state = self.decoder(torch.cat([word, seen], dim=-1), state)  # (B, D)
        features = self.output(torch.cat([state, seen], dim=-1)).tanh()  # (B, D)
        return self.dropout(features), state, look[:, 0]

    def logits(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., V), by the embedding's own weights."""
        return features @ self.embedding.weight.T

    def forward(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        """Logits (B, L, V) after each token of a target that is known, as in training; still one word at a time."""
        return self.logits(self._walk(source, target, source_mask)[0])

    def weights(self, source: Tensor, target: Tensor, source_mask: Tensor) -> Tensor:
        """Which word of the source each step of the target looks at, for a picture: (B, L, M), each row sums to one."""
        return self._walk(source, target, source_mask)[1]

    def _walk(self, source: Tensor, target: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Every step's features (B, L, D) and looks (B, L, M)."""
        memory = self.encode(source, source_mask)
        state, features, looks = self.first_state(memory, source_mask), [], []
        for token in target.T:  # each state needs the one before it: this loop is what the Transformer did away with
            feature, state, look = self.step(token, state, memory, source_mask)
            features.append(feature)
            looks.append(look)
        return torch.stack(features, dim=1), torch.stack(looks, dim=1)


class GRUReader:
    """A `Reader` of `transformer.generation`: targets of sources that were encoded once, a state for each row."""

    def __init__(self, model: GRUTranslator, sources: Sequence[Sequence[int]]):
        device = model.embedding.weight.device
        lengths = torch.tensor([len(source) for source in sources], device=device)
        padded = pad(sources, device)  # (B, M)
        self.model = model
        self.source_mask = torch.arange(padded.shape[1], device=device) < lengths[:, None]  # (B, M)
        self.memory = model.encode(padded, self.source_mask)  # (B, M, D)
        self.state = model.first_state(self.memory, self.source_mask)  # (B, D)
        self.read = 0  # tokens of each target that the state has taken in

    def next_logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """One row for each target so far: (B, V). Targets of one call have one length and are longer than the last."""
        lengths = {len(text) for text in texts}
        if len(lengths) > 1 or max(lengths) <= self.read:
            raise ValueError(f"targets of {sorted(lengths)} tokens; expected one length above {self.read}")
        new = torch.tensor([text[self.read :] for text in texts], device=self.memory.device)  # (B, tokens not read)
        for token in new.T:
            features, self.state, _ = self.model.step(token, self.state, self.memory, self.source_mask)
        self.read += new.shape[1]
        return self.model.logits(features)

    def keep(self, rows: Sequence[int]) -> None:
        """The next call's targets continue these rows of the last call's."""
        index = torch.tensor(rows, device=self.memory.device)
        self.memory, self.source_mask, self.state = self.memory[index], self.source_mask[index], self.state[index]
