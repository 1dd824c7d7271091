"""How the documents are written: plain words, short sentences, a short README."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])

ODD_WORDS = re.compile(
    r"\b(anew|told|tells|foretell\w*|foretold|boast\w*|nobody|whoever|beside|hears|of which|whose|alone)\b",
    re.IGNORECASE,
)
"""Words that slow down a reader of technical English; again, given, predict, declare, next to, only are plainer."""

MOST_ODD_WORDS = 10  # in 10,000 words
MOST_ODD_WORDS_OF_CODE = 1  # in 10,000 words of docstrings and messages
MOST_WHOSE = 3  # in 10,000 words of docstrings and messages
MOST_WORDS_A_SENTENCE = 17  # on average, in the README
LONGEST_SENTENCE = 30  # in the README
MOST_LINES = 150  # of the README


def prose(text: str) -> str:
    """A page without its code blocks, table rows, headings and pictures; a link becomes its words."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[)", line)]
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", "\n".join(lines))


def odd_words(pages: list[str]) -> list[str]:
    return [word for page in pages for word in ODD_WORDS.findall(prose(page))]


def odd_words_in_ten_thousand(pages: list[str]) -> float:
    return 10_000 * len(odd_words(pages)) / sum(len(prose(page).split()) for page in pages)


def strings(source: str) -> str:
    """The docstrings of a source, and its texts of several words, such as messages and help."""
    texts = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return "\n".join(text for text in texts if isinstance(text, str) and " " in text.strip())


def odd_words_of_code(text: str) -> list[str]:
    """Without "whose", which has a limit of its own: it is plain in "a tensor whose shape is known"."""
    return [word for word in ODD_WORDS.findall(text) if word.lower() != "whose"]


def sentences(text: str) -> list[str]:
    """A page's prose, split at full stops, exclamation and question marks."""
    return [part.strip() for part in re.split(r"[.!?](?=\s|$)", prose(text)) if part.strip()]


def words_a_sentence(text: str) -> float:
    return len(prose(text).split()) / len(sentences(text))


def long_sentences(text: str) -> list[str]:
    return [sentence for sentence in sentences(text) if len(sentence.split()) > LONGEST_SENTENCE]


def test_the_documents_use_plain_words():
    pages = [page.read_text() for page in PAGES]
    assert len(pages) >= 15
    assert odd_words_in_ten_thousand(pages) <= MOST_ODD_WORDS, sorted(odd_words(pages))


def test_docstrings_and_messages_use_plain_words():
    files = [file for package in ("dt", "envs", "transformer") for file in sorted((ROOT / package).rglob("*.py"))]
    texts = {file.name: strings(file.read_text()) for file in files}
    found = {name: odd for name, text in texts.items() if (odd := odd_words_of_code(text))}
    words = sum(len(text.split()) for text in texts.values())
    assert words >= 20_000
    assert 10_000 * sum(map(len, found.values())) / words <= MOST_ODD_WORDS_OF_CODE, found
    whose = {name: count for name, text in texts.items() if (count := len(re.findall(r"\bwhose\b", text)))}
    assert 10_000 * sum(whose.values()) / words <= MOST_WHOSE, whose


def test_the_readme_is_short():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= MOST_LINES
    assert words_a_sentence(readme) <= MOST_WORDS_A_SENTENCE
    assert long_sentences(readme) == []


def test_the_checks_of_style_can_fail():
    odd = "Nobody is told. It stands beside the one whose name is alone, of which more anew."
    assert odd_words([odd, "plain"]) == ["Nobody", "told", "beside", "whose", "alone", "of which", "anew"]
    assert odd_words_in_ten_thousand([odd, "plain " * 4]) == pytest.approx(10_000 * 7 / 20)
    assert odd_words(["```\nnobody told\n```\n| whoever | anew |\n# Alone\n[plain](alone.md) words"]) == []
    code = (
        'def f():\n    """Nobody knows."""\n    raise ValueError(f"{alone}: beside it, whose {1}")  # told\n{"told": 1}'
    )
    assert odd_words_of_code(strings(code)) == ["Nobody", "beside"]
    assert words_a_sentence("One two. Three v1.2 five six! [Seven](x.md) eight?") == pytest.approx(8 / 3)
    assert long_sentences("word " * 30 + ". " + "word " * 31 + ".") == [("word " * 31).strip()]
