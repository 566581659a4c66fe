"""Pre-flight of cross-tokenizer pairs: statistics of the alignment, and a reference of the losses.

The losses are computed a second time from each model's own log-probs, unpadded and in double
precision, and summed over spans. The data are compared as the engine passes them to the models.
The alignment of tokens itself is taken from `align`, which has tests of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.algorithms.losses import GOLD, JSD, ReverseKLSampled
from potstill.diagnostics.preflight.reference import (
    Terms,
    definition,
    estimate,
    moments,
    targets_of,
    trained_mask,
    weighted,
)
from potstill.engines.cross_tokenizer.alignment import Ints, Span, align
from potstill.engines.cross_tokenizer.token_bytes import TokenBytes
from potstill.engines.protocol import CrossTokenizer
from potstill.types import Datum, Loss, Prompt, Rows, Trajectory

FEW = 0.95  # share of aligned bytes below which much of the text has no loss


def trained(engine: CrossTokenizer, data: Sequence[Datum]) -> Rows:
    """The weighted loss of a source's data as they reach the models, as two `moments`."""
    total = np.zeros(2)
    for datum in engine.translate(data):
        p = engine.rows("student", datum.prompt, datum.completion)
        targets = targets_of(datum)
        for term in datum.terms:
            if isinstance(term.loss, GOLD):
                assert datum.match is not None
                q = engine.teacher_rows(*datum.read_by("teacher"))
                same = datum.match.positions >= 0
                values = np.zeros(len(p))
                values[same] = _gold(
                    term.loss, p[same], q[datum.match.positions[same]], engine.shared
                )
            elif isinstance(term.loss, ReverseKLSampled) and term.loss.to == "teacher":
                assert datum.match is not None and datum.teacher_logprobs is not None
                spans = datum.match.spans
                groups = [np.flatnonzero(spans == number) for number in {*spans} - {-1}]
                scores = [float(datum.teacher_logprobs[group].sum()) for group in groups]
                values = _by_span(term.loss, p, targets, groups, scores)
            else:
                q = p if term.loss.to == "teacher" else engine.rows("init", *datum.reading("init"))
                values = definition(term.loss, p, q, targets)
            total += moments(weighted(term.weights, values))
    return total


def reference(engine: CrossTokenizer, trajectories: Sequence[Trajectory], terms: Terms) -> Rows:
    """Mean loss per trained token of one source's trajectories, as in `reference.reference`."""
    total = np.zeros(2)
    trained = sum(t.trained for t in trajectories)
    for loss, factor in terms:
        values = [_values(engine, loss, t) for t in trajectories]
        counted = sum(float(mask.sum()) for _, mask in values)
        part = sum((moments(weighted(mask, value)) for value, mask in values), start=np.zeros(2))
        total += factor * part / ((counted or 1.0) if loss.name == "gold" else trained)
    return total


def _values(engine: CrossTokenizer, loss: Loss, t: Trajectory) -> tuple[Rows, Any]:
    """Per-token values (T,) of a loss, and a mask (T,) of the tokens that count."""
    p, mask = engine.rows("student", t.prompt, t.completion), trained_mask(t)
    if loss.name == "cross_entropy" or loss.to == "init":
        q = p if loss.to == "teacher" else engine.rows("init", t.prompt, t.completion)
        return definition(loss, p, q, t), mask
    (prompt, ids), spans = engine.teacher_reading(t.prompt, t.completion)
    q = engine.teacher_rows(prompt, ids)
    if isinstance(loss, GOLD):
        return _gold_values(engine, loss, p, q, spans, mask)
    assert isinstance(loss, ReverseKLSampled)
    teacher = q[np.arange(len(q)), list(ids)]
    aligned = [span for span in spans if span.aligned]
    groups = [np.arange(span.student.start, span.student.stop) for span in aligned]
    scores = [float(teacher[span.teacher].sum()) for span in aligned]
    return _by_span(loss, p, t, groups, scores), mask


def _by_span(
    loss: ReverseKLSampled, p: Rows, t: Trajectory, groups: Sequence[Ints], scores: Sequence[float]
) -> Rows:
    """Values (T,) of a sampled loss: each token has its span's, and 0 outside of spans.

    Args:
        loss: has the limits.
        p: (T, V) the student's log-probabilities.
        t: the tokens, with those of their sampler.
        groups: positions of each span.
        scores: the teacher's log-probability of each span.
    """
    now, values = p[np.arange(len(p)), list(t.completion)], np.zeros(len(p))
    both = (x.astype(float) for x in (t.logprobs, t.behavior_logprobs))
    then, behavior = (np.where(np.isnan(x), now, x) for x in both)  # of a prefix from a file
    for group, score in zip(groups, scores, strict=True):
        sums = (score - now[group].sum(), (now - then)[group].sum(), (then - behavior)[group].sum())
        values[group] = estimate(loss, *(np.array(x) for x in sums))
    return values


def _gold_values(
    engine: CrossTokenizer, loss: GOLD, p: Rows, q: Rows, spans: Sequence[Span], mask: Any
) -> tuple[Rows, Any]:
    values, counted = np.zeros(len(p)), np.zeros(len(p))
    for span in spans:
        first = span.student.start == 0 and (
            engine.student_tokens.adds_space or engine.teacher_tokens.adds_space
        )
        if span.single and not first:
            values[span.student] = _gold(loss, p[span.student], q[span.teacher], engine.shared)
            counted[span.student] = 1.0
    return values, mask * counted


def _gold(loss: GOLD, p: Rows, q: Rows, shared: Ints) -> Rows:
    """The hybrid loss (n,) of log-probabilities (n, V) and (n, W), written out."""
    out = np.zeros(len(p))
    for i, rows in enumerate(zip(np.exp(p), np.exp(q), strict=True)):
        kept = [row[ids] for row, ids in zip(rows, shared.T, strict=True)]
        rest = [np.delete(row, ids) for row, ids in zip(rows, shared.T, strict=True)]
        both = [np.append(a, b.sum()).clip(1e-30) for a, b in zip(kept, rest, strict=True)]
        plain = JSD(loss.beta)
        a, b = (np.log(row)[None] for row in both)
        out[i] = definition(
            plain, a, b, Trajectory(Prompt.of((0,)), (0,), np.zeros(1, np.float32), "student")
        )[0]
        size = max(map(len, rest))
        falling = [np.pad(np.sort(row)[::-1], (0, size - len(row))) for row in rest]
        out[i] += np.abs(falling[0] - falling[1]).sum()
    return out


def compare_tokenizers(engine: CrossTokenizer, texts: Sequence[str]) -> list[tuple[str, str, bool]]:
    """Statistics of a pair's tokenizers, as (name, evidence, sufficient).

    Args:
        engine: an engine of a cross-tokenizer pair.
        texts: texts of the task.
    """
    student, teacher = engine.student_tokens, engine.teacher_tokens
    sizes, shared = (len(student.table), len(teacher.table)), len(engine.shared)
    share, evidence = _alignment(student, teacher, texts)
    return [
        ("alignment", evidence, share >= FEW),
        (
            "shared vocabulary",
            f"{shared} tokens spell the same bytes: {shared / sizes[0]:.0%} of the student's "
            f"{sizes[0]}, {shared / sizes[1]:.0%} of the teacher's {sizes[1]}",
            True,
        ),
        ("special tokens", f"student: {_special(student)}; teacher: {_special(teacher)}", True),
    ]


def _alignment(student: TokenBytes, teacher: TokenBytes, texts: Sequence[str]) -> tuple[float, str]:
    """Share of bytes in aligned spans, and the alignment's statistics as evidence."""
    spans, aligned, total, counts = [], 0, 0, np.zeros(2, int)
    for text in texts:
        ids = [side.encode(text.encode()) for side in (student, teacher)]
        spelled = student.bytes_of(ids[0])
        parts = align(spelled, teacher.bytes_of(ids[1]))
        aligned += sum(_bytes(spelled[span.student]) for span in parts if span.aligned)
        total += _bytes(spelled)
        counts += [len(ids[0]), len(ids[1])]
        spans += parts
    good = [span for span in spans if span.aligned]
    single = sum(span.single for span in good)
    share, number = aligned / total if total else 0.0, max(1, len(good))
    return share, (
        f"{share:.1%} of {total} bytes in {len(texts)} texts are in aligned spans; a span has on "
        f"average {counts[0] / number:.2f} tokens of the student's tokenizer and "
        f"{counts[1] / number:.2f} of the teacher's; {single / number:.0%} of spans are one token "
        f"on both sides; {len(spans) - len(good)} spans cannot be aligned"
    )


def _bytes(tokens: Sequence[bytes | None]) -> int:
    return sum(len(token or b"") for token in tokens)


def _special(side: TokenBytes) -> str:
    """The treatment of one tokenizer's special tokens."""
    names = {id: side.label(id) for id, token in enumerate(side.table) if token is None}
    ends = [names.get(id, side.label(id)) for id in sorted(side.eos_ids - {side.eos_id})]
    others = [name for id, name in names.items() if id not in side.eos_ids]
    treatment = f"{side.label(side.eos_id)} aligns with the other's EOS"
    if ends:
        treatment += f", {' '.join(ends)} end a completion too and map to it"
    if others:
        listed = " ".join(others[:4]) + (" ..." if len(others) > 4 else "")
        treatment += f", {listed} have no text and no loss, and are not passed on"
    return treatment
