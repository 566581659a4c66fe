"""The losses by name, as recipes and engines know them, and their form in a study file.

To add a loss, write a frozen class of one of the `kinds` and list an example of it in `LOSSES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.algorithms.losses.divergences import (
    JSD,
    ForwardKL,
    ReverseKL,
    TopK,
    TruncatedReverseKL,
)
from potstill.algorithms.losses.gold import GOLD
from potstill.algorithms.losses.kinds import (
    Divergence,
    SampledLoss,
    TokenLoss,
    TwoVocabularies,
    token_logprobs,
)
from potstill.algorithms.losses.tokens import CrossEntropy, ReverseKLSampled, over_spans
from potstill.errors import PotstillError, did_you_mean
from potstill.types import Loss

__all__ = [
    "CROSSED",
    "CROSSING",
    "CROSS_ENTROPY",
    "FAULTY",
    "FORWARD_KL",
    "GOLD",
    "GOLD_HINT",
    "JSD",
    "LOSSES",
    "ONE_TOKENIZER",
    "REVERSE_KL",
    "REVERSE_KL_SAMPLED",
    "CrossEntropy",
    "Divergence",
    "ForwardKL",
    "ReverseKL",
    "ReverseKLSampled",
    "SampledLoss",
    "TokenLoss",
    "TopK",
    "TruncatedReverseKL",
    "TwoVocabularies",
    "loss",
    "loss_to_toml",
    "over_spans",
    "token_logprobs",
    "top_k",
]

CROSS_ENTROPY = CrossEntropy()
FORWARD_KL = ForwardKL()
REVERSE_KL = ReverseKL()
REVERSE_KL_SAMPLED = ReverseKLSampled()

# Every loss by name, with usual settings.
LOSSES: dict[str, Loss] = {
    example.name: example
    for example in (
        CROSS_ENTROPY,
        FORWARD_KL,
        REVERSE_KL,
        JSD(0.5),
        REVERSE_KL_SAMPLED,
        TopK(FORWARD_KL, 64),
        TopK(REVERSE_KL, 64),
        TopK(JSD(0.5), 64),
        TruncatedReverseKL(64),
        GOLD(0.5),
    )
}

# Known to be wrong, kept to show how: a recipe that uses one is refused.
FAULTY = frozenset({TruncatedReverseKL.name})

# For a teacher with another tokenizer, and for no other.
CROSSING = frozenset({GOLD.name})
CROSSED = CROSSING | {CrossEntropy.name, ReverseKLSampled.name}  # all that such a teacher allows
GOLD_HINT = (
    'losses for a teacher of another tokenizer: "reverse_kl_sampled" on the spans that both have, '
    '{ gold = 0.5 } on the rows of common tokens; student_loss = "reverse_kl_sampled" at the top '
    "of the study sets it for all methods"
)
ONE_TOKENIZER = "gold compares two vocabularies, and this pair's models share theirs"


def top_k(loss: Divergence, k: int) -> TopK:
    """The same divergence on the target's `k` likeliest ids and one tail bucket."""
    return TopK(loss, k, to=loss.to)


def loss(value: Any) -> Loss:
    """Read a loss from its name, a `Loss` or a TOML table.

    >>> str(loss("reverse_kl")), str(loss({"jsd": 0.5})), str(loss({"topk_reverse_kl": 64}))
    ('reverse_kl', 'jsd(0.5)', 'topk_reverse_kl(64)')
    """
    if isinstance(value, Loss):
        return value
    table: dict[Any, Any] = {value: None} if isinstance(value, str) else {}
    if isinstance(value, Mapping):
        table = dict(value)
    if not table:
        raise PotstillError(f"a loss is a name or a table, got {value!r}", 'write "reverse_kl"')
    further = {key: table.pop(key) for key in _FURTHER if key in table}
    if len(table) != 1:
        raise PotstillError(f"a loss has one name, got {sorted(table)}", "write { jsd = 0.5 }")
    ((name, number),) = table.items()
    if name not in LOSSES:
        raise PotstillError(f'unknown loss "{name}"', did_you_mean(str(name), LOSSES, "losses"))
    return _with_numbers(LOSSES[name], number, further)


# Settings that a loss has after its first one, which is written as the value of its name.
_FURTHER = {key for example in LOSSES.values() for key in [*example.settings][1:]}


def _with_numbers(example: Loss, number: Any, further: Mapping[str, Any]) -> Loss:
    """A loss like an example, with the settings of a study file."""
    hint = f"write {_inline(loss_to_toml(example))}"
    keys = [*example.settings]
    if not keys and number is not None:
        raise PotstillError(f"{example.name} takes no number, got {number!r}", hint)
    for key in further:
        if key not in keys:
            raise PotstillError(f'{example.name} has no "{key}"', hint)
    given = {**dict(zip(keys, [number], strict=False)), **further}
    for value in given.values():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise PotstillError(f"{example.name} takes a number, got {value!r}", hint)
    try:
        return example.with_settings(**{**dict.fromkeys(keys), **given})
    except PotstillError as error:
        raise PotstillError(str(error), hint) from None


def loss_to_toml(value: Loss) -> str | dict[str, Any]:
    """The form that `loss` reads back.

    >>> loss_to_toml(top_k(JSD(0.3), 8))
    {'topk_jsd': 8, 'beta': 0.3}
    """
    numbers = list(value.settings.items())
    return {value.name: numbers[0][1], **dict(numbers[1:])} if numbers else value.name


def _inline(form: str | dict[str, Any]) -> str:
    """A TOML value on one line.

    >>> _inline({"topk_jsd": 64, "beta": 0.5})
    '{ topk_jsd = 64, beta = 0.5 }'
    """
    if isinstance(form, str):
        return f'"{form}"'
    return "{ " + ", ".join(f"{key} = {number}" for key, number in form.items()) + " }"
