"""Open a pair of model folders or hub names, and export the trained student as a folder.

Pairs are validated here, with a hint for each error: pickled weights, tokenizers that differ, a
tokenizer with more ids than a head has rows. Heads that differ only in padding rows (Qwen2.5:
151,936 and 152,064) are truncated to the smaller one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from potstill.engines.torch.lora_targets import without_lora
from potstill.engines.torch.quantised import (
    in_floating_point,
    is_quantised,
    keep_layout,
    placement,
)
from potstill.errors import PotstillError
from potstill.tasks.rendering import render
from potstill.types import ModelSpec, Role, is_teacher

SAMPLE_TEXTS = ("Tom has 12 apples.", "3.5 + 0.25 = 3.75\n", "  naïve façade — 你好", "#### 1,234")


def resolve(spec: ModelSpec) -> ModelSpec:
    """Replace every "auto" of a placement by a value for this machine."""
    device = spec.device
    if device == "auto":
        rank = os.environ.get("LOCAL_RANK", "0")  # set by torchrun: one GPU per process
        device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise PotstillError(
            f'device "{device}" needs a GPU, and torch finds no GPU', 'use device = "cpu"'
        )
    dtype = spec.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") or spec.device_map else "float32"
    return dataclasses.replace(spec, device=device, dtype=dtype)


def autocast(spec: ModelSpec) -> contextlib.AbstractContextManager[object]:
    """Compute in the placement's dtype, although trained weights are stored in float32."""
    if spec.dtype == "float32":
        return contextlib.nullcontext()
    kind = "cuda" if spec.device_map else torch.device(spec.device).type
    return torch.autocast(kind, dtype=getattr(torch, spec.dtype))


@dataclass(frozen=True)
class ModelPair:
    """A student and its teachers, with their tokenizers and placements."""

    student: str
    teacher: str
    student_spec: ModelSpec
    teacher_spec: ModelSpec
    tokenizer: Any
    eos: frozenset[int]
    vocabulary: int  # number of ids that all heads have
    notes: tuple[str, ...]
    teacher_tokenizer: Any = None  # set if it differs from the student's
    teacher_eos: frozenset[int] = frozenset()  # likewise
    teacher_vocabulary: int = 0  # likewise
    teachers: Mapping[str, str] = field(default_factory=dict)  # additional teachers, by name

    def eos_of(self, role: Role) -> frozenset[int]:
        """Return the ids that end a completion of this model."""
        return self.teacher_eos if self.teacher_tokenizer and is_teacher(role) else self.eos

    def vocabulary_of(self, role: Role) -> int:
        """Return the number of ids of this model's head that are used."""
        own = self.teacher_tokenizer and is_teacher(role)
        return self.teacher_vocabulary if own else self.vocabulary

    @property
    def one_model(self) -> bool:
        """True if the teacher has the weights of the student of step 0: it is loaded only once.

        With LoRA it is not loaded at all, because the student's adapters can be disabled.
        """
        same = Path(self.student).resolve() == Path(self.teacher).resolve()
        return same and self.student_spec == self.teacher_spec

    def name_of(self, role: Role) -> str:
        """Return the folder or hub name of a role's model."""
        if not is_teacher(role):
            return self.student
        return self.teachers[role.split(":", 1)[1]] if ":" in role else self.teacher

    def spec_of(self, role: Role) -> ModelSpec:
        """Return the placement of a role's model; all teachers share one."""
        return self.teacher_spec if is_teacher(role) else self.student_spec

    def with_teachers(self, teachers: Mapping[str, str]) -> ModelPair:
        """Add teachers, validated like the first one; all heads are truncated to the smallest."""
        pair, specs = self, (self.student_spec, self.teacher_spec)
        for name in teachers.values():
            other = ModelPair.open(self.student, name, *specs)
            pair = dataclasses.replace(
                pair,
                eos=pair.eos | other.eos,
                vocabulary=min(pair.vocabulary, other.vocabulary),
                notes=tuple(dict.fromkeys((*pair.notes, *other.notes))),
            )
        return dataclasses.replace(pair, teachers=dict(teachers))

    @classmethod
    def open(
        cls,
        student: str,
        teacher: str,
        student_spec: ModelSpec | None,
        teacher_spec: ModelSpec | None,
        cross: bool = False,
    ) -> ModelPair:
        """Read both tokenizers and configs (no weights), and check that they fit together.

        Args:
            student: hub name or folder.
            teacher: hub name or folder.
            student_spec: placement of the student.
            teacher_spec: placement of the teacher.
            cross: whether the tokenizers may differ.
        """
        if student_spec and student_spec.dtype == "float16":
            raise PotstillError(
                "a student cannot train in float16: small gradients vanish without loss scaling",
                'use dtype = "bfloat16" or "float32" for the student; the teacher may use float16',
            )
        specs = resolve(student_spec or ModelSpec()), resolve(teacher_spec or ModelSpec())
        names = student, teacher
        tok, teacher_tok = (
            read_pretrained(AutoTokenizer, name, trust_remote_code=spec.trust_remote_code)
            for name, spec in zip(names, specs, strict=True)
        )
        difference = _difference(tok, teacher_tok)
        if difference and not cross:
            raise PotstillError(
                f'student and teacher must share a tokenizer: "{student}" and "{teacher}" differ '
                f"({difference})",
                "choose a student and a teacher of one model family",
            )
        sizes = [
            read_pretrained(AutoConfig, name, trust_remote_code=spec.trust_remote_code)
            .get_text_config()
            .vocab_size
            for name, spec in zip(names, specs, strict=True)
        ]
        if difference:
            for name, tokenizer, size in zip(names, (tok, teacher_tok), sizes, strict=True):
                _check_head(name, tokenizer, size)
            eos = frozenset(_eos(student, tok))
            return cls(
                *(student, teacher, *specs, tok, eos, sizes[0], ()),
                teacher_tokenizer=teacher_tok,
                teacher_eos=frozenset(_eos(teacher, teacher_tok)),
                teacher_vocabulary=sizes[1],
            )
        notes = _one_template(tok, teacher_tok)
        vocabulary, highest = min(sizes), max(tok.get_vocab().values())
        if highest >= vocabulary:
            raise PotstillError(
                f"every token id needs a row in both heads: the tokenizer has id {highest}, the "
                f"heads have {sizes[0]} (student) and {sizes[1]} (teacher) rows",
                "take a model and its own tokenizer from the same folder",
            )
        if sizes[0] != sizes[1]:
            notes = (*notes, f"heads of {sizes[0]} and {sizes[1]} rows truncated to {vocabulary}")
        eos = frozenset(_eos(student, tok) | _eos(teacher, teacher_tok))
        return cls(student, teacher, *specs, tok, eos, vocabulary, notes)


def read_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Call `from_pretrained`, and turn its errors into a `PotstillError` with a hint."""
    try:
        return kind.from_pretrained(name, **options)
    except ImportError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise PotstillError(
            f'"{name}" needs a package that is not installed: {reason}',
            "pip install that package (bitsandbytes, torchao or compressed-tensors, for example)",
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise PotstillError(
            f'cannot read "{name}": {reason}',
            "give a folder with config.json, tokenizer files and *.safetensors, or a hub name that "
            "this machine can reach (gated models need `huggingface-cli login`)",
        ) from error


def _difference(student_tok: Any, teacher_tok: Any) -> str:
    """Describe a difference between two tokenizers; empty if there is none."""
    ids, teacher_ids = student_tok.get_vocab(), teacher_tok.get_vocab()
    tokens = ids.keys() | teacher_ids.keys()
    count = sum(ids.get(token) != teacher_ids.get(token) for token in tokens)
    if count:
        return f"{count} tokens have different ids"
    texts = [t for t in SAMPLE_TEXTS if student_tok(t).input_ids != teacher_tok(t).input_ids]
    return f"they split {texts[0]!r} differently" if texts else ""


def _check_head(name: str, tok: Any, size: int) -> None:
    highest = max(tok.get_vocab().values())
    if highest >= size:
        raise PotstillError(
            f'every token id needs a row in the head: the tokenizer of "{name}" has id {highest}, '
            f"its head has {size} rows",
            "take a model and its own tokenizer from the same folder",
        )


def _one_template(student_tok: Any, teacher_tok: Any) -> tuple[str, ...]:
    """Make the student's tokenizer render prompts for both models, and return a note about it."""
    if not student_tok.chat_template and teacher_tok.chat_template:
        student_tok.chat_template = teacher_tok.chat_template
        return ("the student has no chat template: the teacher's renders prompts for both",)
    both = student_tok.chat_template and teacher_tok.chat_template
    if both and render(student_tok, "?") != render(teacher_tok, "?"):
        return ("chat templates differ: the student's renders prompts for both",)
    return ()


def _eos(name: str, tok: Any) -> set[int]:
    """Return the ids that end a completion, from the generation config and the tokenizer."""
    ends = {tok.eos_token_id} if tok.eos_token_id is not None else set()
    with contextlib.suppress(OSError):  # the file is optional
        listed = GenerationConfig.from_pretrained(name).eos_token_id
        ends |= set(listed) if isinstance(listed, list) else {listed} - {None}
    if not ends:
        raise PotstillError(
            f'"{name}" has no end-of-sequence token, so completions would never end',
            "set eos_token in tokenizer_config.json",
        )
    return ends


def without_adapters(model: Any) -> Any:
    """Return the transformers model inside a PEFT model; its layers still have the adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_model(name: str, spec: ModelSpec, *, trained: bool, share: bool = False) -> Any:
    """Load a model for inference, or with `trained` in float32 and with gradients.

    With `share` the weights stay on the CPU, because each process moves only its shard.
    """
    dtype = torch.float32 if trained else getattr(torch, spec.dtype)
    packed = placement(name, spec.device, spec.trust_remote_code)
    model = read_pretrained(
        AutoModelForCausalLM,
        name,
        dtype=dtype,
        use_safetensors=True,
        **({"device_map": spec.device_map} if spec.device_map else packed),
        attn_implementation=spec.attention,
        trust_remote_code=spec.trust_remote_code,
    )
    if not (spec.device_map or share or packed):
        model.to(spec.device)
    if getattr(model.config, "rescale_every", 0):  # RWKV would rescale its weights in place
        model.config.rescale_every = 0
    keep_layout(model)
    model.requires_grad_(trained and not is_quantised(model))
    return model.eval()  # no dropout: the sampling policy must be the trained policy


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass, and turn off dropout.

    Checkpointing works in training mode only, where dropout would be active.
    """
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def add_lora(model: Any, rank: int) -> Any:
    """Add LoRA adapters to all linear layers except the head; only the adapters are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        exclude_modules=without_lora(model) or None,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # peft uses an attribute that transformers deprecates
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, config).eval()


def export_student(
    pair: ModelPair,
    model: Any,
    folder: Path,
    *,
    lora: bool,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the student as a folder that transformers can load, atomically.

    LoRA adapters are merged into the weights, and also written to `adapter/`.

    Args:
        pair: the opened pair.
        model: the student; with `lora` its adapters are merged into newly loaded base weights.
        folder: the folder to write.
        lora: whether the student is a base model with adapters.
        weights: whole weights by name, if the model holds only shards.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if lora:
        from peft import PeftModel

        model.save_pretrained(partial / "adapter", state_dict=weights)
        # on the CPU, because the run's models fill the devices
        spec = dataclasses.replace(pair.student_spec, device="cpu", device_map=None)
        base = load_model(pair.student, spec, trained=False)
        base = in_floating_point(base, getattr(torch, spec.dtype))
        model = PeftModel.from_pretrained(base, partial / "adapter").merge_and_unload()
        weights = None
    model.save_pretrained(partial, state_dict=weights)
    pair.tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
