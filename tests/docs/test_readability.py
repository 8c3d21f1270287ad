"""The README is short, and the sentences of all pages are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")))
_NOT_PROSE = re.compile(r"^```.*?^```|<!--.*?-->|^\|.*?$|^#.*?$|!\[[^\]]*\]\([^)]*\)", re.MULTILINE | re.DOTALL)


def prose(page):
    """Text of a page without code blocks, tables, headings, pictures and the targets of links."""
    return re.sub(r"\]\([^)]*\)", "]", _NOT_PROSE.sub("\n", (ROOT / page).read_text(encoding="utf-8")))


def sentences(text):
    """Lengths of the sentences of a text, in words. Paragraphs and items of lists end a sentence too."""
    parts = re.split(r"(?<=[.!?:])[*)]*\s+|\n\s*\n|\n - |\n\d\. ", text)
    found = [len(re.findall(r"[\w`'\-./%]*\w[\w`'\-./%]*", part)) for part in parts]
    return [words for words in found if words]


def test_sentences_are_counted():
    assert sentences("One two. Three four five!\n - A list\n - of two items: all.\n\nAnd `a.b` (one).") == [
        2,
        3,
        2,
        3,
        1,
        3,
    ]


def test_readme_has_700_to_900_words():
    """As `wc -w` counts them, with commands and tables."""
    assert 700 <= len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", PAGES)
def test_the_mean_sentence_has_fewer_than_20_words(page):
    found = sentences(prose(page))
    assert found and sum(found) / len(found) < 20
