"""From the text of a completion to the ids with which a model would have written it.

Completions that the data have were written somewhere else, so that only their text is known. The
ids are those of the model's own tokenizer, without BOS, followed by the token that closes an answer
in the chat template, or EOS. Names of special tokens in the text stay text. A thought that the
prompt has opened is continued, not opened again.

A tokenizer of the SentencePiece kind writes a space in front of a text, and removes it again when
it decodes: "7" may be one token with the space or one without. `CompletionEncoder.ways` has both;
the model's log-probabilities decide which of them it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from potstill.engines.torch.thoughts import MARKS
from potstill.errors import PotstillError
from potstill.fields import brief
from potstill.tasks.grading import THOUGHT
from potstill.tasks.rendering import turn_end
from potstill.types import Ids, ModelSpec

ANCHORS = ("\n", "(", ":", "|")  # characters that a text without a space in front follows
Piece = tuple[str, bool]  # a part of a text, and whether names in it are special tokens


class CompletionEncoder:
    """The ids of completions in one tokenizer.

    Args:
        tokenizer: of transformers.
        ends: ids that end a completion.
        rows: ids that the model has; None: all.
        spec: has the arguments of the chat template.
    """

    def __init__(
        self, tokenizer: Any, ends: frozenset[int], rows: int | None, spec: ModelSpec | None
    ) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        own, turn = tokenizer.eos_token_id, turn_end(tokenizer, spec or ModelSpec())
        self.end = next((id for id in (turn, own) if id in ends), min(ends))
        self._ends = {str(tokenizer.convert_ids_to_tokens(id)) for id in ends}
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token.content) for token in added if token.special}
        self._mark = next((pair for last, pair in MARKS.items() if last in special), None)
        first = tokenizer.convert_ids_to_tokens(self._ids("a", named=False))[0]
        self.adds_space = str(first)[0] in "▁Ġ"

    def ways(self, text: str, prompt: str = "") -> list[Ids]:
        """The ways to write a completion after a prompt, EOS included; there is one or two.

        Args:
            text: the completion.
            prompt: the text of the prompt.

        Raises:
            PotstillError: it is empty, names an end token, leaves the thought of the prompt open,
                or has characters that the tokenizer has not.
        """
        pieces = self._pieces(text, prompt)
        whole = "".join(piece for piece, _ in pieces)
        ways = [ids for ids in self._candidates(pieces) if self._reads(ids, whole)]
        if not ways and self.adds_space:  # it took the text's own space for the one that it adds
            spaced = [(" " + pieces[0][0], pieces[0][1]), *pieces[1:]]
            ways = [ids for ids in self._candidates(spaced)[:1] if self._reads(ids, whole)]
        if not ways:
            ids = self._candidates(pieces)[0]
            raise PotstillError(
                f"the student's tokenizer cannot write a completion: {brief(whole)} becomes "
                f"{brief(self._text(ids))}",
                "remove the completion, or the characters that the tokenizer has not",
            )
        if beyond := [id for id in ways[0] if self.rows is not None and id >= self.rows]:
            token = self.tokenizer.convert_ids_to_tokens(beyond[0])
            raise PotstillError(
                f"a completion has {token} (id {beyond[0]}), the student has {self.rows} rows",
                "remove the token from the completions",
            )
        return [(*ids, self.end) for ids in ways]

    def changes(self, text: str, prompt: str = "") -> bool:
        """True if a completion's ids are read as another text, as of a normalizing tokenizer."""
        pieces = self._pieces(text, prompt)
        whole = "".join(piece for piece, _ in pieces)
        return self._text(self.ways(text, prompt)[0][:-1]) != whole

    def _pieces(self, text: str, prompt: str) -> list[Piece]:
        """The completion in parts: a model's marks of a thought are special tokens, or text."""
        if not text.strip():
            raise PotstillError("a completion has text, got none", "remove it from the data")
        for end in self._ends:
            if text.rstrip().endswith(end):
                raise PotstillError(
                    f"a completion ends with the name of the end token, {end}: {brief(text[-40:])}",
                    "remove the name: the token itself is added",
                )
        begin, end = THOUGHT
        opened = prompt.rstrip().endswith(begin)
        if opened:
            space = prompt[len(prompt.rstrip()) :]
            text = text.removeprefix(begin).removeprefix(space) if begin in text[:99] else text
            if end not in text:
                raise PotstillError(
                    f"the prompt opens a thought ({begin}), and a completion does not close it: "
                    f"{brief(text[:60])}",
                    f"write the thought and {end} in front of the answer, or set "
                    "engine.student.template so that the prompt opens none",
                )
        if self._mark is None:
            return [(text, False)]
        return _marked(text, *self._mark, opened=opened)

    def _candidates(self, pieces: Sequence[Piece]) -> list[Ids]:
        """The ids of the parts, with the space in front that the tokenizer adds, and without."""
        rest = tuple(id for piece, named in pieces[1:] for id in self._ids(piece, named=named))
        first, named = pieces[0]
        ways = [self._ids(first, named=named)]
        if self.adds_space and not named:
            ways += [ids for ids in [self._without_space(first)] if ids is not None]
        return [ids + rest for ids in dict.fromkeys(ways)]

    def _without_space(self, text: str) -> Ids | None:
        for anchor in ANCHORS:
            before, both = (self._ids(part, named=False) for part in (anchor, anchor + text))
            if both[: len(before)] == before and len(both) > len(before):
                return both[len(before) :]
        return None

    def _ids(self, text: str, *, named: bool) -> Ids:
        if not text:
            return ()
        options = {"add_special_tokens": False, "split_special_tokens": not named}
        return tuple(self.tokenizer(text, **options).input_ids)

    def _text(self, ids: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **options))

    def _reads(self, ids: Ids, text: str) -> bool:
        """True if ids are read as a text, as the tokenizer normalizes it."""
        read = self._text(ids)
        return read == text or self._normal(read) == self._normal(text)

    def _normal(self, text: str) -> str:
        normalizer = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)
        return text if normalizer is None else str(normalizer.normalize_str(text))


def _marked(text: str, begin: str, end: str, *, opened: bool) -> list[Piece]:
    """A text in which the ordinary marks of a thought become a model's own special tokens.

    >>> _marked("<think>so</think>7", "[THINK]", "[/THINK]", opened=False)
    [('[THINK]', True), ('so', False), ('[/THINK]', True), ('7', False)]
    """
    thought, closed, answer = text.removeprefix(THOUGHT[0]).rpartition(THOUGHT[1])
    if "<|message|>" not in end:
        if not closed:
            return [(text, False)]
        start = [] if opened else [(begin, True)]
        return [*start, (thought, False), (end, True), (answer, False)]
    # gpt-oss: decoded, its thought has the names of its channels and of the next message's role
    thought = thought.removeprefix("analysis").removesuffix("final").removesuffix("assistant")
    if not (closed and thought):
        return [(end, True), (answer if closed else text, False)]
    return [
        (f"{begin}<|message|>", True),
        (thought, False),
        (f"<|end|><|start|>assistant{end}", True),
        (answer, False),
    ]
