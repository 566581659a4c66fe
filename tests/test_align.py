"""Alignment by bytes: properties over random tokenisations, and what two real tokenizers spell."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from potstill.algorithms.losses import over_spans
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.alignment import (
    Span,
    Token,
    align,
    inside_a_character,
    match_tokens,
    skip_tokens,
    span_numbers,
    spread_scores,
)
from potstill.engines.cross_tokenizer.token_bytes import (
    TokenBytes,
    byte_alphabet,
    differ,
    shared_ids,
)
from potstill.errors import PotstillError

TEXTS = ("", "a", "12+38=50\n#### 50", "naïve 你好", "👩‍🚀 flies 🚀🚀", "﷽ \t\n  x", "\x00\x7f")


def cuts(data: bytes, rng: random.Random) -> list[Token]:
    """A random tokenisation of bytes, which knows no characters."""
    ends = sorted({*rng.sample(range(1, len(data)), rng.randrange(len(data))), len(data)})
    return [data[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] if data else []


def joined(tokens: list[Token]) -> bytes:
    return b"".join(token or b"" for token in tokens)


def covers(spans: list[Span], mine: list[Token], its: list[Token]) -> bool:
    """Every token of both sides is in one span, in order."""
    ours = [i for span in spans for i in range(span.student.start, span.student.stop)]
    theirs = [i for span in spans for i in range(span.teacher.start, span.teacher.stop)]
    return ours == list(range(len(mine))) and theirs == list(range(len(its)))


@pytest.mark.parametrize("seed", range(60))
def test_spans_are_the_shortest_and_hold_everything(seed: int) -> None:
    rng = random.Random(seed)
    data = "".join(rng.choice(TEXTS) for _ in range(3)).encode() + bytes(rng.randbytes(seed % 4))
    mine, its = cuts(data, rng), cuts(data, rng)
    spans = align(mine, its)
    assert covers(spans, mine, its) and all(span.aligned for span in spans)
    for span in spans:
        left, right = mine[span.student], its[span.teacher]
        assert joined(left) == joined(right) != b""
        inner = [{len(joined(side[:n])) for n in range(1, len(side))} for side in (left, right)]
        assert not inner[0] & inner[1]  # no common boundary within


@pytest.mark.parametrize("seed", range(60))
def test_special_tokens_and_other_bytes_align_with_nothing(seed: int) -> None:
    rng = random.Random(seed)
    data = ("ab" * 5 + rng.choice(TEXTS) + "cd" * 5).encode()
    mine, its = cuts(data, rng), cuts(data[:4] + b"XYZ" * (seed % 3) + data[7:], rng)
    for side in (mine, its):
        for _ in range(seed % 4):
            side.insert(rng.randrange(len(side) + 1), None)
    spans = align(mine, its)
    assert covers(spans, mine, its)
    for span in spans:
        whole = [*mine[span.student], *its[span.teacher]]
        same = joined(mine[span.student]) == joined(its[span.teacher]) != b""
        assert span.aligned == (same and None not in whole)


@pytest.mark.parametrize(
    ("mine", "its", "ended", "want"),
    [
        ([], [], False, []),
        ([None], [None], True, [(1, 1, True)]),  # EOS alone aligns with EOS
        ([b""], [], False, [(1, 0, False)]),  # a leading space and no text
        ([b"", b"1", None], [b"1", None], True, [(2, 1, True), (1, 1, True)]),
        ([b"\xf0\x9f", b"\x9a\x80"], [b"\xf0", b"\x9f\x9a", b"\x80"], False, [(2, 3, True)]),
        ([b"a", None, b"b"], [b"ab"], False, [(3, 1, False)]),  # within a span: it is lost whole
        ([b"a", None, b"b"], [b"a", b"b"], False, [(1, 1, True), (1, 0, False), (1, 1, True)]),
        ([b"e\xcc\x81", b"x"], [b"\xc3\xa9", b"x"], False, [(1, 1, False), (1, 1, True)]),  # NFC
        ([b"a", b"X"], [b"a", b"Y"], False, [(1, 1, True), (1, 1, False)]),
        ([b"X", b"b", b"c"], [b"Y", b"b", b"c"], False, [(1, 1, False), *[(1, 1, True)] * 2]),
        ([b"a", b"a"], [b"aaa", b"a"], False, [(2, 2, False)]),  # no byte is in two places
    ],
)
def test_cases(mine: list[Token], its: list[Token], ended: bool, want: list) -> None:
    spans = align(mine, its, ended=ended)
    sizes = [
        (s.student.stop - s.student.start, s.teacher.stop - s.teacher.start, s.aligned)
        for s in spans
    ]
    assert sizes == want


def test_shares_credit_and_places() -> None:
    mine, its = [b"1", b"+", b"8", None, b"6", None], [b"1", b"+8", b"6", None]
    spans = align(mine, its, ended=True)
    scores = np.array([-1, -3, -0.5, -0.25], np.float32)
    found = spread_scores(spans, scores, len(mine))
    assert found.tolist() == [-1, -1.5, -1.5, 0, -0.5, -0.25]
    numbers = span_numbers(spans, len(mine))
    assert numbers.tolist() == [0, 1, 1, -1, 2, 3]
    now = torch.tensor([-2, -1, -0.5, -9, -0.5, -1])
    advantage = over_spans(torch.from_numpy(found), now, torch.from_numpy(numbers)) - now
    assert advantage.tolist() == [1, -1.5, -1.5, 0, 0, 0.75]  # a span's whole at each token
    assert match_tokens(spans, len(mine)).tolist() == [0, -1, -1, -1, 2, 3]
    assert [span.student for span in skip_tokens(spans, 1)][:2] == [slice(0, 2), slice(2, 3)]
    rest = skip_tokens(spans, 2)
    assert [(s.student.start, s.student.stop, s.aligned) for s in rest] == [
        (0, 1, True),
        (1, 2, False),
        (2, 3, True),
        (3, 4, True),
    ]


def test_a_cut_knows_characters() -> None:
    text = "aé好🚀".encode()
    starts = {0, 1, 3, 6, 10}
    assert [not inside_a_character(text, n) for n in range(11)] == [n in starts for n in range(11)]
    assert not inside_a_character(b"\x80\x80\x80\x80", 2)  # no character at all


def token_bytes(pair: str, role: str) -> TokenBytes:
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder(pair, role))
    return TokenBytes(tokenizer, f"{pair}/{role}", frozenset({tokenizer.eos_token_id}))


MODELS = [("tiny-llama", "student"), ("tiny-qwen", "teacher"), ("tiny-cross", "teacher")]


@pytest.mark.parametrize(("pair", "role"), MODELS)
def test_ids_spell_every_text_and_every_broken_one(pair: str, role: str) -> None:
    side, rng = token_bytes(pair, role), random.Random(0)
    for text in (*TEXTS, "<|im_end|></s><0x41>", " leading", "  two"):
        assert side.decode(side.encode(text.encode())) == text.encode(), text
    for _ in range(50):
        data = rng.randbytes(rng.randrange(12)) + rng.choice(TEXTS).encode() + rng.randbytes(2)
        if pair == "tiny-llama" or "\u0340" not in data.decode(errors="ignore"):
            assert side.decode(side.encode(data)) == data
    eos = side.eos_id
    assert side.bytes_of([eos, len(side.table) + 7]) == [None, None]
    ids = side.encode("x 🚀🚀".encode())
    for limit in range(len(ids) + 1):
        side.decode(side.truncate(ids, limit)).decode()  # never in the middle of a character
    assert side.truncate(ids, len(ids)) == ids


def test_a_text_as_its_tokenizer_reads_it_itself() -> None:
    for pair, role in MODELS:
        tokenizer = AutoTokenizer.from_pretrained(zoo.folder(pair, role))
        for text in TEXTS[2:5]:
            want = tuple(tokenizer(text, add_special_tokens=False).input_ids)
            assert token_bytes(pair, role).encode(text.encode()) == want


def test_two_real_tokenizers_align_whole() -> None:
    mine, its = token_bytes("tiny-cross", "student"), token_bytes("tiny-cross", "teacher")
    for text in TEXTS:
        left, right = (side.encode(text.encode()) for side in (mine, its))
        spans = align(mine.bytes_of(left), its.bytes_of(right))
        assert all(span.aligned for span in spans) == bool(text or not spans)
    both = shared_ids(mine, its)
    assert len(set(both[:, 0])) == len(set(both[:, 1])) == len(both)
    assert both[-1].tolist() == [mine.eos_id, its.eos_id]
    for ours, theirs in both[:-1]:
        assert mine.table[ours] == its.table[theirs]


def test_the_byte_alphabet_is_that_of_byte_level_bpe() -> None:
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table = byte_alphabet()
    assert sorted(table.values()) == list(range(256))
    for text in TEXTS[1:]:
        written = "".join(piece for piece, _ in pre.pre_tokenize_str(text))
        assert bytes(table[char] for char in written) == text.encode()


def test_files_tell_whether_tokenizers_differ(tmp_path: Path) -> None:
    same, other = zoo.folder("tiny-llama", "teacher"), zoo.folder("tiny-cross", "teacher")
    student = zoo.folder("tiny-llama", "student")
    assert differ(student, same) is False and differ(student, other) is True
    assert differ("Qwen/Qwen3-4B", other) is None
    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    file = copy / "tokenizer.json"
    file.write_text(file.read_text() + "\n")  # other bytes, the same tokenizer
    assert differ(str(copy), student) is False


@pytest.mark.parametrize("kind", ["words", "half"])
def test_tokenizers_without_bytes_are_refused(kind: str) -> None:
    if kind == "words":
        tok = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "</s>": 2}, unk_token="[UNK]"))
        tok.decoder = decoders.WordPiece()
    else:
        tok = Tokenizer(models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
        tok.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="</s>")
    with pytest.raises(PotstillError, match="aligned by token bytes") as caught:
        TokenBytes(tokenizer, "bert", frozenset({2}))
    assert "byte fallback" in caught.value.hint
    assert ("254 of 256" if kind == "half" else "WordPiece") in str(caught.value)


def test_the_spans_of_a_tail_count_from_the_end_of_both_sides() -> None:
    """The middle differs, and what follows it has other offsets on each side."""
    student, teacher = [b"ab", b"xyz", None, b"cd", b"e"], [b"a", b"b", b"q", b"c", b"de"]
    spans = align(student, teacher)
    assert [(s.student, s.teacher, s.aligned) for s in spans] == [
        (slice(0, 1), slice(0, 2), True),
        (slice(1, 2), slice(2, 3), False),
        (slice(2, 3), slice(3, 3), False),
        (slice(3, 5), slice(3, 5), True),
    ]
    rest = skip_tokens(spans, 1)
    assert [(s.student, s.teacher, s.aligned) for s in rest] == [
        (slice(0, 1), slice(2, 3), False),
        (slice(1, 2), slice(3, 3), False),
        (slice(2, 4), slice(3, 5), True),
    ]
    (cut, *_) = skip_tokens([Span(slice(0, 3), slice(0, 2), True)], 1)
    assert cut == Span(slice(0, 2), slice(0, 2), True)
