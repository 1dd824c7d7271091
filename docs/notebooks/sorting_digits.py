# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # The Transformer by itself
#
# The package `transformer` knows nothing of rewards or environments. This notebook uses it as a language model:
# it learns to sort digits, writes, and shows where its attention looks. It needs torch only.
#
# Run it as a script: `python docs/notebooks/sorting_digits.py`. It takes a few seconds.

# %% [markdown]
# ## 1. A language of sorted digits
#
# A sentence is four digits, a `>`, and the same digits in order: `3 1 4 1 > 1 1 3 4`.

# %%
import torch
from torch.nn import functional as F

from transformer import LanguageConfig, LanguageModel, Sampling, generate

ARROW = 10  # tokens 0 to 9 are the digits
random = torch.Generator().manual_seed(0)


def sentences(number: int) -> torch.Tensor:
    """Sentences of 9 tokens: (number, 9)."""
    digits = torch.randint(0, 10, (number, 4), generator=random)
    arrow = torch.full((number, 1), ARROW)
    return torch.cat([digits, arrow, digits.sort(dim=1).values], dim=1)


print(sentences(3).tolist())

# %% [markdown]
# ## 2. Train
#
# The model predicts each next token from those before it. Only the sorted half can be predicted, so only that counts.

# %%
torch.manual_seed(0)
config = LanguageConfig(vocabulary_size=11, context_length=9, width=64, num_layers=2, num_heads=4, dropout=0.0)
model = LanguageModel(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(400):
    tokens = sentences(64)  # (B, L)
    logits = model(tokens[:, :-1])  # (B, L - 1, V)
    loss = F.cross_entropy(logits[:, 4:].flatten(0, 1), tokens[:, 5:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0 or step == 399:
        print(f"step {step:3}   loss {loss.item():.3f}")

# %% [markdown]
# ## 3. Write
#
# `generate` continues prompts of any length, many at once. Temperature 0 takes the most likely token.

# %%
model.eval()
exam = sentences(200)
written = generate(model, exam[:, :5].tolist(), 4, Sampling(temperature=0))
correct = sum(text == sentence for text, sentence in zip(written, exam.tolist(), strict=True))
print(f"{correct} of {len(exam)} sorted without a mistake")
print(written[0])

# %% [markdown]
# ## 4. Look at its attention
#
# `weights` of an attention returns how much each position looks at each other one. It hides the future: every
# number above the diagonal is exactly zero.

# %%
first = model.transformer.blocks[0]
with torch.no_grad():
    x = model.embedding(exam[:1], torch.arange(9))  # (1, L, D)
    weights = first.attention.weights(first.attention_norm(x))[0]  # (H, L, L)
print(weights.shape)
print("largest weight on the future:", weights.triu(1).max().item())
