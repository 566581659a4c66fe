"""What the ids of a tokenizer spell, in bytes, and back: what two tokenizers have in common.

Byte-level BPE (GPT-2, Qwen, Llama 3) writes every byte as a printable character; SentencePiece
with byte fallback (Llama 2, Gemma) writes a space as "▁" and what it has no token for as bytes.
Both can spell anything, a broken character included. Others (WordPiece, SentencePiece without
bytes) lose bytes and are refused. Special tokens spell nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from potstill.engines.cross_tokenizer.alignment import Places, Token, inside_a_character
from potstill.errors import PotstillError
from potstill.types import Ids

SAMPLE_TEXTS = ("Tom has 12.\n", "3.5 + 0.25 = 3.75\n", "  naïve façade — 你好 👩🚀", "#### 1,2")
PIECES = re.compile("[\udc80-\udcff]|[^\udc80-\udcff]+")  # surrogateescape's bytes, and text


class Spelling:
    """A tokenizer as a table of bytes.

    Args:
        tokenizer: a fast tokenizer of transformers.
        name: the model's, for errors.
        ends: ids that end its completions.

    Raises:
        PotstillError: its tokens have no bytes of their own.
    """

    def __init__(self, tokenizer: Any, name: str, ends: frozenset[int]) -> None:
        self.name, self.ends = name, ends
        self.end = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else min(ends)
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        kinds = {"no tokenizers"} if backend is None else _decoders(backend)
        if not kinds & {"ByteLevel", "ByteFallback"}:
            self._refuse(f"its decoder has {', '.join(sorted(kinds)) or 'nothing'}")
        self.table = _table(backend, byte_level="ByteLevel" in kinds)
        self._encoder = type(backend).from_str(backend.to_str())
        self._encoder.encode_special_tokens = True  # a text that spells <|end|> is text
        self._encoder.no_truncation()
        self._encoder.no_padding()
        self._bytes = [self.ids.get(bytes([byte]), -1) for byte in range(256)]
        self._bytes = [self._single(backend, byte, id) for byte, id in enumerate(self._bytes)]
        if -1 in self._bytes:
            self._refuse(f"{self._bytes.count(-1)} of 256 bytes have no token")
        self.leads = False
        self.leads = self.text(self._text("a")) == b" a"
        for text in SAMPLE_TEXTS:
            if b"".join(token or b"" for token in self.spell(self._text(text))) != text.encode():
                self._refuse(f"it reads {text!r} as something else")

    def _refuse(self, why: str) -> None:
        raise PotstillError(
            "two tokenizers are aligned by the bytes that their tokens spell: that of "
            f'"{self.name}" does not tell them ({why})',
            "choose a model with byte-level BPE (Qwen, Llama 3) or SentencePiece with byte "
            "fallback (Llama 2, Gemma), or a teacher with the student's own tokenizer",
        )

    @staticmethod
    def _single(backend: Any, byte: int, id: int) -> int:
        found = backend.token_to_id(f"<0x{byte:02X}>")
        return id if found is None else int(found)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of what a token spells; of several, not the byte fallback's."""
        found: dict[bytes, int] = {}
        for id, token in enumerate(self.table):
            if token and (token not in found or len(token) == 1):
                found[token] = id
        return found

    def spell(self, ids: Sequence[int]) -> list[Token]:
        """What ids of a completion spell, without the leading space that a tokenizer adds."""
        tokens = self._raw(ids)
        first = next((i for i, token in enumerate(tokens) if token is not None), None)
        if self.leads and first is not None and (tokens[first] or b"").startswith(b" "):
            tokens[first] = (tokens[first] or b"")[1:]
        return tokens

    def label(self, id: int) -> str:
        """A token as its tokenizer writes it."""
        return str(self._encoder.id_to_token(id))

    def _raw(self, ids: Sequence[int]) -> list[Token]:
        return [self.table[id] if id < len(self.table) else None for id in ids]

    def text(self, ids: Sequence[int]) -> bytes:
        """The text that ids of a completion spell."""
        return b"".join(token or b"" for token in self.spell(ids))

    def encode(self, text: bytes) -> Ids:
        """Ids of a completion that spells a text, as its tokenizer gives them; bytes that are no
        character, and with a leading space what follows them, byte by byte."""
        ids: list[int] = []
        for piece in PIECES.findall(text.decode("utf-8", "surrogateescape")):
            data = piece.encode("utf-8", "surrogateescape")
            broken = "\udc80" <= piece <= "\udcff"
            if broken or (ids and self.leads):
                ids += [self._bytes[byte] for byte in data]
            else:
                ids += self._text(piece)
        return tuple(ids)

    def _text(self, text: str) -> list[int]:
        ids = self._encoded(text)
        if self.leads and text.startswith(" ") and self.text(ids) != text.encode():
            return self._encoded(" " + text)  # its own space was taken for the one that is added
        return ids

    def _encoded(self, text: str) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def cut(self, ids: Ids, limit: int) -> Ids:
        """At most `limit` leading ids that end between two characters."""
        text, kept = self.text(ids), min(limit, len(ids))
        while kept and inside_a_character(text, len(self.text(ids[:kept]))):
            kept -= 1
        return ids[:kept]


def _decoders(backend: Any) -> set[str]:
    """Kinds of a tokenizer's decoders."""
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return {part["type"] for part in decoder.get("decoders", [decoder]) if part}


def _table(backend: Any, *, byte_level: bool) -> list[Token]:
    """What each id spells."""
    added = {t.content: t.special for t in backend.get_added_tokens_decoder().values()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table: list[Token] = [None] * (max(vocabulary.values()) + 1)
    alphabet = byte_alphabet()
    for token, id in vocabulary.items():
        if not byte_level and re.fullmatch("<0x[0-9A-F]{2}>", token):
            table[id] = bytes([int(token[3:5], 16)])  # even where it is listed as special
        elif token in added:
            table[id] = None if added[token] else token.encode()
        elif byte_level:
            table[id] = bytes(alphabet[char] for char in token)
        else:
            table[id] = token.replace("▁", " ").encode()
    return table


def byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes bytes as, and those bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    chars = sorted(ByteLevel.alphabet())
    found = {char: ord(char) for char in chars if ord(char) < 256}
    others = (byte for byte in range(256) if byte not in set(found.values()))
    return found | dict(zip((char for char in chars if ord(char) >= 256), others, strict=True))


def shared(mine: Spelling, its: Spelling) -> Places:
    """Pairs (K, 2) of ids that spell the same in both vocabularies, EOS with EOS last."""
    both = [(id, its.ids[token]) for token, id in mine.ids.items() if token in its.ids]
    return np.array([*sorted(both), (mine.end, its.end)], np.int64)


def differ(student: str, teacher: str) -> bool | None:
    """Whether two model folders have other tokenizers, from their files alone; None: not known."""
    files = [Path(name).expanduser() / "tokenizer.json" for name in (student, teacher)]
    if not all(file.is_file() for file in files):
        return None
    mine, its = (file.read_bytes() for file in files)
    return mine != its and _vocabulary(mine) != _vocabulary(its)


def _vocabulary(raw: bytes) -> dict[str, Any]:
    state = json.loads(raw)
    added = {token["content"]: token["id"] for token in state["added_tokens"]}
    kept = {key: state["model"].get(key) for key in ("vocab", "merges")}
    return {"added": added, "pre_tokenizer": state["pre_tokenizer"], **kept}
