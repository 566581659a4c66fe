"""Damaged and hostile model folders, each with the outcome that potstill owes its user.

A folder is a copy of a tiny good model that one function damages. Its expected outcome is a pattern
of the error's rule, or `RIGHT`: the numbers of the good model. `outcomes` opens each folder as
`potstill eval` does and as the student and the teacher of a study.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1]))  # for a benchmark; pytest has it already
from checkpoints import CHATML, save, study_table, tokenizer_of, write
from potstill.cli.eval import engine_options
from potstill.engines.registry import open_engine
from potstill.errors import PotstillError
from potstill.problems import Problem
from potstill.settings import Pair
from potstill.study.engine import open_study_engine
from potstill.study.loading import read_study
from potstill.study.storage import RunId
from potstill.study.validation import check_model
from potstill.tasks import load_task

RIGHT = ""  # expected: the numbers of the good model
ONE, FIRST, SECOND = (
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)
INDEX, CANARY = "model.safetensors.index.json", "code-ran"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PAGE = "<!DOCTYPE html><html><body>Access denied</body></html>"
EXAMPLE = {"question": "Tom has 3 pens.", "answer": "3"}

Weights = dict[str, torch.Tensor]
Damage = Callable[[Path], None]
Kind = Literal["right", "refused", "wrong", "traceback", "leaked"]


@dataclass(frozen=True)
class Folder:
    """A damaged folder.

    Args:
        name: of the damage.
        damage: changes a copy of the good model.
        expected: pattern of the error's rule, or `RIGHT`.
        teacher: the same if the model is the teacher of a good student, whose tokenizer and
            template render the prompts.
    """

    name: str
    damage: Damage
    expected: str
    teacher: str


@dataclass(frozen=True)
class Outcome:
    """What a user got.

    Args:
        kind: "right" numbers; "refused" with rule and hint; "wrong" numbers without an error;
            "traceback"; "leaked": code of the folder ran.
        text: the rule, or the traceback.
    """

    kind: Kind
    text: str = ""


FOLDERS: dict[str, Folder] = {}


def folder(expected: str, teacher: str | None = None) -> Callable[[Damage], Damage]:
    """Add a function that damages a folder to the table."""

    def add(damage: Damage) -> Damage:
        name = damage.__name__
        assert name not in FOLDERS
        as_teacher = expected if teacher is None else teacher
        FOLDERS[name] = Folder(name, damage, expected, as_teacher)
        return damage

    return add


def each(
    expected: str, cases: dict[str, Any], teacher: str | None = None
) -> Callable[[Callable[[Path, Any], None]], Any]:
    """Add a function once for each of its values; a value may come with a rule of its own."""

    def add(damage: Callable[[Path, Any], None]) -> Any:
        for name, case in cases.items():
            assert name not in FOLDERS
            value, rule = case if isinstance(case, tuple) else (case, expected)
            as_teacher = rule if teacher is None else teacher
            FOLDERS[name] = Folder(name, partial(_call, damage, value), rule, as_teacher)
        return damage

    return add


def good(place: Path) -> Path:
    """The model that is damaged: two layers, a head of its own, a chat template."""
    return Path(save(place, tokenizer_of(CHATML)))


def change(path: Path, edit: Callable[[Weights], Any]) -> None:
    """Edit the tensors of a model in one file."""
    weights = load_file(path / ONE)
    edit(weights)
    save_file(weights, path / ONE, {"format": "pt"})


def sharded(path: Path) -> None:
    """Split the weights into two files with an index, the second layer in the second one."""
    weights = load_file(path / ONE)
    place = {name: SECOND if "layers.1." in name else FIRST for name in weights}
    for file in (FIRST, SECOND):
        part = {name: weights[name] for name in weights if place[name] == file}
        save_file(part, path / file, {"format": "pt"})
    (path / ONE).unlink()
    size = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": place}
    (path / INDEX).write_text(json.dumps(index))


def template(path: Path, text: Any) -> None:
    """Replace the chat template."""
    (path / "chat_template.jinja").unlink(missing_ok=True)
    write(path, "tokenizer_config.json", chat_template=text)


def canary(path: Path) -> Path:
    """The file that code of a folder writes; next to the folder, so that a copy knows it."""
    return path.parent / CANARY


class Payload:
    """An object that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.code = f"open({str(canary(path))!r}, 'w').close()"

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (self.code,)


def python(path: Path, name: str) -> None:
    """Write a module that leaves the canary when it is imported."""
    code = f"open({str(canary(path))!r}, 'w').close()\nclass Evil:\n    pass\n"
    (path / f"{name}.py").write_text(code)


def _call(damage: Callable[[Path, Any], None], value: Any, path: Path) -> None:
    damage(path, value)


# --- weights: missing, damaged, of another shape


@folder(RIGHT)
def untouched(path: Path) -> None:
    pass


@folder(RIGHT)
def in_two_files(path: Path) -> None:
    sharded(path)


@each(
    "lacks 1 weights of its model",
    {
        "without_a_projection": Q_PROJ,
        "without_the_head": "lm_head.weight",
        "without_a_norm": "model.norm.weight",
        "without_the_embedding": "model.embed_tokens.weight",
    },
)
def missing(path: Path, key: str) -> None:
    change(path, lambda weights: weights.pop(key))


@folder("lacks 9 weights of its model")
def without_a_layer(path: Path) -> None:
    change(path, lambda weights: [weights.pop(k) for k in list(weights) if "layers.1." in k])


@folder(f"{SECOND}.* (missing|not there|does not exist)")
def without_a_shard(path: Path) -> None:
    sharded(path)
    (path / SECOND).unlink()


@each(
    "index",
    {
        "index_of_no_json": "{",
        "index_of_a_list": "[]",
        "index_without_a_map": "{}",
        "index_of_a_wrong_map": '{"weight_map": ["a"]}',
        "index_of_numbers": '{"weight_map": {"lm_head.weight": 5}}',
        "index_in_lfs": POINTER,
    },
)
def index(path: Path, text: str) -> None:
    sharded(path)
    (path / INDEX).write_text(text)


def remap(path: Path, place: Callable[[str, str], str | None]) -> None:
    """Shard the weights, and write other files into the index."""
    sharded(path)
    table = json.loads((path / INDEX).read_text())
    named = {key: place(key, file) for key, file in table["weight_map"].items()}
    table["weight_map"] = {key: file for key, file in named.items() if file}
    (path / INDEX).write_text(json.dumps(table))


@folder("index|lacks")
def index_without_a_shard(path: Path) -> None:
    remap(path, lambda key, file: None if file == SECOND else file)


@folder("index")
def index_beyond_the_folder(path: Path) -> None:
    remap(path, lambda key, file: file if file == FIRST else f"../other/{file}")
    (path.parent / "other").mkdir(exist_ok=True)
    shutil.copy(path / SECOND, path.parent / "other" / SECOND)


@folder("index")
def index_with_files_exchanged(path: Path) -> None:
    remap(path, lambda key, file: SECOND if file == FIRST else FIRST)


@folder("index|twice|two files")
def one_tensor_in_two_files(path: Path) -> None:
    sharded(path)
    second = load_file(path / SECOND)
    second[Q_PROJ] = torch.ones(32, 32)
    save_file(second, path / SECOND, {"format": "pt"})


@folder("index|both")
def one_file_and_two(path: Path) -> None:
    shutil.copy(path / ONE, path / "kept")
    sharded(path)
    (path / "kept").rename(path / ONE)
    change(path, lambda weights: weights.update({Q_PROJ: torch.ones(32, 32)}))


@folder("shape|size")
def of_another_shape(path: Path) -> None:
    change(path, lambda weights: weights.update({Q_PROJ: torch.ones(32, 16)}))


@folder("shape|size")
def head_of_fewer_rows(path: Path) -> None:
    change(path, lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:-4].clone()}))


@each(
    "not finite|NaN|infinite",
    {
        "nan_in_a_projection": {Q_PROJ: float("nan")},
        "infinity_in_the_norm": {"model.norm.weight": float("inf")},
        "infinity_in_the_head": {"lm_head.weight": float("-inf")},
        "nan_in_the_embedding": {"model.embed_tokens.weight": float("nan")},
    },
)
def value(path: Path, values: dict[str, float]) -> None:
    def edit(weights: Weights) -> None:
        for key, number in values.items():
            weights[key].view(-1)[7] = number

    change(path, edit)


@folder("zero")
def zeros_after_a_copy_that_stopped(path: Path) -> None:
    data = (path / ONE).read_bytes()
    (path / ONE).write_bytes(data[: len(data) // 10] + bytes(len(data) - len(data) // 10))


@folder("integers")
def integers_without_a_scale(path: Path) -> None:
    change(path, lambda w: w.update({k: (w[k] * 50).to(torch.int8) for k in w if "proj" in k}))


@each(
    "does not read",
    {
        "surplus_bias": "model.layers.0.self_attn.q_proj.bias",
        "surplus_norm_of_queries": "model.layers.0.self_attn.q_norm.weight",
        "surplus_adapter": "model.layers.0.self_attn.q_proj.lora_A.weight",
        "surplus_scale": "model.layers.0.mlp.up_proj.weight_scale",
        "surplus_positions": "model.embed_positions.weight",
        "surplus_classifier": "score.weight",
        "surplus_parameter": "model.layers.1.mlp.gate_scale",
    },
)
def surplus(path: Path, key: str) -> None:
    change(path, lambda weights: weights.update({key: torch.full((32,), 0.5)}))


@folder("its config has 2 of these parts")
def surplus_layer(path: Path) -> None:
    key = "model.layers.2.self_attn.q_proj.weight"
    change(path, lambda weights: weights.update({key: torch.ones(32, 32)}))


@each(
    RIGHT,
    {
        "frequencies_of_old_files": "model.layers.0.self_attn.rotary_emb.inv_freq",
        "value_head_of_a_trainer": "v_head.summary.weight",
        "scale_of_a_cache": "model.layers.0.self_attn.k_proj.k_scale",
    },
)
def harmless(path: Path, key: str) -> None:
    surplus(path, key)


# --- weights: files that are none


def cut(share: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * share)]


@each(
    "safetensors",
    {
        "half_of_the_weights": cut(0.5),
        "all_but_four_bytes": lambda data: data[:-4],
        "more_bytes_than_weights": lambda data: data + bytes(16),
        "header_alone": lambda data: data[: 8 + struct.unpack("<Q", data[:8])[0]],
        "half_of_the_header": lambda data: data[:400],
        "seven_bytes": lambda data: data[:7],
        "no_bytes": lambda data: b"",
        "weights_in_lfs": lambda data: POINTER.encode(),
        "a_page_for_weights": lambda data: PAGE.encode(),
        "header_of_noise": lambda data: data[:8] + b"\xff" * (len(data) - 8),
        "header_of_exabytes": lambda data: struct.pack("<Q", 2**60) + data[8:],
        "header_of_a_list": lambda data: struct.pack("<Q", 2) + b"[]",
        "a_pickle_for_weights": lambda data: pickle.dumps({"a": 1}),
        "zip_for_weights": lambda data: b"PK\x03\x04" + bytes(100),
    },
)
def bytes_of_weights(path: Path, edit: Callable[[bytes], bytes]) -> None:
    (path / ONE).write_bytes(edit((path / ONE).read_bytes()))


@folder("safetensors|weights")
def weights_that_are_not_there_yet(path: Path) -> None:
    (path / ONE).rename(path / f"{ONE}.incomplete")


@folder("download has not ended")
def weights_that_are_still_written(path: Path) -> None:
    (path / f"{ONE}.aria2").write_bytes(b"")


@folder("safetensors|weights")
def weights_that_are_a_folder(path: Path) -> None:
    (path / ONE).unlink()
    (path / ONE).mkdir()


@folder("safetensors|weights")
def weights_that_link_nowhere(path: Path) -> None:
    (path / ONE).unlink()
    (path / ONE).symlink_to(path / "blobs" / "gone")


@folder("safetensors|weights")
def weights_that_link_to_themselves(path: Path) -> None:
    (path / ONE).unlink()
    (path / ONE).symlink_to(path / ONE)


@folder("safetensors")
def shard_in_lfs(path: Path) -> None:
    sharded(path)
    (path / SECOND).write_text(POINTER)


def pickled(path: Path, name: str) -> None:
    (path / name).write_bytes(pickle.dumps(Payload(path)))


@folder("pickled weights")
def only_pickled_weights(path: Path) -> None:
    (path / ONE).unlink()
    pickled(path, "pytorch_model.bin")


@folder("safetensors")
def a_pickle_that_runs_code(path: Path) -> None:
    pickled(path, ONE)


@folder(RIGHT)
def pickles_next_to_the_weights(path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        pickled(path, name)


# --- config.json


@each(
    "config",
    {
        "config_of_no_json": "{",
        "config_of_nothing": "",
        "config_of_a_list": "[1, 2]",
        "config_of_text": '"llama"',
        "config_of_null": "null",
        "config_in_lfs": POINTER,
        "config_that_is_a_page": PAGE,
        "config_that_is_deep": "[" * 100_000,
        "config_of_an_object_alone": "{}",
    },
)
def text_of_config(path: Path, text: str) -> None:
    (path / "config.json").write_text(text)


@folder("config")
def config_in_utf16(path: Path) -> None:
    text = (path / "config.json").read_text()
    (path / "config.json").write_bytes(text.encode("utf-16"))


@folder("config")
def without_a_config(path: Path) -> None:
    (path / "config.json").unlink()


@each(
    "",
    {
        "model_of_an_unknown_type": ({"model_type": "novel"}, "novel"),
        "model_type_that_is_a_number": ({"model_type": 5}, "model_type"),
        "model_type_that_is_a_list": ({"model_type": ["llama"]}, "model_type"),
        "vocabulary_too_small": ({"vocab_size": 200}, "shape|size"),
        "vocabulary_too_large": ({"vocab_size": 300}, "shape|size"),
        "vocabulary_that_is_text": ({"vocab_size": "many"}, "vocab_size"),
        "vocabulary_that_is_negative": ({"vocab_size": -260}, "vocab_size"),
        "vocabulary_of_zero": ({"vocab_size": 0}, "vocab_size"),
        "vocabulary_without_end": ({"vocab_size": 10**15}, "vocab_size|shape|size"),
        "width_that_is_negative": ({"hidden_size": -32}, "hidden_size"),
        "width_that_is_huge": ({"hidden_size": 2**40}, "hidden_size|shape|size"),
        "width_that_is_a_list": ({"hidden_size": [32]}, "hidden_size"),
        "width_of_null": ({"hidden_size": None}, "hidden_size"),
        "layers_that_are_negative": ({"num_hidden_layers": -1}, "num_hidden_layers"),
        "layers_of_zero": ({"num_hidden_layers": 0}, "num_hidden_layers"),
        "layers_beyond_count": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        "layers_that_are_a_fraction": ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        "layers_that_are_true": ({"num_hidden_layers": True}, "num_hidden_layers|these parts"),
        "one_layer_fewer": ({"num_hidden_layers": 1}, "its config has 1 of these parts"),
        "one_layer_more": ({"num_hidden_layers": 3}, "lacks 9 weights"),
        "heads_that_do_not_divide": ({"num_attention_heads": 3}, "shape|size|config"),
        "heads_of_zero": ({"num_attention_heads": 0}, "config"),
        "more_heads_of_keys": ({"num_key_value_heads": 4}, "shape|size|config"),
        "activation_that_does_not_exist": ({"hidden_act": "evil"}, "evil"),
        "activation_that_is_a_number": ({"hidden_act": 5}, "hidden_act"),
        "epsilon_of_nan": ({"rms_norm_eps": float("nan")}, "rms_norm_eps|finite|not a number"),
        "epsilon_that_is_text": ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        "positions_that_are_text": ({"max_position_embeddings": "all"}, "max_position_embeddings"),
        "rope_that_is_a_number": ({"rope_parameters": 5}, "rope"),
        "rope_of_an_unknown_type": ({"rope_parameters": {"rope_type": "evil"}}, "rope|evil"),
        "rope_of_text": (
            {"rope_parameters": {"rope_type": "yarn", "factor": "two", "rope_theta": 1e4}},
            "factor|not supported",
        ),
        "text_config_that_is_a_list": ({"text_config": [1]}, "text_config"),
        "ends_that_are_text": ({"eos_token_id": ["</s>"]}, "eos_token_id"),
        "quantised_by_a_number": ({"quantization_config": 5}, "quanti[sz]"),
        "quantised_by_a_stranger": ({"quantization_config": {"quant_method": "x"}}, "quantised"),
        "outputs_without_names": ({"return_dict": False}, RIGHT),
        "positions_without_end": ({"max_position_embeddings": 10**15}, RIGHT),
        "predicted_layers_of_text": ({"num_nextn_predict_layers": "x"}, RIGHT),
        "dtype_that_does_not_exist": ({"dtype": "float7"}, "dtype|float7"),
        "architecture_of_another_family": (
            {"architectures": ["GemmaForCausalLM"]},
            "of one family",
        ),
        "an_encoder": ({"is_encoder_decoder": True}, "encoder-decoder"),
    },
)
def config(path: Path, changes: dict[str, Any]) -> None:
    write(path, "config.json", **changes)


@folder("names no kernel")
def attention_named_in_the_config(path: Path) -> None:
    python(path, "kernel")
    write(path, "config.json", attn_implementation=str(path / "kernel"), _attn_implementation="a/b")


@folder(RIGHT)
def code_for_a_known_type(path: Path) -> None:
    python(path, "evil")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModel")
    write(path, "config.json", auto_map=dict.fromkeys(names, "evil.Evil"))


@folder("trust_remote_code|code")
def code_for_an_unknown_type(path: Path) -> None:
    code_for_a_known_type(path)
    write(path, "config.json", model_type="evil")


@folder(RIGHT)
def code_for_generation(path: Path) -> None:
    (path / "custom_generate").mkdir()
    python(path / "custom_generate", "generate")
    write(path, "generation_config.json", custom_generate=str(path))


# --- tokenizer and generation_config.json


@each(
    "tokenizer",
    {
        "tokenizer_of_no_json": lambda data: b"{",
        "tokenizer_of_nothing": lambda data: b"",
        "tokenizer_of_a_list": lambda data: b"[]",
        "half_of_the_tokenizer": cut(0.5),
        "tokenizer_in_lfs": lambda data: POINTER.encode(),
        "tokenizer_of_noise": lambda data: bytes(range(256)),
        "tokenizer_without_a_vocabulary": lambda data: data.replace(b'"vocab"', b'"words"'),
    },
)
def bytes_of_tokenizer(path: Path, edit: Callable[[bytes], bytes]) -> None:
    (path / "tokenizer.json").write_bytes(edit((path / "tokenizer.json").read_bytes()))


@each(
    "tokenizer_config",
    {
        "tokenizer_config_of_no_json": "{",
        "tokenizer_config_of_a_list": "[]",
        "tokenizer_config_in_lfs": POINTER,
        "tokenizer_config_of_text": '"fast"',
    },
)
def text_of_tokenizer_config(path: Path, text: str) -> None:
    (path / "tokenizer_config.json").write_text(text)


@folder("tokenizer")
def without_a_tokenizer(path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).unlink()


@folder("rows", teacher=RIGHT)
def tokenizer_of_a_larger_vocabulary(path: Path) -> None:
    extra = [f"<|extra{i}|>" for i in range(400)]
    chat = CHATML.replace("<|im_start|>assistant", "<|extra399|>")
    tokenizer_of(chat, extra=extra).save_pretrained(path)


@folder("same tokens|twice", teacher="tokenizers of pair")
def tokenizer_that_reads_one_word(path: Path) -> None:
    table = json.loads((path / "tokenizer.json").read_text())
    kept = {token: id for token, id in table["model"]["vocab"].items() if id < 5}
    table["model"] |= {"vocab": kept, "merges": [], "unk_token": "<s>"}
    (path / "tokenizer.json").write_text(json.dumps(table))
    template(path, None)


@folder(RIGHT)
def tokenizer_with_code(path: Path) -> None:
    python(path, "evil")
    write(path, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})


@each(
    "",
    {
        "tokenizer_class_that_does_not_exist": ({"tokenizer_class": "EvilTokenizer"}, RIGHT),
        "tokenizer_class_that_is_a_number": ({"tokenizer_class": 5}, "tokenizer"),
        "without_an_end": ({"eos_token": None}, RIGHT),
        "end_that_is_a_number": ({"eos_token": 5}, "tokenizer|eos_token"),
        "length_that_is_text": ({"model_max_length": "long"}, "tokenizer"),
        "unknown_token_without_text": ({"unk_token": ""}, "tokenizer"),
        "added_tokens_that_are_text": ({"added_tokens_decoder": "x"}, "tokenizer"),
        "added_token_far_away": (
            {"added_tokens_decoder": {str(10**12): {"content": "<far>", "special": True}}},
            RIGHT,
        ),
    },
)
def tokenizer_config(path: Path, changes: dict[str, Any]) -> None:
    write(path, "tokenizer_config.json", **changes)


@folder("end-of-sequence")
def without_any_end(path: Path) -> None:
    write(path, "tokenizer_config.json", eos_token=None)
    for file in ("generation_config.json", "config.json"):
        write(path, file, eos_token_id=None)


@each(
    "generation_config",
    {
        "generation_of_no_json": "{",
        "generation_of_a_list": "[]",
        "generation_in_lfs": POINTER,
        "generation_that_suppresses_a_number": '{"eos_token_id": 1, "suppress_tokens": 5}',
        "generation_that_ends_in_text": '{"eos_token_id": "</s>"}',
    },
)
def text_of_generation_config(path: Path, text: str) -> None:
    (path / "generation_config.json").write_text(text)


# --- chat templates

LOOP = "{% for i in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4
GROWING = (
    "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    "{{ n.s }}"
)
TREE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
USER = "{{ messages[-1].content }}"


@each(
    "template",
    {
        "template_that_raises": "{{ raise_exception('no') }}",
        "template_that_divides_by_zero": "{{ 1 / 0 }}",
        "template_that_does_not_parse": "{% for m in messages %}",
        "template_with_an_unknown_filter": USER + "{{ 'a' | evil }}",
        "template_with_a_file": "{% include '/etc/passwd' %}" + USER,
        "template_that_leaves_the_sandbox": "{{ ''.__class__.__mro__ }}" + USER,
        "template_that_calls_itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + USER,
        "template_that_loops": LOOP + USER,
        "template_that_branches": TREE + USER,
        "template_that_repeats": "{{ 'a' * 10 ** 11 }}" + USER,
        "template_of_a_power": "{{ 9 ** (9 ** 9) }}" + USER,
        "template_that_grows": GROWING + USER,
        "template_that_pads": "{{ 'a' | center(20000000000) }}" + USER,
        "template_that_formats": "{{ '%9999999999d' | format(1) }}" + USER,
        "template_of_a_long_text": "{{ 'word ' * 10 ** 6 }}" + USER,
        "template_without_the_question": "Write a poem.<|im_start|>assistant\n",
        "template_that_cuts_the_question": "{{ messages[-1].content[:3] }}\nAnswer: ",
        "template_in_upper_case": "{{ messages[-1].content | upper }}\nAnswer: ",
        "template_that_draws": "{{ ['Think.', 'Answer.'] | random }}" + USER,
        "template_of_random_words": "{{ lipsum(1) }}" + USER,
        "template_with_an_address": "{{ messages[0].items }}" + USER,
        "template_that_is_a_table": {"evil": "x"},
    },
    teacher=RIGHT,
)
def chat_template(path: Path, text: Any) -> None:
    template(path, text)


@each("template|tokenizer", {"template_of_a_number": 5, "template_of_a_list": [5]})
def template_of_no_text(path: Path, text: Any) -> None:
    template(path, text)


@folder("template", teacher=RIGHT)
def template_that_loops_on_some_questions(path: Path) -> None:
    template(path, "{% if 'Tom' in messages[-1].content %}" + LOOP + "{% endif %}" + USER)


@folder("template", teacher=RIGHT)
def template_without_some_questions(path: Path) -> None:
    template(path, "{% if 'Tom' not in messages[-1].content %}" + USER + "{% endif %}?")


@folder("Git LFS")
def template_file_in_lfs(path: Path) -> None:
    (path / "chat_template.jinja").write_text(POINTER)


# --- the folder, and adapters


@folder("neither a local folder|not a folder")
def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("model")


@folder("config.json")
def an_empty_folder(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


@folder("neither a local folder")
def no_folder(path: Path) -> None:
    shutil.rmtree(path)


@folder("neither a local folder|links")
def a_folder_that_links_to_itself(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to(path)


@folder(RIGHT)
def a_folder_with_a_link_to_itself(path: Path) -> None:
    (path / "again").symlink_to(path)


@folder(RIGHT)
def a_folder_with_a_link_to_nowhere(path: Path) -> None:
    (path / "notes.txt").symlink_to(path / "gone")


@folder("safetensors|weights")
def weights_that_are_a_pipe(path: Path) -> None:
    (path / ONE).unlink()
    os.mkfifo(path / ONE)


@folder("Permission denied|not be read|cannot read" if os.geteuid() else RIGHT)
def weights_that_are_locked(path: Path) -> None:
    (path / ONE).chmod(0)


def adapter(path: Path, **changes: Any) -> None:
    """Turn the folder into an adapter of the model, which moves next to it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = path.parent / "base"
    shutil.move(path, base)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    targets = ["q_proj", "down_proj"]
    get_peft_model(model, LoraConfig(r=2, target_modules=targets)).save_pretrained(path)
    write(path, "adapter_config.json", **{"base_model_name_or_path": str(base), **changes})


def edit_adapter(path: Path, edit: Callable[[Weights], Any]) -> None:
    adapter(path)
    file = path / "adapter_model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


@folder(RIGHT)
def adapter_of_a_pattern(path: Path) -> None:
    adapter(path, target_modules=r".*\.(q_proj|down_proj)")


@folder(RIGHT)
def adapter_that_changes_nothing(path: Path) -> None:
    adapter(path)


@folder("adapter")
def adapter_without_a_tensor(path: Path) -> None:
    edit_adapter(path, lambda weights: weights.pop(sorted(weights)[0]))


@folder("not finite|NaN")
def adapter_of_nan(path: Path) -> None:
    edit_adapter(path, lambda weights: weights[sorted(weights)[1]].view(-1)[:1].fill_(torch.nan))


@folder("adapter")
def adapter_with_more_tensors(path: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.k_proj.lora_{}.weight"
    more = {key.format("A"): torch.ones(2, 32), key.format("B"): torch.ones(32, 2)}
    edit_adapter(path, lambda weights: weights.update(more))


@each(
    "leaves out",
    {
        "adapter_with_a_bias": "self_attn.q_proj.lora_B.bias",
        "adapter_with_a_norm": "extra_norm.weight",
    },
)
def adapter_with_one_more(path: Path, key: str) -> None:
    key = f"base_model.model.model.layers.0.{key}"
    edit_adapter(path, lambda weights: weights.update({key: torch.ones(32)}))


@folder("adapter")
def adapter_that_is_pickled(path: Path) -> None:
    adapter(path)
    (path / "adapter_model.safetensors").unlink()
    pickled(path, "adapter_model.bin")


@folder("adapter|safetensors")
def adapter_in_lfs(path: Path) -> None:
    adapter(path)
    (path / "adapter_model.safetensors").write_text(POINTER)


@folder("adapter_config")
def adapter_config_of_a_list(path: Path) -> None:
    adapter(path)
    (path / "adapter_config.json").write_text("[]")


@each(
    "adapter",
    {
        "adapter_of_itself": ({"base_model_name_or_path": "."}, "adapter"),
        "adapter_that_imports": {"megatron_config": {"a": 1}, "megatron_core": "hostile_module"},
        "adapter_of_a_negative_rank": {"r": -2},
        "adapter_of_a_text_rank": {"r": "two"},
        "adapter_whose_pattern_never_ends": (
            {"target_modules": r"([a-z_.0-9]+)*[A-Z]"},
            "takes more than",
        ),
        "adapter_of_a_wrong_pattern": {"target_modules": "(q_proj"},
        "adapter_whose_ranks_never_end": (
            {"rank_pattern": {r"([a-z_.0-9]+)*[A-Z]": 4}},
            "takes more than",
        ),
        "adapter_that_waits_for_tokens": {"alora_invocation_tokens": [5]},
        "adapter_of_an_unknown_kind": {"peft_type": "EVIL"},
        "adapter_of_a_number": {"peft_type": 5},
        "adapter_of_no_modules": {"target_modules": ["evil"]},
        "adapter_of_infinite_strength": {"lora_alpha": float("inf")},
    },
)
def adapter_config(path: Path, changes: dict[str, Any]) -> None:
    adapter(path, **changes)
    if changes.get("base_model_name_or_path") == ".":
        write(path, "adapter_config.json", base_model_name_or_path=str(path))
    python(path, "hostile_module")


# --- opening a folder


def numbers(engine: Any, role: str) -> np.ndarray:
    """Log-probabilities of a completion, which any damage of the weights changes."""
    prompt = engine.prompt(Problem("", EXAMPLE["question"], ""))
    return np.asarray(engine.rows(role, prompt, (40, 50, 60)))


def as_eval(path: Path) -> np.ndarray:
    """Open a model as `potstill eval` does, and read with it."""
    check_model(str(path), "model")
    pair = Pair(student=str(path), teacher=str(path))
    engine = open_engine("torch", pair, settings=engine_options([], 1))
    return numbers(engine, "student")


def as_teacher(path: Path, student: Path) -> np.ndarray:
    """Open a model as the teacher of a study, and read with it."""
    study = read_study(study_table(path.parent, str(student), str(path)))
    task = load_task(**study.task)
    with tempfile.TemporaryDirectory() as scratch:
        key = RunId("mine", "on_policy_gkd", 0)
        engine = open_study_engine(study, key, task, Path(scratch), Path(scratch) / "cache")
        return numbers(engine, "teacher")


def outcome_of(open_it: Callable[[], np.ndarray], wanted: np.ndarray, canary: Path) -> Outcome:
    """Open a damaged folder, and compare with the good model's numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = open_it()
    except PotstillError as error:
        result = Outcome("refused" if error.hint else "traceback", str(error))
    except Exception as error:
        result = Outcome("traceback", "".join(traceback.format_exception(error)[-3:]))
    else:
        same = got.shape == wanted.shape and np.allclose(got, wanted, atol=1e-5)
        result = Outcome("right" if same else "wrong")
    return Outcome("leaked", result.text) if canary.exists() else result


def ways(name: str, model: Path, wanted: np.ndarray, place: Path) -> Iterator[tuple[str, Outcome]]:
    """Expected outcome and outcome of a folder in each way of opening it.

    Args:
        name: of the folder.
        model: the good one.
        wanted: its numbers.
        place: an empty folder, whose name no expected rule matches.
    """
    case = FOLDERS[name]
    for way, expected in (("eval", case.expected), ("teacher", case.teacher)):
        path = place / way / "copy"
        path.parent.mkdir()
        shutil.copytree(model, path)
        case.damage(path)
        opened = partial(as_eval, path) if way == "eval" else partial(as_teacher, path, model)
        yield expected, outcome_of(opened, wanted, canary(path))


def outcomes(names: Iterable[str] = ()) -> Iterator[tuple[str, str, Outcome]]:
    """Name, expected outcome and outcome of each folder, opened in each way."""
    with tempfile.TemporaryDirectory() as root:
        model = good(Path(root) / "good")
        wanted = as_eval(model)
        for number, name in enumerate(names or FOLDERS):
            place = Path(root) / str(number)
            place.mkdir()
            for expected, outcome in ways(name, model, wanted, place):
                yield name, expected, outcome
            shutil.rmtree(place)


def met(expected: str, outcome: Outcome) -> bool:
    """True if an outcome is the expected one."""
    if expected == RIGHT:
        return outcome.kind == "right"
    return outcome.kind == "refused" and bool(re.search(expected, outcome.text))


if __name__ == "__main__":
    for name, expected, outcome in outcomes(sys.argv[1:]):
        mark = "ok " if met(expected, outcome) else "BAD"
        print(mark, name, outcome.kind, outcome.text[-300:].replace("\n", " "), flush=True)
