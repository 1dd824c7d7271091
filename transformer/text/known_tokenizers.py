"""A stranger's tokenizer is one of the kinds that the text programs write, or GPT-2's; all others are refused.

The `tokenizers` library can do far more, and some of it harms: a few thousand bytes of normalizers make 10^12 bytes of
one prompt, and damaged tables end the process. So a file is checked part by part, and only the known parts of it are
given to the library, written again: if a name is there twice, the library would take the other one.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformer.errors import CheckpointError
from transformer.files import parse_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHARACTERS = {"type": "Split", "pattern": {"Regex": "(?m:.)"}, "behavior": "Isolated", "invert": False}
"""The pre-tokenizer of a character model."""

BYTE_LEVEL = {"add_prefix_space": (False, True), "trim_offsets": (False, True), "use_regex": (False, True)}
"""Settings that GPT-2's pre-tokenizer and decoder may have."""

MODELS: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "WordLevel": {"vocab": None, "unk_token": ("",)},
    "BPE": {
        "vocab": None,
        "merges": None,
        "dropout": (None,),
        "unk_token": (None,),
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "fuse_unk": (None, False),
        "byte_fallback": (None, False),
        "ignore_merges": (None, False),
    },
}
"""Fields of the two models, and their values; of those with None the library says itself what is wrong."""

LONGEST = 100_000
"""Characters of a token: each that is written may be as long."""


def known_tokenizer(text: str, where: str) -> "Tokenizer":
    """The tokenizer of a JSON text. One of another kind, or damaged, raises `CheckpointError`. where: what it names."""
    from tokenizers import Tokenizer

    try:
        document = _known_parts(parse_json(text))
        with named_panic():
            return Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{where}: its tokenizer cannot be read ({reason}); only the kinds that dt-text writes and GPT-2's are"
        ) from None


@contextmanager
def named_panic() -> Iterator[None]:
    """Raise a panic of the library's, which is not an `Exception`, as a `ValueError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizers library gave up: {error}") from None


def _known_parts(document: Any) -> dict[str, Any]:
    """What the library is given of a document; padding, truncation and the post-processor are not used here."""
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    if document.get("normalizer") is not None:
        raise ValueError(f"normalizer {_kind(document['normalizer'])}, expected none")
    before, after, model = (document.get(name) for name in ("pre_tokenizer", "decoder", "model"))
    if isinstance(model, dict) and "merges" in model:
        model = {"type": "BPE", **model}  # GPT-2's file does not name it
    if before not in (None, CHARACTERS) and not _is_byte_level(before):
        raise ValueError(f"pre_tokenizer {_kind(before)}, expected ByteLevel or single characters")
    if after not in (None, {"type": "Fuse"}) and not _is_byte_level(after):
        raise ValueError(f"decoder {_kind(after)}, expected ByteLevel or Fuse")
    _check_model(model)
    added = document.get("added_tokens") or []
    _check_lengths([token["content"] for token in added])
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    known = {"added_tokens": added, "pre_tokenizer": before, "decoder": after, "model": model}
    return {"version": "1.0", **nothing, **known}


def _is_byte_level(part: Any) -> bool:
    if not isinstance(part, dict) or part.get("type") != "ByteLevel":
        return False
    return all(name in BYTE_LEVEL and value in BYTE_LEVEL[name] for name, value in part.items() if name != "type")


def _check_model(model: Any) -> None:
    fields = MODELS.get(_kind(model))
    if fields is None:
        raise ValueError(f"model {_kind(model)}, expected one of {', '.join(MODELS)}")
    for name, value in model.items():
        if name != "type" and name not in fields:
            raise ValueError(f"model {_kind(model)}: {name!r} is not known")
        allowed = fields.get(name)
        if allowed is not None and value not in allowed:
            raise ValueError(f"model {_kind(model)}: {name} {value!r:.80}, expected {allowed[-1]!r}")
    if not isinstance(model.get("vocab"), dict):
        raise ValueError(f"model {_kind(model)}: no vocab")
    _check_lengths(model["vocab"])


def _check_lengths(tokens: Any) -> None:
    if longest := max((len(token) for token in tokens if len(token) > LONGEST), default=0):
        raise ValueError(f"a token of {longest} characters, expected at most {LONGEST}")


def _kind(part: Any) -> str:
    """What a part calls itself."""
    return str(part.get("type"))[:80] if isinstance(part, dict) else str(part)[:80]
