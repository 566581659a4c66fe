"""Texts by likeness to a question: BM25 over words, by bm25s.

Equal scores keep the order of the texts, so that a choice depends on nothing but the texts. It
leaves out stemming and stop words: they are one language's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from potstill.errors import PotstillError

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, without case.

    >>> words("Ann has 47 apples.")
    ['ann', 'has', '47', 'apples']
    """
    return _WORD.findall(text.casefold())


class Search:
    """An index over texts.

    Raises:
        PotstillError: bm25s is not installed, or no text has a word.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            from bm25s import BM25
        except ImportError:
            raise PotstillError(
                "similar texts are found with bm25s, which is not installed",
                "pip install 'potstill[context]'",
            ) from None
        split = [words(text) for text in texts]
        if not any(split):
            raise PotstillError("none of the texts to search has a word", "give texts with words")
        self._index, self._size = BM25(), len(texts)
        self._index.index(split, show_progress=False)

    def nearest(self, question: str, count: int) -> list[int]:
        """Indices of the `count` texts that fit a question best, best first."""
        known = [word for word in words(question) if word in self._index.vocab_dict]
        scores = self._index.get_scores(known) if known else np.zeros(self._size)
        return np.argsort(-scores, kind="stable")[:count].tolist()
