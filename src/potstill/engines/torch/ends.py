"""The ids that end a completion, and the decoding defaults that come with a model.

The ids are collected from the tokenizer, generation_config.json and config.json. Decoding defaults
(temperature, penalties, forced tokens) are never applied: a study samples at its own temperature
and evaluates greedily. An exported student gets a generation config that does the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from potstill.engines.torch.checkpoints import Checkpoint
from potstill.errors import PotstillError
from potstill.tasks.rendering import turn_end
from potstill.types import ModelSpec

# Fields of a generation config that do not change which tokens are written.
NEUTRAL = frozenset(
    {"eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id", "use_cache"}
    | {"transformers_version", "cache_implementation", "cache_config", "return_dict_in_generate"}
    | {"output_attentions", "output_hidden_states", "output_scores", "output_logits"}
    | {"compile_config", "disable_compile", "max_new_tokens", "max_length", "trust_remote_code"}
    | {"num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"}
)
# Values that change nothing.
IDLE: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0,),
    "repetition_penalty": (1.0,),
    "length_penalty": (1.0,),
    "num_beams": (1,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "num_return_sequences": (1,),
    "typical_p": (1.0,),
}


def ends_of(model: Checkpoint, tokenizer: Any, rows: int) -> frozenset[int]:
    """Ids that end a completion of a model.

    config.json is what transformers reads where generation_config.json is missing. Where both
    exist, an id of config.json counts only if it is a special token: several families write a
    default there that is an ordinary token of another tokenizer.

    Args:
        model: its files.
        tokenizer: has an EOS token, perhaps.
        rows: ids from here on have no row in the head, and are never sampled.

    Raises:
        PotstillError: there is none.
    """
    listed = _ids(model.generation.get("eos_token_id"))
    config = model.stored("config.json")
    also = _ids(config.get("eos_token_id"))
    also |= _ids((config.get("text_config") or {}).get("eos_token_id"))
    special = set(tokenizer.all_special_ids) | {
        id for id, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    known = also if not listed else also & special
    ends = {id for id in _ids(tokenizer.eos_token_id) | listed | known if 0 <= id < rows}
    if not ends:
        raise PotstillError(
            f'"{model.name}" has no end-of-sequence token, so completions would never end',
            "set eos_token in tokenizer_config.json",
        )
    return frozenset(ends)


def turn_note(tokenizer: Any, spec: ModelSpec, ends: frozenset[int]) -> tuple[str, ...]:
    """A note if the token that closes an answer in the chat template does not end a completion."""
    id = turn_end(tokenizer, spec)
    if id is None or id in ends:
        return ()
    token = tokenizer.convert_ids_to_tokens(id)
    return (
        f"the chat template closes an answer with {token} (id {id}), which does not end a "
        "completion: list it as eos_token_id in generation_config.json if the models write it",
    )


def _ids(value: Any) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {id for id in values if isinstance(id, int) and not isinstance(id, bool)}


def defaults_note(models: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    """A note for each role whose model comes with decoding defaults."""
    notes = []
    for role, model in models.items():
        stored = dict(model.generation)
        if model.sampled_rows < model.rows:
            del stored["suppress_tokens"]  # padding rows, which are not sampled here either
        active = {
            key: value
            for key, value in stored.items()
            if key not in NEUTRAL
            and not key.startswith("_")
            and value not in (None, [], {})
            and value not in IDLE.get(key, ())
        }
        if active:
            fields = ", ".join(f"{key} {value}" for key, value in sorted(active.items()))
            notes.append(
                f"decoding defaults of the {role} are not applied ({fields}): sampling follows the "
                "study, evaluation is greedy, and the exported student decodes in the same way"
            )
    return tuple(notes)


def generation_config(tokenizer: Any, ends: frozenset[int], vocabulary: int, rows: int) -> Any:
    """The generation config of an exported student: it ends where training and evaluation end.

    Args:
        tokenizer: of the student.
        ends: ids that end a completion.
        vocabulary: ids that are sampled.
        rows: ids that the head has; those above are padding.
    """
    from transformers import GenerationConfig

    own = tokenizer.eos_token_id
    ids = [id for id in (own,) if id in ends] + sorted(ends - {own})
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ids[0] if len(ids) == 1 else ids,
        pad_token_id=ids[0] if pad is None else pad,
        do_sample=False,
        suppress_tokens=list(range(vocabulary, rows)) or None,
    )
