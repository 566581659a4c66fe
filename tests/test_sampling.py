"""Sampling token by token, against the same numbers computed row by row without batches.

The model is a table of logits by the last token, so that every distribution is known.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from potstill.engines.torch import sampling
from potstill.errors import NonFinite
from potstill.types import Ids, Sample

V, PADDED, EOS = 7, 9, 6
TABLE = 2 * torch.randn(V, PADDED, generator=torch.Generator().manual_seed(0))
TABLE[:, V:] = 20.0  # rows that pad the head, which are never to be sampled
PROMPTS: list[Ids] = [(1,), (2, 3, 4), (5, 1), (3,), (4, 4, 4, 2), (2, 0)]


class Decoder:
    """Logits of the last tokens; it knows which rows are left, and how often it ran."""

    def __init__(self, model: Any, ids: torch.Tensor, mask: torch.Tensor, room: int) -> None:
        self.ids, self.mask, self.room, self.kept = ids, mask, room, [len(ids)]
        self.steps: list[int] = []
        self.logits = TABLE[ids[:, -1]]

    def step(self, tokens: torch.Tensor) -> None:
        assert len(tokens) == len(self.logits)
        self.steps.append(len(tokens))
        self.logits = TABLE[tokens]

    def keep(self, rows: torch.Tensor) -> None:
        self.logits = self.logits[rows]
        self.kept.append(len(rows))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Decoder]:
    made: list[Decoder] = []

    def begin(*args: Any, padded: bool, cached: bool) -> Decoder:
        assert padded and cached and args[0] is not None  # the defaults, and the model
        made.append(Decoder(*args))
        return made[-1]

    monkeypatch.setattr(sampling, "begin", begin)
    return made


def generate(limits: list[int], temperature: float, **options: Any) -> list[Sample]:
    weight = torch.zeros(1)
    model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight))
    prompts = PROMPTS[: len(limits)]
    options = {"eos": frozenset({EOS}), "vocabulary": V} | options
    return sampling.generate(model, prompts, limits, temperature, noise(len(limits)), **options)


def noise(rows: int) -> np.ndarray:
    return np.random.default_rng(4).random((rows, 12))


def by_hand(last: int, limit: int, temperature: float, uniform: np.ndarray) -> list[tuple]:
    """The tokens of one row with both log-probabilities, in numpy and without a batch."""
    out: list[tuple] = []
    for u in uniform[:limit]:
        logits = TABLE[last, :V].double().numpy()
        logp = logits - np.log(np.exp(logits).sum())
        if temperature:
            weights = np.exp(logp / temperature)
            behavior = np.log(weights / weights.sum())
            last = int((np.cumsum(weights / weights.sum()) <= u).sum())
        else:
            behavior, last = np.zeros(V), int(logp.argmax())
        out.append((last, logp[last], behavior[last]))
        if last == EOS:
            break
    return out


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 2.0])
def test_a_batch_samples_what_each_row_would_alone(
    begun: list[Decoder], temperature: float
) -> None:
    limits = [12, 1, 5, 12, 3, 8]
    samples = generate(limits, temperature)
    rows = zip(samples, PROMPTS, limits, noise(6), strict=True)
    lengths = []
    for sample, prompt, limit, uniform in rows:
        want = by_hand(prompt[-1], limit, temperature, uniform)
        assert sample.tokens == tuple(token for token, _, _ in want)
        assert sample.logprobs == pytest.approx([logp for _, logp, _ in want], abs=1e-5)
        assert sample.behavior_logprobs == pytest.approx([b for _, _, b in want], abs=1e-5)
        assert sample.logprobs.dtype == sample.behavior_logprobs.dtype == np.float32
        lengths.append(len(want))
    (decoder,) = begun
    assert decoder.room == 11 and decoder.mask.tolist() == [
        [0] * (4 - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS
    ]
    # a row leaves with its last token, and the decoder never runs for a token that nobody needs
    left = [sum(length > n for length in lengths) for n in range(1, max(lengths))]
    assert decoder.steps == left and decoder.kept == sorted({6, *left}, reverse=True)


def test_a_token_that_ends_a_row_is_any_of_several(begun: list[Decoder]) -> None:
    ends = frozenset({EOS, 2, 0})
    for sample in generate([12] * 6, 1.0, eos=ends):
        assert not ends & set(sample.tokens[:-1])
        assert sample.tokens[-1] in ends or len(sample.tokens) == 12
    assert all(len(s.tokens) == 12 for s in generate([12] * 6, 1.0, eos=frozenset()))


def test_tokens_are_whole_numbers(begun: list[Decoder]) -> None:
    samples = generate([3, 2], 1.0)
    assert {type(token) for sample in samples for token in sample.tokens} == {int}


def test_equal_lengths_keep_every_row(begun: list[Decoder]) -> None:
    generate([4] * 6, 1.0, eos=frozenset())
    assert begun[0].steps == [6, 6, 6] and begun[0].kept == [6]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("further", [0, 1, 3])
def test_a_process_without_rows_takes_part_in_the_others_passes(
    begun: list[Decoder], further: int, rows: int
) -> None:
    """It reports rows before each pass of its own, and repeats one row until nobody has any."""
    calls: list[bool] = []

    def any_process(left: bool) -> bool:
        calls.append(left)
        return left or calls.count(False) <= further

    samples = generate([4] * rows, 1.0, eos=frozenset(), any_process=any_process)
    assert [len(s.tokens) for s in samples] == [4] * rows
    assert calls == [True] * 3 + [False] * (further + 1)
    assert begun[0].steps == [rows] * 3 + [1] * further


def test_the_ends_of_the_uniform_interval(begun: list[Decoder]) -> None:
    """0 draws the first possible id, next to 1 the last; an id of probability 0 is never drawn."""
    never = float("-inf")
    logp = torch.tensor([[never, 0.0, 0.0, never]]).log_softmax(-1)
    for uniform, want in ((0.0, 1), (0.4999, 1), (0.5, 2), (1 - 2**-53, 2)):
        ids, behavior = sampling._draw(logp, 1.0, torch.tensor([uniform], dtype=torch.float64))
        assert ids.tolist() == [want] and behavior.item() == pytest.approx(np.log(0.5))
    ids, _ = sampling._draw(logp, 1.0, torch.ones(1))
    assert ids.tolist() == [3]  # no id at all is beyond the last


def test_a_model_that_is_not_a_number_is_an_error(
    begun: list[Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "TABLE", TABLE * float("nan"))
    with pytest.raises(NonFinite, match="sampled tokens"):
        generate([3, 3], 0.0)
