"""Two tokenisations of one text, side by side: the shortest spans of bytes at whose ends both have
a boundary, and what a teacher of another tokenizer has to say about a student's tokens.

A span is one action of the student, however many tokens it takes. Where the student stands at a
span's start s and writes its tokens a, the chain rule gives log p(a|s) and log q(a|s), each the
sum of its own model's tokens. The gradient of KL(p, q) over the spans that can follow s is

    E_p [ sum over i in a of  grad log p(y_i)  x  (log p(a|s) - log q(a|s)) ],

so every token of a span is credited with the whole span's advantage A = log q(a|s) - log p(a|s),
not with a share of it: a share would be the gradient of no divergence. As with single tokens,
none is credited with what follows its span. With spans of one token this is the sampled reverse
KL of `losses`. Merging by the chain rule: "Unlocking On-Policy Distillation for Any Model Family"
(GOLD, Hugging Face 2025); alignment by bytes: ALM, arXiv 2503.20083; rows: ULD, arXiv 2402.12030.

Exact: both sums, and that gradient wherever a span's end depends on the text up to it alone.
Approximate, and known to be:
- q of the one tokenisation that its tokenizer gives is no more than q of the text, which has
  others; so is p of the tokens that the student happened to choose.
- a tokenizer may look one word ahead ("+" alone, but "+8" in one), so that a boundary can depend on
  what comes after it; the credit of the span before it leaves that out.
- the number reported counts a span's divergence once a token of it, as the gradient does. It is
  compared with itself.
- replayed text has one importance ratio a token where the span has their product, as in PPO.
- a text cut off by the limit is scored as if its last word ended there.

Pure Python and numpy: what bytes an id stands for is `spelling`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from potstill.types import Floats

Token = bytes | None  # what an id spells; None: a special token, which stands for no text
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Tokens of the student and of the teacher from one common boundary to the next.

    `aligned` says that both spell the same bytes; what does not align tells the student nothing.
    """

    mine: slice
    its: slice
    aligned: bool = True

    @property
    def single(self) -> bool:
        """One token on either side: both models choose from a whole row here."""
        return self.aligned and (_size(self.mine), _size(self.its)) == (1, 1)


def _size(part: slice) -> int:
    return int(part.stop - part.start)


def align(mine: Sequence[Token], its: Sequence[Token], *, ended: bool = False) -> list[Span]:
    """Spans that hold every token of both sides once, in order.

    Special tokens stand alone, aligned with nothing. A token without bytes (a tokenizer's leading
    space that is no part of the text) goes with what follows. Where the two texts differ, as under
    a tokenizer that normalises, all between their common beginning and end is one unaligned span.

    Args:
        mine: what the student's tokens spell.
        its: the same for the teacher's.
        ended: whether the last token of each is its EOS: those are a span of their own.

    >>> [(s.mine.stop, s.its.stop) for s in align([b"1", b"+", b"8"], [b"1", b"+8"])]
    [(1, 1), (3, 2)]
    """
    if ended:
        last = Span(slice(len(mine) - 1, len(mine)), slice(len(its) - 1, len(its)))
        return [*align(mine[:-1], its[:-1]), last]
    found: list[Span] = []
    a = c = 0
    for b, d in [*_stops(mine, its), (len(mine), len(its))]:
        while a < b and mine[a] is None:
            found.append(Span(slice(a, a + 1), slice(c, c), aligned=False))
            a += 1
        while c < d and its[c] is None:
            found.append(Span(slice(a, a), slice(c, c + 1), aligned=False))
            c += 1
        if a < b or c < d:
            found.append(Span(slice(a, b), slice(c, d), _same(mine[a:b], its[c:d])))
        a, c = b, d
    return found


def _same(mine: Sequence[Token], its: Sequence[Token]) -> bool:
    """Whether tokens spell the same bytes, some bytes, and nothing special in between."""
    known = [token for token in (*mine, *its) if token is not None]
    whole = [b"".join(token or b"" for token in side) for side in (mine, its)]
    return len(known) == len(mine) + len(its) and whole[0] == whole[1] != b""


def _stops(mine: Sequence[Token], its: Sequence[Token]) -> list[tuple[int, int]]:
    """Common boundaries after the start, as counts of tokens before them on either side."""
    texts = [b"".join(token or b"" for token in side) for side in (mine, its)]
    head = common(*texts)
    tail = min(common(texts[0][::-1], texts[1][::-1]), min(map(len, texts)) - head)
    counts = []
    for side, text in ((mine, texts[0]), (its, texts[1])):
        first: dict[int, int] = {}  # a place in the student's text -> tokens up to it
        for count, end in enumerate(accumulate(len(token or b"") for token in side), 1):
            if 0 < end <= head:
                first.setdefault(end, count)
            elif end > head and len(text) - end <= tail:
                first.setdefault(end - len(text) + len(texts[0]), count)
        counts.append(first)
    places = sorted(counts[0].keys() & counts[1].keys())
    return [(counts[0][place], counts[1][place]) for place in places]


def common(a: bytes, b: bytes) -> int:
    """Bytes that two texts have in common from their start."""
    both = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(both) if x != y), min(len(a), len(b)))


def after(spans: Sequence[Span], head: int) -> list[Span]:
    """The spans without the student's first `head` tokens; one that they cut keeps its rest."""
    rest = [span for span in spans if span.mine.stop > head]
    return [
        Span(slice(max(span.mine.start - head, 0), span.mine.stop - head), span.its, span.aligned)
        for span in rest
    ]


def shares(spans: Sequence[Span], scores: Floats, size: int) -> Floats:
    """A teacher's log-probabilities (T,) of the student's tokens: a span's is shared out evenly.

    Sums over whole spans are the teacher's own; single values are a convention. 0 where nothing
    aligns.

    Args:
        spans: of the text.
        scores: the teacher's log-probabilities of its own tokens.
        size: T.
    """
    out = np.zeros(size, np.float32)
    for span in spans:
        if span.aligned:
            out[span.mine] = scores[span.its].sum() / _size(span.mine)
    return out


def credited(spans: Sequence[Span], shared: Floats, sampler: Floats) -> Floats:
    """What stands for log q(y_i) in A_i = log q(y_i) - log p_sampler(y_i), so that each token of a
    span has the advantage of the whole span, and one that does not align has none.

    Args:
        spans: of the student's tokens.
        shared: (T,) the teacher's, see `shares`.
        sampler: (T,) the log-probabilities of who sampled them.
    """
    out = sampler.astype(np.float32).copy()
    for span in spans:
        if span.aligned:
            out[span.mine] += np.float32((shared[span.mine] - sampler[span.mine]).sum())
    return out


def places(spans: Sequence[Span], size: int) -> Places:
    """Which of the teacher's tokens is the same one as each of the student's (T,); -1 for none."""
    out = np.full(size, -1, np.int64)
    for span in spans:
        if span.single:
            out[span.mine] = span.its.start
    return out


def inside_a_character(text: bytes, cut: int) -> bool:
    """Whether the first `cut` bytes of a text end in the middle of a character.

    >>> [inside_a_character("né".encode(), cut) for cut in range(4)]
    [False, False, True, False]
    """
    for back in range(1, min(3, cut) + 1):
        lead = text[cut - back]
        if lead >> 6 != 0b10:  # no continuation: the character's first byte, or a whole one
            return back < (4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1)
    return False
