"""The longest sequence that a model reads, from its config.

A table of positions (learned, or computed once) has an end, beyond which the model fails. Rotary
positions have none: the model reads on, where it was never trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from potstill.errors import PotstillError

# Families with a table of positions, found by reading past the limit of each.
TABLES = frozenset(
    {"biogpt", "codegen", "ctrl", "git", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "imagegpt"}
    | {"mpt", "openai-gpt", "opt", "xlm"}
)
PADDED = ("roberta", "camembert", "data2vec", "xmod")  # their first positions are for padding
KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
SHORTER = "show fewer or shorter examples, documents or hints, or lower max_tokens"


@dataclass(frozen=True)
class Window:
    """Positions of a model.

    Args:
        tokens: of prompt and completion together; 0: unlimited, or unknown.
        fixed: the model cannot read more; otherwise it was trained on no more.
    """

    tokens: int = 0
    fixed: bool = False

    def narrower(self, other: Window) -> Window:
        """The one of two windows that has fewer positions."""
        return min((self, other), key=lambda window: window.tokens or float("inf"))

    def error(self, name: str, prompt: int, completion: int) -> PotstillError:
        """The error of a prompt that is too long for the table of positions."""
        return PotstillError(
            f'"{name}" has {self.tokens} positions; the longest prompt has {prompt} tokens, and up '
            f"to {completion} of completion follow",
            SHORTER,
        )


def window_of(config: Any) -> Window:
    """The positions of a text model."""
    sizes = (getattr(config, key, None) for key in KEYS)
    tokens = next((size for size in sizes if isinstance(size, int) and size > 0), 0)
    if getattr(config, "alibi", False) is True or config.model_type in ("bloom", "rwkv"):
        return Window()
    rope = getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings")
    if original and isinstance(factor := rope.get("factor"), int | float):
        tokens = max(tokens, int(original * factor))
    decoder = bool(getattr(config, "is_decoder", False))  # of BERT's kind
    if decoder and any(name in config.model_type for name in PADDED):
        tokens -= (config.pad_token_id or 0) + 1
    return Window(tokens, decoder or config.model_type in TABLES)
