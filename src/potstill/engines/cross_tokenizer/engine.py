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
from pathlib import Path
from typing import Any

import numpy as np

from potstill.algorithms.losses import CROSSED, CROSSING, GOLD_HINT, LOSSES
from potstill.engines.cross_tokenizer.alignment import (
    Span,
    after,
    align,
    credited,
    places,
    shares,
)
from potstill.engines.cross_tokenizer.token_bytes import Spelling, shared
from potstill.engines.flops import Machine, Size
from potstill.engines.prompts import Prompting
from potstill.engines.torch.distributed import opened
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.tasks.rendering import Messages, render
from potstill.types import (
    Datum,
    Expectation,
    Floats,
    Ids,
    Problem,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    Source,
    StepStats,
    Term,
    TokenMatch,
    is_teacher,
)


class TwoTokenizers(TorchEngine):
    """A torch engine whose teacher may read other tokens; each role is asked in its own."""

    cross = True


class CrossEngine(Prompting):
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
        self.read = lru_cache(maxsize=8192)(self._read)

    def encode(self, asked: str | Messages, role: Role = "student") -> Ids:
        return render(self.engine.pair.other if is_teacher(role) else self.engine.tokenizer, asked)

    def decode(self, tokens: Ids) -> str:
        return self.engine.decode(tokens)

    def _rendered(self, problem: Problem) -> Prompt:
        prompt = super()._rendered(problem)
        asked = self._briefing.tell(problem) if self._briefing else problem.question
        return dataclasses.replace(prompt, foreign=self.encode(asked, "teacher"))

    def _read(self, completion: Ids) -> tuple[Ids, tuple[Span, ...]]:
        """The teacher's tokens of a completion, and how they stand beside the student's."""
        ended = bool(completion) and completion[-1] in self.eos
        body = completion[:-1] if ended else completion
        ids = self.its.encode(self.mine.text(body)) + (self.its.end,) * ended
        return ids, tuple(self.spans(completion, ids, ended=ended))

    def spans(self, mine: Ids, its: Ids, *, ended: bool) -> list[Span]:
        """Align ids of one completion."""
        return align(self.mine.spell(mine), self.its.spell(its), ended=ended)

    def seen(self, prompt: Prompt, completion: Ids) -> tuple[tuple[Ids, Ids], list[Span]]:
        """The teacher's own tokens of a row, prompt and completion, and the spans of ours.

        Raises:
            PotstillError: the prompt is of ids alone, which the teacher does not read.
        """
        ids, spans = self.read(prompt.begun + completion)
        return (_foreign(prompt), ids), after(spans, len(prompt.begun))

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        if not is_teacher(role):
            return self.engine.sample(role, prompts, max_tokens, temperature, rng)
        heads = [
            Prompt.of(_foreign(prompt) + self.its.encode(self.mine.text(prompt.begun)))
            for prompt in prompts
        ]
        ids: list[Ids] = [()] * len(prompts)
        scores = [np.zeros(0, np.float32)] * len(prompts)
        left = list(max_tokens)
        while any(left):  # a text may take more of the teacher's tokens than of the student's
            rows = [i for i, limit in enumerate(left) if limit]
            asked = [heads[i].then(ids[i]) for i in rows], [left[i] for i in rows]
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

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        if not is_teacher(role):
            return self.engine.score(role, rows)
        seen = [self.seen(*row) for row in rows]
        found = self.engine.score(role, [(Prompt.of(its), ids) for (its, ids), _ in seen])
        return [
            shares(spans, scores, len(completion))
            for (_, completion), (_, spans), scores in zip(rows, seen, found, strict=True)
        ]

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        if is_teacher(role):
            raise PotstillError(
                "a teacher of another tokenizer has no rows over the student's vocabulary",
                GOLD_HINT,
            )
        return self.engine.rows(role, prompt, completion)

    def teacher_rows(self, prompt: Ids, completion: Ids) -> Rows:
        """The teacher's own full-vocabulary log-probs of its tokens, see `seen`."""
        return self.engine.rows("teacher", Prompt.of(prompt), completion)

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        if not is_teacher(role):
            return self.engine.inspect(role, rows)
        return [Expectation(logprobs=scores) for scores in self.score(role, rows)]

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
        (prompt, ids), spans = self.seen(*datum.reading("teacher"))
        size = len(datum.completion)
        scores = datum.teacher_logprobs
        if scores is not None:
            scores = credited(spans, scores, datum.logprobs)
        positions = places(spans, size)
        if self.mine.leads or self.its.leads:
            positions[:1] = -1  # its first token has a space before it that is no part of the text
        same = (positions >= 0).astype(np.float32)
        return dataclasses.replace(
            datum,
            terms=tuple(
                Term(t.loss, t.weights * same) if t.loss.name in CROSSING else t
                for t in datum.terms
            ),
            teacher_logprobs=scores,
            views={**datum.views, "teacher": (Prompt.of(prompt), ids or (self.its.end,))},
            match=TokenMatch(positions, self.shared),
        )

    @property
    def devices(self) -> int | None:
        return self.engine.devices

    def size(self, role: Role) -> Size | None:
        return self.engine.size(role)

    def machines(self) -> dict[Role, Machine]:
        return self.engine.machines()

    def bounds(
        self, machines: dict[Role, Machine], rows: Sequence[tuple[int, int]], targets: set[Role]
    ) -> dict[str, float]:
        return self.engine.bounds(machines, rows, targets)

    def memory(self) -> tuple[int, int]:
        return self.engine.memory()

    def save(self, folder: Path) -> None:
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        self.engine.load(folder)

    def export(self, folder: Path) -> None:
        self.engine.export(folder)

    def close(self) -> None:
        self.engine.close()


def _foreign(prompt: Prompt) -> Ids:
    if prompt.foreign is None:
        raise PotstillError(
            "a teacher of another tokenizer reads the problem under its own template, and this "
            f"prompt has {len(prompt.student)} ids of the student's alone",
            "use engine.prompt(problem) for prompts",
        )
    return prompt.foreign


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
