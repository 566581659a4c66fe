"""Pre-flight of a pair whose tokenizers differ: the alignment in numbers, and the losses once more.

The losses are worked out from each model's own rows, unpadded and in double precision, and summed
over spans here; which tokens belong together is `align`'s word, which has tests of its own. The
engine is the translator of `engines.cross`; what it hands to the models is what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from potstill.diagnostics.preflight.reference import Terms, definition, moments, trained_mask
from potstill.engines.cross_tokenizer.alignment import Places, Span, align
from potstill.engines.cross_tokenizer.token_bytes import Spelling
from potstill.engines.protocol import CrossTokenizer
from potstill.types import Datum, Loss, Prompt, Rows, Trajectory

FEW = 0.95  # share of bytes below which much of a text teaches nothing


def trained(engine: CrossTokenizer, data: Sequence[Datum]) -> Rows:
    """The weighted loss of a source's data as it reaches the models, as two `moments`."""
    total = np.zeros(2)
    for datum in engine.translate(data):
        p = engine.rows("student", datum.prompt, datum.completion)
        asked = Trajectory(datum.prompt, datum.targets, datum.logprobs, datum.source)
        for term in datum.terms:
            if term.loss.name == "gold":
                assert datum.beside is not None
                q = engine.teacher_rows(*datum.read_by("teacher"))
                same = datum.beside.places >= 0
                values = np.zeros(len(p))
                values[same] = _gold(
                    term.loss, p[same], q[datum.beside.places[same]], engine.shared
                )
            else:
                q = p.copy()
                if term.loss.to == "init":
                    q = engine.rows("init", *datum.reading("init"))
                elif datum.teacher_logprobs is not None:
                    q[np.arange(len(p)), list(datum.targets)] = datum.teacher_logprobs
                values = definition(term.loss, p, q, asked)
            total += moments(term.weights * values)
    return total


def reference(engine: CrossTokenizer, written: Sequence[Trajectory], terms: Terms) -> Rows:
    """Mean loss per trained token of trajectories of one source, as `reference.reference`."""
    total = np.zeros(2)
    count = sum(t.trained for t in written)
    for loss, factor in terms:
        found = [_values(engine, loss, t) for t in written]
        asked = sum(float(mask.sum()) for _, mask in found)
        part = sum((moments(mask * values) for values, mask in found), start=np.zeros(2))
        total += factor * part / ((asked or 1.0) if loss.name == "gold" else count)
    return total


def _values(engine: CrossTokenizer, loss: Loss, t: Trajectory) -> tuple[Rows, Any]:
    """Per-token values (T,) of a loss, and which of them count."""
    p, mask = engine.rows("student", t.prompt, t.completion), trained_mask(t)
    if loss.name == "cross_entropy" or loss.to == "init":
        q = p if loss.to == "teacher" else engine.rows("init", t.prompt, t.completion)
        return definition(loss, p, q, t), mask
    (prompt, ids), spans = engine.seen(t.prompt, t.completion)
    q = engine.teacher_rows(prompt, ids)
    if loss.name == "gold":
        return _gold_values(engine, loss, p, q, spans, mask)
    values, mine = np.zeros(len(p)), p[np.arange(len(p)), list(t.completion)]
    its, sampler = q[np.arange(len(q)), list(ids)], t.logprobs.astype(float)
    for span in spans:
        if span.aligned:
            advantage = its[span.its].sum() - sampler[span.mine].sum()
            values[span.mine] = -np.exp(mine[span.mine] - sampler[span.mine]) * advantage
    return values, mask


def _gold_values(
    engine: CrossTokenizer, loss: Loss, p: Rows, q: Rows, spans: Sequence[Span], mask: Any
) -> tuple[Rows, Any]:
    values, asked = np.zeros(len(p)), np.zeros(len(p))
    for span in spans:
        first = span.mine.start == 0 and (engine.mine.leads or engine.its.leads)
        if span.single and not first:
            values[span.mine] = _gold(loss, p[span.mine], q[span.its], engine.shared)
            asked[span.mine] = 1.0
    return values, mask * asked


def _gold(loss: Loss, p: Rows, q: Rows, shared: Places) -> Rows:
    """The hybrid (n,) from log-probability rows (n, V) and (n, W), written out."""
    out = np.zeros(len(p))
    for i, rows in enumerate(zip(np.exp(p), np.exp(q), strict=True)):
        kept = [row[ids] for row, ids in zip(rows, shared.T, strict=True)]
        rest = [np.delete(row, ids) for row, ids in zip(rows, shared.T, strict=True)]
        both = [np.append(a, b.sum()).clip(1e-30) for a, b in zip(kept, rest, strict=True)]
        plain = Loss("jsd", beta=loss.beta)
        a, b = (np.log(row)[None] for row in both)
        out[i] = definition(
            plain, a, b, Trajectory(Prompt.of((0,)), (0,), np.zeros(1, np.float32), "student")
        )[0]
        size = max(map(len, rest))
        falling = [np.pad(np.sort(row)[::-1], (0, size - len(row))) for row in rest]
        out[i] += np.abs(falling[0] - falling[1]).sum()
    return out


def table(engine: CrossTokenizer, texts: Sequence[str]) -> list[tuple[str, str, bool]]:
    """What a pair's tokenizers have in common: what, in numbers, and whether that is enough.

    Args:
        engine: a `CrossEngine`.
        texts: of the task, as both tokenizers read them.
    """
    mine, its = engine.mine, engine.its
    spans, aligned, total, ours, theirs = [], 0, 0, 0, 0
    for text in texts:
        left, right = (side.encode(text.encode()) for side in (mine, its))
        spelt, found = mine.spell(left), align(mine.spell(left), its.spell(right))
        aligned += sum(_bytes(spelt[s.mine]) for s in found if s.aligned)
        total, ours, theirs = total + _bytes(spelt), ours + len(left), theirs + len(right)
        spans += found
    good = [span for span in spans if span.aligned]
    single = sum(span.single for span in good)
    share = aligned / total if total else 0.0
    many = max(1, len(good))
    wide = len(mine.table), len(its.table)
    both = len(engine.shared)
    return [
        (
            "alignment",
            f"{share:.1%} of {total} bytes of {len(texts)} texts are in spans that align; a span "
            f"is {ours / many:.2f} tokens of the student's, {theirs / many:.2f} of the teacher's; "
            f"{single / many:.0%} of spans are one token on either side; "
            f"{len(spans) - len(good)} spans cannot align",
            share >= FEW,
        ),
        (
            "shared vocabulary",
            f"{both} tokens spell the same: {both / wide[0]:.0%} of the student's {wide[0]}, "
            f"{both / wide[1]:.0%} of the teacher's {wide[1]}",
            True,
        ),
        ("special tokens", f"student: {_special(mine)}; teacher: {_special(its)}", True),
    ]


def _bytes(tokens: Sequence[bytes | None]) -> int:
    return sum(len(token or b"") for token in tokens)


def _special(side: Spelling) -> str:
    """How one side's special tokens are treated."""
    names = {id: side.label(id) for id, token in enumerate(side.table) if token is None}
    more = [names.get(id, side.label(id)) for id in sorted(side.ends - {side.end})]
    silent = [name for id, name in names.items() if id not in side.ends]
    words = f"{side.label(side.end)} aligns with the other's EOS"
    if more:
        words += f", {' '.join(more)} end a text and are taken for it"
    if silent:
        shown = " ".join(silent[:4]) + (" ..." if len(silent) > 4 else "")
        words += f", {shown} have no text: no loss, not handed on"
    return words
