"""Align two tokenizations of one text, and assign credit over the aligned spans.

A span is the shortest run of bytes at whose ends both tokenizations have a boundary. It is one
action of the student, however many tokens it takes. At a span's start s the student samples the
tokens a. The chain rule gives log p(a|s) and log q(a|s), each the sum over that model's own tokens.
The gradient of KL(p, q) over the spans that can follow s is

    E_p [ sum over i in a of  grad log p(y_i)  x  (log p(a|s) - log q(a|s)) ],

so every token of a span gets the whole span's advantage A = log q(a|s) - log p(a|s), not a share
of it: a share would be the gradient of no divergence. If the span was drawn from another
distribution (a temperature, older weights), every token also gets the whole span's importance
ratio, the product over its tokens. `losses.tokens.over_spans` computes both. As with single tokens,
no token gets credit for anything after its span. If every span has one token, this is the sampled
reverse KL of `losses`. Merging by the chain rule: "Unlocking On-Policy Distillation for Any Model
Family" (GOLD, Hugging Face 2025); alignment by bytes: ALM, arXiv 2503.20083; full-vocabulary
log-probs: ULD, arXiv 2402.12030.

Exact: both sums, and the gradient wherever the end of a span depends only on the text before it.
Known approximations:
- q of the one tokenization that the teacher's tokenizer returns is at most q of the text, which
  has other tokenizations; the same holds for p of the tokens that the student sampled.
- A tokenizer may look one word ahead ("+" alone, but "+8" as one token), so a boundary can depend
  on the text after it. The credit of the preceding span ignores this.
- The reported loss counts a span's divergence once per token, as the gradient does. Compare it only
  with itself.
- A completion truncated by the token limit is scored as if its last word ended there.

This module uses Python and numpy only. `token_bytes` maps ids to bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from potstill.types import Floats

Token = bytes | None  # the bytes of an id; None: a special token, which has no bytes
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Tokens of the student and of the teacher from one common boundary to the next.

    `aligned` is true if both sides have the same bytes. A span that is not aligned carries no loss.
    """

    student: slice
    teacher: slice
    aligned: bool = True

    @property
    def single(self) -> bool:
        """True if each side is one token: only then can full-vocabulary log-probs be compared."""
        return self.aligned and (_size(self.student), _size(self.teacher)) == (1, 1)


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def align(student: Sequence[Token], teacher: Sequence[Token], *, ended: bool = False) -> list[Span]:
    """Split two tokenizations into spans that cover every token of each side once, in order.

    A special token is a span of its own and is aligned with nothing. A token without bytes (a
    leading space that the tokenizer adds) joins the span after it. If the two texts differ, for
    example because one tokenizer normalizes, everything between their common prefix and suffix is
    one unaligned span.

    Args:
        student: bytes of the student's tokens.
        teacher: bytes of the teacher's tokens.
        ended: whether the last token of each side is its EOS; these two form a span of their own.

    >>> spans = align([b"1", b"+", b"8"], [b"1", b"+8"])
    >>> [(span.student.stop, span.teacher.stop) for span in spans]
    [(1, 1), (3, 2)]
    """
    if ended:
        last = Span(slice(len(student) - 1, len(student)), slice(len(teacher) - 1, len(teacher)))
        return [*align(student[:-1], teacher[:-1]), last]
    spans: list[Span] = []
    a = c = 0
    for b, d in [*_boundaries(student, teacher), (len(student), len(teacher))]:
        while a < b and student[a] is None:
            spans.append(Span(slice(a, a + 1), slice(c, c), aligned=False))
            a += 1
        while c < d and teacher[c] is None:
            spans.append(Span(slice(a, a), slice(c, c + 1), aligned=False))
            c += 1
        if a < b or c < d:
            aligned = _same_bytes(student[a:b], teacher[c:d])
            spans.append(Span(slice(a, b), slice(c, d), aligned))
        a, c = b, d
    return spans


def _same_bytes(student: Sequence[Token], teacher: Sequence[Token]) -> bool:
    """Return whether both sides have the same bytes, at least one, and no special token."""
    ordinary = [token for token in (*student, *teacher) if token is not None]
    texts = [b"".join(token or b"" for token in side) for side in (student, teacher)]
    return len(ordinary) == len(student) + len(teacher) and texts[0] == texts[1] != b""


def _boundaries(student: Sequence[Token], teacher: Sequence[Token]) -> list[tuple[int, int]]:
    """Return the common boundaries after the start as numbers of tokens before them, per side."""
    texts = [b"".join(token or b"" for token in side) for side in (student, teacher)]
    head = common_prefix(*texts)
    tail = min(common_prefix(texts[0][::-1], texts[1][::-1]), min(map(len, texts)) - head)
    counts = []
    for side, text in ((student, texts[0]), (teacher, texts[1])):
        first: dict[int, int] = {}  # offset in the student's bytes -> number of tokens up to it
        for count, end in enumerate(accumulate(len(token or b"") for token in side), 1):
            if 0 < end <= head:
                first.setdefault(end, count)
            elif end > head and len(text) - end <= tail:
                first.setdefault(end - len(text) + len(texts[0]), count)
        counts.append(first)
    offsets = sorted(counts[0].keys() & counts[1].keys())
    return [(counts[0][offset], counts[1][offset]) for offset in offsets]


def common_prefix(a: bytes, b: bytes) -> int:
    """Return the length of the common prefix of two byte strings."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def skip_tokens(spans: Sequence[Span], count: int) -> list[Span]:
    """Drop the student's first `count` tokens; a span that contains the cut keeps its rest."""
    return [
        Span(
            slice(max(span.student.start - count, 0), span.student.stop - count),
            span.teacher,
            span.aligned,
        )
        for span in spans
        if span.student.stop > count
    ]


def spread_scores(spans: Sequence[Span], scores: Floats, size: int) -> Floats:
    """Spread the teacher's log-probability of each span evenly over the student's tokens (T,).

    Sums over whole spans are exact; single values are a convention. Tokens of unaligned spans get
    0.

    Args:
        spans: aligned spans of the completion.
        scores: the teacher's log-probabilities of its own tokens.
        size: T.
    """
    out = np.zeros(size, np.float32)
    for span in spans:
        if span.aligned:
            out[span.student] = scores[span.teacher].sum() / _size(span.student)
    return out


def span_numbers(spans: Sequence[Span], size: int) -> Ints:
    """Return the number of each student token's span (T,), or -1 if its span is not aligned.

    >>> span_numbers(align([b"1", b"+", b"8"], [b"1", b"+8"]), 3).tolist()
    [0, 1, 1]
    """
    out = np.full(size, -1, np.int64)
    for number, span in enumerate(span for span in spans if span.aligned):
        out[span.student] = number
    return out


def match_tokens(spans: Sequence[Span], size: int) -> Ints:
    """Return the index of the equal teacher token for each student token (T,), or -1 for none."""
    out = np.full(size, -1, np.int64)
    for span in spans:
        if span.single:
            out[span.student] = span.teacher.start
    return out


def inside_a_character(text: bytes, cut: int) -> bool:
    """Return whether the first `cut` bytes of a text end in the middle of a character.

    >>> [inside_a_character("né".encode(), cut) for cut in range(4)]
    [False, False, True, False]
    """
    for back in range(1, min(3, cut) + 1):
        lead = text[cut - back]
        if lead >> 6 != 0b10:  # not a continuation byte: the first byte of a character
            return back < (4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1)
    return False
