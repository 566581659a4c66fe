"""Engine for pairs whose tokenizers differ: translate between the loop and a torch engine.

The loop works in the student's tokens; the teacher reads and writes its own. Each model renders a
question with its own chat template. Teacher completions are re-tokenized via bytes into the
student's tokens; EOS maps to EOS. The teacher reads the student's completions in its own tokens,
and its log-probabilities are mapped back over the aligned spans (`alignment`). The data of a step
are translated as a whole: with a sampled loss each token gets the advantage of its span; with a
loss on full-vocabulary log-probs it is compared with the teacher's distribution at the same token,
if both models have that token there. No other part of a run handles two tokenizers.

Limits, metering and prices count the student's tokens. A teacher completion that reaches its limit
is truncated between two characters. The other model cannot read special tokens other than EOS: they
carry no loss and are dropped. If several ids end a completion, the tokenizer's own EOS is
translated. The teacher has no log-probs over the student's vocabulary, so losses that need them are
rejected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from potstill.algorithms.losses import CROSSED, CROSSING, GOLD_HINT
from potstill.engines.cross_tokenizer.alignment import (
    Span,
    align,
    match_tokens,
    skip_tokens,
    span_numbers,
    spread_scores,
)
from potstill.engines.cross_tokenizer.token_bytes import TokenBytes, shared_ids
from potstill.engines.flops import Machine, Size
from potstill.engines.prompts import Prompting
from potstill.engines.torch.distributed import distributed
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.problems import Messages, Problem
from potstill.types import (
    WHOLE,
    Datum,
    Expectation,
    Floats,
    Ids,
    Prompt,
    Reading,
    Role,
    Rows,
    Sample,
    Source,
    StepStats,
    Term,
    TokenMatch,
    Truncation,
    is_teacher,
)


class TwoTokenizers(TorchEngine):
    """A torch engine that accepts a teacher with its own tokenizer; each role uses its own ids."""

    cross = True


class CrossEngine(Prompting):
    """The engine protocol in the student's tokens, for a teacher with another tokenizer.

    Args:
        engine: the engine that holds the models.
    """

    losses = CROSSED

    def __init__(self, engine: TwoTokenizers) -> None:
        self.engine, pair = engine, engine.pair
        self.eos, self.windows = engine.eos, engine.windows
        self.tokenizer, self.coverage = engine.tokenizer, engine.coverage
        self.vocabulary, self.student_spec = engine.vocabulary, engine.student_spec
        self.student_tokens = TokenBytes(pair.tokenizer, pair.student, pair.eos_of("student"))
        self.teacher_tokens = TokenBytes(
            pair.teacher_tokenizer, pair.teacher, pair.eos_of("teacher")
        )
        shared = shared_ids(self.student_tokens, self.teacher_tokens)
        self.shared = shared[(shared < np.array(pair.rows)).all(1)]  # ids that both heads have
        self.notes = (*engine.notes, "the tokenizers differ: completions are aligned by bytes")
        self._cached_reading = lru_cache(maxsize=8192)(self._read_completion)

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        return self.engine.pair.encode(text, role)

    def _teacher_ids(self, text: str | Messages) -> Ids:
        return self.encode(text)  # the teacher reads `Prompt.foreign`

    def rendered(self, prompt: Prompt, role: Role) -> str:
        if is_teacher(role) and prompt.foreign is not None:
            return str(self.engine.pair.teacher_tokenizer.decode(list(prompt.foreign)))
        return super().rendered(prompt, role)

    def decode(self, tokens: Ids) -> str:
        return self.engine.decode(tokens)

    def _rendered(self, problem: Problem) -> Prompt:
        prompt = super()._rendered(problem)
        text = self._builder.conversation(problem) if self._builder else problem.conversation
        return dataclasses.replace(prompt, foreign=self.encode(text, "teacher"))

    def _without_space(self, prompt: Prompt, text: str) -> bool:
        """Return False: the teacher's own completions are written in the same way."""
        return False

    def _read_completion(self, completion: Ids) -> tuple[Ids, tuple[Span, ...]]:
        """Return a completion in the teacher's tokens, and its aligned spans."""
        ended = bool(completion) and completion[-1] in self.eos
        body = completion[:-1] if ended else completion
        ids = self.teacher_tokens.encode(self.student_tokens.decode(body))
        ids += (self.teacher_tokens.eos_id,) * ended
        return ids, tuple(self._align(completion, ids, ended=ended))

    def _align(self, student_ids: Ids, teacher_ids: Ids, *, ended: bool) -> list[Span]:
        """Align the ids of one completion."""
        student = self.student_tokens.bytes_of(student_ids)
        return align(student, self.teacher_tokens.bytes_of(teacher_ids), ended=ended)

    def teacher_reading(
        self, prompt: Prompt, completion: Ids
    ) -> tuple[tuple[Ids, Ids], list[Span]]:
        """Return prompt and completion in the teacher's tokens, and the completion's spans.

        Raises:
            PotstillError: the prompt has no ids in the teacher's vocabulary.
        """
        ids, spans = self._cached_reading(prompt.begun + completion)
        return (_teacher_prompt(prompt), ids), skip_tokens(spans, len(prompt.begun))

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        if not is_teacher(role):
            return self.engine.sample(role, prompts, max_tokens, temperature, rng, truncation)
        starts = [
            _teacher_prompt(prompt)
            + self.teacher_tokens.encode(self.student_tokens.decode(prompt.begun))
            for prompt in prompts
        ]
        heads = [Prompt.of(ids) for ids in starts]
        ids: list[Ids] = [()] * len(prompts)
        scores, drawn = ([np.zeros(0, np.float32)] * len(prompts) for _ in range(2))
        left = list(max_tokens)
        while any(left):  # a completion may have more teacher tokens than student tokens
            rows = [i for i, limit in enumerate(left) if limit]
            continued = [heads[i].then(ids[i]) for i in rows]
            limits = [left[i] for i in rows]
            samples = self.engine.sample(role, continued, limits, temperature, rng, truncation)
            for i, sample in zip(rows, samples, strict=True):
                ids[i] += sample.tokens
                scores[i] = np.concatenate([scores[i], sample.logprobs])
                drawn[i] = np.concatenate([drawn[i], sample.behavior_logprobs])
                ended = sample.tokens[-1] in self.teacher_tokens.eos_ids
                has_text = len(self.teacher_tokens.decode(sample.tokens)) > 0
                text = self.teacher_tokens.decode(ids[i])
                missing = max_tokens[i] - len(self.student_tokens.encode(text))
                left[i] = max(missing, 0) if has_text and not ended else 0
        return [self._to_student(*row) for row in zip(ids, scores, max_tokens, drawn, strict=True)]

    def _to_student(
        self, ids: Ids, scores: Floats, limit: int, drawn: Floats | None = None
    ) -> Sample:
        """Convert a teacher sample to the student's tokens; span scores are spread evenly."""
        ended = bool(ids) and ids[-1] in self.teacher_tokens.eos_ids
        text = self.teacher_tokens.decode(ids[:-1] if ended else ids)
        student_ids = self.student_tokens.encode(text) + (self.student_tokens.eos_id,) * ended
        spans = self._align(student_ids, ids, ended=ended)
        size = len(student_ids)
        logprobs, behavior = (
            spread_scores(spans, x, size) for x in (scores, scores if drawn is None else drawn)
        )
        if not (ended and len(student_ids) <= limit):
            student_ids = self.student_tokens.truncate(student_ids, limit)
        size = len(student_ids)
        return Sample(student_ids, logprobs[:size], behavior[:size])

    def score(self, role: Role, rows: Sequence[Reading]) -> list[Floats]:
        if not is_teacher(role):
            return self.engine.score(role, rows)
        readings = [self.teacher_reading(*row) for row in rows]
        teacher_rows = [(Prompt.of(prompt), ids) for (prompt, ids), _ in readings]
        return [
            spread_scores(spans, scores, len(completion))
            for (_, completion), (_, spans), scores in zip(
                rows, readings, self.engine.score(role, teacher_rows), strict=True
            )
        ]

    def rows(self, role: Role, prompt: Prompt, completion: Ids) -> Rows:
        if is_teacher(role):
            raise PotstillError(
                "a teacher with another tokenizer has no log-probs over the student's vocabulary",
                GOLD_HINT,
            )
        return self.engine.rows(role, prompt, completion)

    def teacher_rows(self, prompt: Ids, completion: Ids) -> Rows:
        """Return the teacher's full-vocabulary log-probs (T, W) of its own tokens."""
        return self.engine.rows("teacher", Prompt.of(prompt), completion)

    def inspect(self, role: Role, rows: Sequence[Reading]) -> list[Expectation]:
        if not is_teacher(role):
            return self.engine.inspect(role, rows)
        return [Expectation(logprobs=scores) for scores in self.score(role, rows)]

    def step(self, data: Sequence[Datum], learning_rate: float) -> StepStats:
        return self.engine.step(self.translate(data), learning_rate)

    def measure(self, data: Sequence[Datum], *, dropout: bool = False) -> StepStats:
        return self.engine.measure(self.translate(data), dropout=dropout)

    def translate(self, data: Sequence[Datum]) -> list[Datum]:
        """Return the data of a step as the models read them.

        Losses on full-vocabulary log-probs apply only to matched tokens. The weights of these
        tokens are scaled up, so that each source keeps its total weight.
        """
        translated = [self._translated(datum) for datum in data]
        factor = dict(_weight_factors(data, translated))
        return [
            dataclasses.replace(
                datum,
                terms=tuple(
                    Term(t.loss, t.weights * factor[datum.source]) if t.loss.name in CROSSING else t
                    for t in datum.terms
                ),
            )
            for datum in translated
        ]

    def _translated(self, datum: Datum) -> Datum:
        losses = {t.loss for t in datum.terms if t.loss.to == "teacher"}
        for loss in losses:
            if loss.needs == "full_logprobs" and loss.name not in CROSSING:
                raise PotstillError(
                    f"{loss} needs the teacher's log-probs over the student's vocabulary, and the "
                    "tokenizers of this pair differ",
                    GOLD_HINT,
                )
        if all(loss.needs == "tokens" for loss in losses):
            return datum
        (prompt, ids), spans = self.teacher_reading(*datum.reading("teacher"))
        positions = match_tokens(spans, len(datum.completion))
        if self.student_tokens.adds_space or self.teacher_tokens.adds_space:
            positions[:1] = -1  # the first token contains a space that is not part of the text
        numbers = span_numbers(spans, len(datum.completion))
        matched = (positions >= 0).astype(np.float32)
        teacher_view = Prompt.of(prompt), ids or (self.teacher_tokens.eos_id,)
        return dataclasses.replace(
            datum,
            terms=tuple(
                Term(t.loss, t.weights * matched) if t.loss.name in CROSSING else t
                for t in datum.terms
            ),
            views={**datum.views, "teacher": teacher_view},
            match=TokenMatch(positions, self.shared, numbers),
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


def _teacher_prompt(prompt: Prompt) -> Ids:
    if prompt.foreign is None:
        raise PotstillError(
            "a teacher with another tokenizer reads the problem under its own template, and this "
            f"prompt has only {len(prompt.student)} ids in the student's vocabulary",
            "use engine.prompt(problem) for prompts",
        )
    return prompt.foreign


def _weight_factors(
    data: Sequence[Datum], translated: Sequence[Datum]
) -> Iterator[tuple[Source, np.float32]]:
    """Yield for each source the total weight of all tokens divided by that of matched tokens."""
    sources: tuple[Source, ...] = ("student", "teacher")
    for source in sources:
        total, matched = (
            sum(
                float(term.weights.sum())
                for datum in side
                for term in datum.terms
                if datum.source == source and term.loss.name in CROSSING
            )
            for side in (data, translated)
        )
        yield source, np.float32(total / matched if matched else 0.0)


def open_pair(student: str, teacher: str, **settings: Any) -> TorchEngine | CrossEngine:
    """Open a pair with the torch engine, behind a `CrossEngine` if its tokenizers differ."""
    engine = distributed(TwoTokenizers)(student, teacher, **settings)
    return engine if engine.pair.teacher_tokenizer is None else CrossEngine(engine)


ENGINE = open_pair
