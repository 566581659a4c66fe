"""Map the ids of a tokenizer to bytes and back, and find the tokens that two tokenizers share.

Byte-level BPE (GPT-2, Qwen, Llama 3) writes every byte as a printable character. SentencePiece with
byte fallback (Llama 2, Gemma) writes a space as "▁" and splits text outside its vocabulary into
bytes. Both can represent any bytes, including incomplete characters. Other tokenizers (WordPiece,
SentencePiece without byte fallback) lose bytes and are rejected. Special tokens have no bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from potstill.engines.cross_tokenizer.alignment import Ints, Token, inside_a_character
from potstill.engines.model_files import read_json
from potstill.errors import PotstillError
from potstill.types import Ids

SAMPLE_TEXTS = ("Tom has 12.\n", "3.5 + 0.25 = 3.75\n", "  naïve façade — 你好 👩🚀", "#### 1,2")
PIECES = re.compile("[\udc80-\udcff]|[^\udc80-\udcff]+")  # one surrogate-escaped byte, or text


class TokenBytes:
    """The bytes of every token of a tokenizer.

    Args:
        tokenizer: a fast tokenizer of transformers.
        name: name of the model, for error messages.
        eos_ids: ids that end a completion of the model.

    Raises:
        PotstillError: the tokenizer cannot represent every byte.
    """

    def __init__(self, tokenizer: Any, name: str, eos_ids: frozenset[int]) -> None:
        self.name, self.eos_ids = name, eos_ids
        own_eos = tokenizer.eos_token_id
        self.eos_id = own_eos if own_eos in eos_ids else min(eos_ids)
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        decoders = {"no tokenizers"} if backend is None else _decoder_types(backend)
        if not decoders & {"ByteLevel", "ByteFallback"}:
            self._reject(f"its decoder is {', '.join(sorted(decoders)) or 'empty'}")
        self.table = _byte_table(backend, byte_level="ByteLevel" in decoders)
        self._encoder = type(backend).from_str(backend.to_str())
        self._encoder.encode_special_tokens = True  # a text that contains "<|end|>" stays text
        self._encoder.no_truncation()
        self._encoder.no_padding()
        single = [self.ids.get(bytes([byte]), -1) for byte in range(256)]
        self._byte_ids = [_byte_fallback(backend, byte, id) for byte, id in enumerate(single)]
        if -1 in self._byte_ids:
            self._reject(f"{self._byte_ids.count(-1)} of 256 bytes have no token")
        self.adds_space = False
        self.adds_space = self.decode(self._encode_text("a")) == b" a"
        for text in SAMPLE_TEXTS:
            tokens = self.bytes_of(self._encode_text(text))
            if b"".join(token or b"" for token in tokens) != text.encode():
                self._reject(f"it does not reproduce {text!r}")

    def _reject(self, reason: str) -> None:
        raise PotstillError(
            "two tokenizers are aligned by token bytes, and the tokenizer of "
            f'"{self.name}" does not have a byte sequence for every token ({reason})',
            "choose a model with byte-level BPE (Qwen, Llama 3) or SentencePiece with byte "
            "fallback (Llama 2, Gemma), or a teacher with the student's tokenizer",
        )

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """Id of each byte sequence; ordinary tokens take precedence over byte fallback."""
        ids: dict[bytes, int] = {}
        for id, token in enumerate(self.table):
            if token and (token not in ids or len(token) == 1):
                ids[token] = id
        return ids

    def bytes_of(self, ids: Sequence[int]) -> list[Token]:
        """Return the bytes of each id of a completion, without a leading space that was added."""
        tokens = [self.table[id] if id < len(self.table) else None for id in ids]
        first = next((i for i, token in enumerate(tokens) if token is not None), None)
        if self.adds_space and first is not None and (tokens[first] or b"").startswith(b" "):
            tokens[first] = (tokens[first] or b"")[1:]
        return tokens

    def label(self, id: int) -> str:
        """Return a token as its tokenizer writes it."""
        return str(self._encoder.id_to_token(id))

    def decode(self, ids: Sequence[int]) -> bytes:
        """Return the text of a completion as bytes."""
        return b"".join(token or b"" for token in self.bytes_of(ids))

    def encode(self, text: bytes) -> Ids:
        """Return ids of a completion with this text, as the tokenizer would split it.

        Bytes that form no character become single bytes; if the tokenizer adds a leading space, so
        does everything after them.
        """
        ids: list[int] = []
        for piece in PIECES.findall(text.decode("utf-8", "surrogateescape")):
            data = piece.encode("utf-8", "surrogateescape")
            broken = "\udc80" <= piece <= "\udcff"
            if broken or (ids and self.adds_space):
                ids += [self._byte_ids[byte] for byte in data]
            else:
                ids += self._encode_text(piece)
        return tuple(ids)

    def _encode_text(self, text: str) -> list[int]:
        ids = self._tokenize(text)
        if self.adds_space and text.startswith(" ") and self.decode(ids) != text.encode():
            return self._tokenize(" " + text)  # the tokenizer took the text's space for its own
        return ids

    def _tokenize(self, text: str) -> list[int]:
        return list(self._encoder.encode(text, add_special_tokens=False).ids)

    def truncate(self, ids: Ids, limit: int) -> Ids:
        """Return at most `limit` leading ids that end between two characters."""
        text, kept = self.decode(ids), min(limit, len(ids))
        while kept and inside_a_character(text, len(self.decode(ids[:kept]))):
            kept -= 1
        return ids[:kept]


def _byte_fallback(backend: Any, byte: int, default: int) -> int:
    """Return the id of a byte's fallback token, or `default` if there is none."""
    id = backend.token_to_id(f"<0x{byte:02X}>")
    return default if id is None else int(id)


def _decoder_types(backend: Any) -> set[str]:
    """Return the types of a tokenizer's decoders."""
    decoder = json.loads(backend.to_str())["decoder"] or {}
    return {part["type"] for part in decoder.get("decoders", [decoder]) if part}


def _byte_table(backend: Any, *, byte_level: bool) -> list[Token]:
    """Return the bytes of each id."""
    added = {t.content: t.special for t in backend.get_added_tokens_decoder().values()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table: list[Token] = [None] * (max(vocabulary.values()) + 1)
    alphabet = byte_alphabet()
    for token, id in vocabulary.items():
        if not byte_level and re.fullmatch("<0x[0-9A-F]{2}>", token):
            table[id] = bytes([int(token[3:5], 16)])  # even if it is listed as special
        elif token in added:
            table[id] = None if added[token] else token.encode()
        elif byte_level:
            table[id] = bytes(alphabet[char] for char in token)
        else:
            table[id] = token.replace("▁", " ").encode()
    return table


def byte_alphabet() -> dict[str, int]:
    """Return the byte for each printable character of byte-level BPE."""
    from tokenizers.pre_tokenizers import ByteLevel

    chars = sorted(ByteLevel.alphabet())
    alphabet = {char: ord(char) for char in chars if ord(char) < 256}
    others = (byte for byte in range(256) if byte not in set(alphabet.values()))
    return alphabet | dict(zip((char for char in chars if ord(char) >= 256), others, strict=True))


def shared_ids(student: TokenBytes, teacher: TokenBytes) -> Ints:
    """Return id pairs (K, 2) of the tokens with equal bytes; the pair of EOS ids is last."""
    pairs = [(id, teacher.ids[token]) for token, id in student.ids.items() if token in teacher.ids]
    return np.array([*sorted(pairs), (student.eos_id, teacher.eos_id)], np.int64)


def differ(student: str, teacher: str) -> bool | None:
    """Compare the tokenizer files of two model folders; None if a folder has none."""
    folders = [Path(name).expanduser() for name in (student, teacher)]
    files = [folder / "tokenizer.json" for folder in folders]
    if not all(file.is_file() for file in files):
        return None
    if files[0].read_bytes() == files[1].read_bytes():
        return False
    rows = min(map(_rows, folders))
    return _vocabulary(files[0], rows) != _vocabulary(files[1], rows)


def _rows(folder: Path) -> float:
    """Ids that a model's head has; infinite if its config does not say."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    text = config.get("text_config")
    size = config.get("vocab_size") or (text if isinstance(text, dict) else {}).get("vocab_size")
    return size if isinstance(size, int) else float("inf")


def _vocabulary(file: Path, rows: float) -> dict[str, Any]:
    """The state that determines the ids of a text, of ids that have a row in both heads."""
    state = read_json(file)
    try:
        added = {token["content"]: token["id"] for token in state["added_tokens"]}
        kept = {key: state["model"].get(key) for key in ("vocab", "merges")}
        added = {token: id for token, id in added.items() if id < rows}
        return {"added": added, "pre_tokenizer": state["pre_tokenizer"], **kept}
    except (LookupError, TypeError, AttributeError) as error:
        raise PotstillError(
            f'"{file}" is not a file of the tokenizers library ({type(error).__name__}: {error})',
            "copy it again from the original model",
        ) from None
