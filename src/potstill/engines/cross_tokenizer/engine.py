"""Pairs whose tokenizers differ: a translator between the loop, which speaks the student's tokens,
and a torch engine whose teacher reads and writes its own.

A question is rendered by each model's own template. What the teacher writes goes through bytes into
the student's tokens, EOS for EOS; what the student wrote is read by the teacher in its own tokens,
and what it says of them comes back over the spans of `align`. Data of a step are translated
whole: a sampled token gets its span's advantage, a whole row the teacher's row at the one token
that both models chose there. Nothing else of a run knows of two tokenizers.

Limits, meters and prices count the student's tokens. A teacher's text that reaches a limit is cut
between two characters.
Special tokens other than EOS cannot be read by the other model: they carry no loss and are not
handed on. Of several ids that end a text the tokenizer's own EOS is the one that is translated.
It leaves out the teacher's whole rows over the student's vocabulary, which do not exist.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from potstill.algorithms.losses import CROSSED, CROSSING, GOLD_HINT, LOSSES
from potstill.engines.cross_tokenizer.alignment import (
    Span,
    after,
    align,
    common,
    credited,
    places,
    shares,
)
from potstill.engines.cross_tokenizer.token_bytes import Spelling, shared
from potstill.engines.torch.distributed import opened
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.tasks.rendering import Messages, render
from potstill.types import (
    Beside,
    Datum,
    Floats,
    Ids,
    Outlook,
    Role,
    Rows,
    Sample,
    Source,
    StepStats,
    Term,
)


class TwoTokenizers(TorchEngine):
    """A torch engine whose teacher may read other tokens; each role is asked in its own."""

    cross = True


class CrossEngine:
    """The engine protocol in the student's tokens, over models that do not share them.

    Args:
        engine: holds the models.
    """

    losses = CROSSED

    def __init__(self, engine: TwoTokenizers) -> None:
        self.engine, pair = engine, engine.pair
        self.eos = engine.eos
        self.mine = Spelling(pair.tokenizer, pair.student, pair.ends("student"))
        self.its = Spelling(pair.other, pair.teacher, pair.ends("teacher"))
        self.shared = shared(self.mine, self.its)
        self.notes = (*engine.notes, "tokenizers differ: texts are aligned by bytes")
        self._prompts: dict[Ids, Ids] = {}
        self.read = lru_cache(maxsize=8192)(self._read)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, asked: str | Messages) -> Ids:
        mine = self.engine.encode(asked)
        self._prompts.setdefault(mine, render(self.engine.pair.other, asked))
        return mine

    def prompt(self, ids: Ids) -> tuple[Ids, Ids]:
        """The teacher's prompt for the student's, and what stands after that one already.

        Raises:
            PotstillError: the ids are no prompt that the student's template makes.
        """
        for size in range(len(ids), 0, -1):
            if ids[:size] in self._prompts:
                return self._prompts[ids[:size]], ids[size:]
        self.encode(self._question(ids))
        if ids not in self._prompts:
            raise PotstillError(
                "a teacher of another tokenizer reads the question under its own template, and "
                f"these {len(ids)} ids are no prompt of the student's template",
                "use engine.encode(question) for prompts",
            )
        return self._prompts[ids], ()

    def _question(self, ids: Ids) -> str:
        """The question in a prompt, as in those of a run that goes on in another process."""
        marked = [self._whole(self.engine.encode(mark)) for mark in ("0?", "?0")]
        lead, trail = (common(*(text[::way] for text in marked)) for way in (1, -1))
        text = self._whole(ids)
        return text[lead : len(text) - trail].decode("utf-8", "replace")

    def _whole(self, ids: Ids) -> bytes:
        """Bytes of a prompt, its special tokens written out."""
        tokens = self.mine.spell(ids)
        names = self.engine.tokenizer.convert_ids_to_tokens(list(ids))
        return b"".join(
            name.encode() if token is None else token
            for name, token in zip(names, tokens, strict=True)
        )

    def _read(self, completion: Ids) -> tuple[Ids, tuple[Span, ...]]:
        """The teacher's tokens of a completion, and how they stand beside the student's."""
        ended = bool(completion) and completion[-1] in self.eos
        body = completion[:-1] if ended else completion
        ids = self.its.encode(self.mine.text(body)) + (self.its.end,) * ended
        return ids, tuple(self.spans(completion, ids, ended=ended))

    def spans(self, mine: Ids, its: Ids, *, ended: bool) -> list[Span]:
        """Align ids of one completion."""
        return align(self.mine.spell(mine), self.its.spell(its), ended=ended)

    def seen(self, prompt: Ids, completion: Ids) -> tuple[tuple[Ids, Ids], list[Span]]:
        """What the teacher reads of a row: its prompt and completion, and the spans of ours."""
        its, head = self.prompt(prompt)
        ids, spans = self.read(head + completion)
        return (its, ids), after(spans, len(head))

    def sample(
        self,
        role: Role,
        prompts: Sequence[Ids],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        if role != "teacher":
            return self.engine.sample(role, prompts, max_tokens, temperature, rng)
        begun = [self.prompt(prompt) for prompt in prompts]
        heads = [its + self.its.encode(self.mine.text(head)) for its, head in begun]
        ids: list[Ids] = [()] * len(prompts)
        scores = [np.zeros(0, np.float32)] * len(prompts)
        left = list(max_tokens)
        while any(left):  # a text may take more of the teacher's tokens than of the student's
            rows = [i for i, limit in enumerate(left) if limit]
            asked = [heads[i] + ids[i] for i in rows], [left[i] for i in rows]
            written = self.engine.sample(role, *asked, temperature, rng)
            for i, new in zip(rows, written, strict=True):
                ids[i] += new.tokens
                scores[i] = np.concatenate([scores[i], new.logprobs])
                ended = new.tokens[-1] in self.its.ends
                spelt = len(self.its.text(new.tokens)) > 0
                missing = max_tokens[i] - len(self.mine.encode(self.its.text(ids[i])))
                left[i] = max(missing, 0) if spelt and not ended else 0
        return [self._ours(*row) for row in zip(ids, scores, max_tokens, strict=True)]

    def _ours(self, ids: Ids, scores: Floats, limit: int) -> Sample:
        """A teacher's text in the student's tokens; a span's log-probability is shared out."""
        ended = bool(ids) and ids[-1] in self.its.ends
        body = ids[:-1] if ended else ids
        mine = self.mine.encode(self.its.text(body)) + (self.mine.end,) * ended
        found = shares(self.spans(mine, ids, ended=ended), scores, len(mine))
        kept = mine if len(mine) <= limit and ended else self.mine.cut(mine, limit)
        return Sample(kept, found[: len(kept)])

    def score(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Floats]:
        if role != "teacher":
            return self.engine.score(role, rows)
        seen = [self.seen(*row) for row in rows]
        found = self.engine.score(role, [its for its, _ in seen])
        return [
            shares(spans, scores, len(completion))
            for (_, completion), (_, spans), scores in zip(rows, seen, found, strict=True)
        ]

    def rows(self, role: Role, prompt: Ids, completion: Ids) -> Rows:
        if role == "teacher":
            raise PotstillError(
                "a teacher of another tokenizer has no rows over the student's vocabulary",
                GOLD_HINT,
            )
        return self.engine.rows(role, prompt, completion)

    def teacher_rows(self, prompt: Ids, completion: Ids) -> Rows:
        """The teacher's own rows of what `seen` says that it reads."""
        return self.engine.rows("teacher", prompt, completion)

    def inspect(self, role: Role, rows: Sequence[tuple[Ids, Ids]]) -> list[Outlook]:
        if role != "teacher":
            return self.engine.inspect(role, rows)
        return [Outlook(logprobs=scores) for scores in self.score(role, rows)]

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self.translate(data), learning_rate)

    def measure(self, data: Sequence[Datum]) -> StepStats:
        return self.engine.measure(self.translate(data))

    def translate(self, data: Sequence[Datum]) -> list[Datum]:
        """The data of a step as the models read them; a source keeps its whole weight where only
        some of its tokens have a row of the teacher's to be compared with."""
        found = [self._translated(datum) for datum in data]
        factor = dict(_factors(data, found))
        return [
            dataclasses.replace(
                datum,
                terms=tuple(
                    Term(t.loss, t.weights * factor[datum.source]) if t.loss.name in CROSSING else t
                    for t in datum.terms
                ),
            )
            for datum in found
        ]

    def _translated(self, datum: Datum) -> Datum:
        asked = {t.loss for t in datum.terms if t.loss.to == "teacher"}
        for loss in asked:
            if LOSSES[loss.name] == "row" and loss.name not in CROSSING:
                raise PotstillError(
                    f"{loss} needs the teacher's whole row over the student's vocabulary, and the "
                    "tokenizers of this pair differ",
                    GOLD_HINT,
                )
        if all(LOSSES[loss.name] == "tokens" for loss in asked):
            return datum
        (prompt, ids), spans = self.seen(*datum.seen_by("teacher"))
        size = len(datum.completion)
        scores = datum.teacher_logprobs
        if scores is not None:
            scores = credited(spans, scores, datum.logprobs)
        beside = places(spans, size)
        if self.mine.leads or self.its.leads:
            beside[:1] = -1  # its first token has a space before it that is no part of the text
        same = (beside >= 0).astype(np.float32)
        return dataclasses.replace(
            datum,
            terms=tuple(
                Term(t.loss, t.weights * same) if t.loss.name in CROSSING else t
                for t in datum.terms
            ),
            teacher_logprobs=scores,
            views={**datum.views, "teacher": (prompt, ids or (self.its.end,))},
            beside=Beside(beside, self.shared),
        )


def _factors(data: Sequence[Datum], found: Sequence[Datum]) -> Iterator[tuple[Source, np.float32]]:
    """By how much weights on some tokens of a source fall short of those on all of them."""
    sources: tuple[Source, ...] = ("student", "teacher")
    for source in sources:
        sums = [
            sum(
                float(term.weights.sum())
                for datum in side
                for term in datum.terms
                if datum.source == source and term.loss.name in CROSSING
            )
            for side in (data, found)
        ]
        yield source, np.float32(sums[0] / sums[1] if sums[1] else 0.0)


def open_pair(student: str, teacher: str, **settings: Any) -> TorchEngine | CrossEngine:
    """Open a pair with the torch engine, through a translator where its tokenizers differ."""
    engine = opened(TwoTokenizers)(student, teacher, **settings)
    return engine if engine.pair.other is None else CrossEngine(engine)


ENGINE = open_pair
