"""Opening a pair of model folders or hub names, and writing the trained student back as one.

What can be wrong with a pair is found here, with a hint: pickled weights, tokenizers that
differ, a tokenizer with ids that a head lacks. Heads that differ in padding rows only (Qwen2.5:
151,936 and 152,064) are cut to the shorter one.
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

from potstill.errors import PotstillError
from potstill.tasks.rendering import render
from potstill.types import ModelSpec, Role, is_teacher

SAMPLE_TEXTS = ("Tom has 12 apples.", "3.5 + 0.25 = 3.75\n", "  naïve façade — 你好", "#### 1,234")


def resolve(spec: ModelSpec) -> ModelSpec:
    """The same placement with every "auto" decided for this machine."""
    device = spec.device
    if device == "auto":
        here = os.environ.get("LOCAL_RANK", "0")  # set by torchrun: one process, one GPU
        device = f"cuda:{here}" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise PotstillError(
            f'device "{device}" is asked for, but torch sees no GPU', 'use device = "cpu"'
        )
    dtype = spec.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") or spec.device_map else "float32"
    return dataclasses.replace(spec, device=device, dtype=dtype)


def autocast(spec: ModelSpec) -> contextlib.AbstractContextManager[Any]:
    """Compute in the placement's dtype even where trained weights are kept in float32."""
    if spec.dtype == "float32":
        return contextlib.nullcontext()
    kind = "cuda" if spec.device_map else torch.device(spec.device).type
    return torch.autocast(kind, dtype=getattr(torch, spec.dtype))


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, with one tokenizer and one prompt rendering unless said."""

    student: str
    teacher: str
    student_spec: ModelSpec
    teacher_spec: ModelSpec
    tokenizer: Any
    eos: frozenset[int]
    vocabulary: int  # rows of the heads that both models have
    notes: tuple[str, ...]
    other: Any = None  # the teacher's tokenizer, where it is not the student's
    other_eos: frozenset[int] = frozenset()
    other_vocabulary: int = 0
    teachers: Mapping[str, str] = field(default_factory=dict)  # further ones, by a name

    def ends(self, role: Role) -> frozenset[int]:
        """Ids that end a completion of this model's."""
        return self.other_eos if self.other and is_teacher(role) else self.eos

    def width(self, role: Role) -> int:
        """Rows of this model's head that are used."""
        return self.other_vocabulary if self.other and is_teacher(role) else self.vocabulary

    @property
    def one_model(self) -> bool:
        """Whether the teacher is the student of step 0: it is loaded once, or with adapters not at
        all, as they switch off."""
        same = Path(self.student).resolve() == Path(self.teacher).resolve()
        return same and self.student_spec == self.teacher_spec

    def name_of(self, role: Role) -> str:
        """The folder or hub name of a role's model."""
        if not is_teacher(role):
            return self.student
        return self.teachers[role.split(":", 1)[1]] if ":" in role else self.teacher

    def spec_of(self, role: Role) -> ModelSpec:
        """Where a role's model lives; all teachers like the first."""
        return self.teacher_spec if is_teacher(role) else self.student_spec

    def join(self, teachers: Mapping[str, str]) -> Pair:
        """The pair with further teachers, each checked like the first and cut to the shortest
        head."""
        found, specs = self, (self.student_spec, self.teacher_spec)
        for name in teachers.values():
            other = Pair.open(self.student, name, *specs)
            found = dataclasses.replace(
                found,
                eos=found.eos | other.eos,
                vocabulary=min(found.vocabulary, other.vocabulary),
                notes=tuple(dict.fromkeys((*found.notes, *other.notes))),
            )
        return dataclasses.replace(found, teachers=dict(teachers))

    @classmethod
    def open(
        cls,
        student: str,
        teacher: str,
        mine: ModelSpec | None,
        its: ModelSpec | None,
        cross: bool = False,
    ) -> Pair:
        """Read both tokenizers and configs (no weights) and check that they fit.

        Args:
            student: hub name or folder.
            teacher: hub name or folder.
            mine: where the student lives.
            its: where the teacher lives.
            cross: whether they may have tokenizers that differ.
        """
        if mine and mine.dtype == "float16":
            raise PotstillError(
                "a student does not train in float16: small gradients vanish without loss scaling",
                'use dtype = "bfloat16" or "float32" for the student; the teacher may have float16',
            )
        mine, its = resolve(mine or ModelSpec()), resolve(its or ModelSpec())
        tok, tok_q = (
            read_pretrained(AutoTokenizer, name, trust_remote_code=spec.trust_remote_code)
            for name, spec in ((student, mine), (teacher, its))
        )
        differ = _difference(tok, tok_q)
        if differ and not cross:
            raise PotstillError(
                f'student and teacher must share a tokenizer: "{student}" and "{teacher}" differ '
                f"({differ})",
                "choose a student and a teacher of one model family",
            )
        sizes = [
            read_pretrained(AutoConfig, name, trust_remote_code=spec.trust_remote_code)
            .get_text_config()
            .vocab_size
            for name, spec in ((student, mine), (teacher, its))
        ]
        if differ:
            for name, one, size in ((student, tok, sizes[0]), (teacher, tok_q, sizes[1])):
                _check_head(name, one, size)
            ends = (frozenset(_eos(*one)) for one in ((student, tok), (teacher, tok_q)))
            mine_ends, its_ends = ends
            return cls(
                student, teacher, mine, its, tok, mine_ends, sizes[0], (), tok_q, its_ends, sizes[1]
            )
        notes = _one_template(tok, tok_q)
        vocabulary, highest = min(sizes), max(tok.get_vocab().values())
        if highest >= vocabulary:
            raise PotstillError(
                f"every token id needs a row in both heads: the tokenizer has id {highest}, the "
                f"heads have {sizes[0]} (student) and {sizes[1]} (teacher) rows",
                "take a model and its own tokenizer from the same folder",
            )
        if sizes[0] != sizes[1]:
            notes = (*notes, f"heads of {sizes[0]} and {sizes[1]} rows cut to {vocabulary}")
        eos = frozenset(_eos(student, tok) | _eos(teacher, tok_q))
        return cls(student, teacher, mine, its, tok, eos, vocabulary, notes)


def read_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """from_pretrained with errors that say what to do."""
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise PotstillError(
            f'cannot read "{name}": {reason}',
            "give a folder with config.json, tokenizer files and *.safetensors, or a hub name that "
            "this machine can reach (gated models need `huggingface-cli login`)",
        ) from error


def _difference(tok: Any, tok_q: Any) -> str:
    """In what two tokenizers differ, or nothing."""
    mine, its = tok.get_vocab(), tok_q.get_vocab()
    differ = [token for token in mine.keys() | its.keys() if mine.get(token) != its.get(token)]
    if differ:
        return f"{len(differ)} tokens have other ids"
    texts = [t for t in SAMPLE_TEXTS if tok(t).input_ids != tok_q(t).input_ids]
    return f"they split {texts[0]!r} differently" if texts else ""


def _check_head(name: str, tok: Any, size: int) -> None:
    highest = max(tok.get_vocab().values())
    if highest >= size:
        raise PotstillError(
            f'every token id needs a row in the head: the tokenizer of "{name}" has id {highest}, '
            f"its head has {size} rows",
            "take a model and its own tokenizer from the same folder",
        )


def _one_template(tok: Any, tok_q: Any) -> tuple[str, ...]:
    """Make the student's tokenizer render prompts for both; say what was decided."""
    if not tok.chat_template and tok_q.chat_template:
        tok.chat_template = tok_q.chat_template
        return ("the student has no chat template: the teacher's renders prompts for both",)
    if tok.chat_template and tok_q.chat_template and render(tok, "?") != render(tok_q, "?"):
        return ("chat templates differ: the student's renders prompts for both",)
    return ()


def _eos(name: str, tok: Any) -> set[int]:
    """Every id that ends a completion: the generation config's list and the tokenizer's own."""
    ends = {tok.eos_token_id} if tok.eos_token_id is not None else set()
    with contextlib.suppress(OSError):  # the file is optional
        listed = GenerationConfig.from_pretrained(name).eos_token_id
        ends |= set(listed) if isinstance(listed, list) else {listed} - {None}
    if not ends:
        raise PotstillError(
            f'"{name}" names no end-of-sequence token, so no completion could end',
            "set eos_token in tokenizer_config.json",
        )
    return ends


def without_adapters(model: Any) -> Any:
    """The model of transformers that adapters hide; its layers have them all the same."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_model(name: str, spec: ModelSpec, *, trained: bool, share: bool = False) -> Any:
    """Load weights for running, or with `trained` in float32 and with gradients.

    With `share` they stay on the CPU: each process will take its part to its device.
    """
    dtype = torch.float32 if trained else getattr(torch, spec.dtype)
    model = read_pretrained(
        AutoModelForCausalLM,
        name,
        dtype=dtype,
        use_safetensors=True,
        device_map=spec.device_map,
        attn_implementation=spec.attention,
        trust_remote_code=spec.trust_remote_code,
    )
    if not (spec.device_map or share):
        model.to(spec.device)
    model.requires_grad_(trained)
    return model.eval()  # no dropout: the policy that samples is the policy that is trained


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass. Works in training mode only, so dropout goes."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    model.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def add_lora(model: Any, rank: int) -> Any:
    """Put adapters on all linear layers but the head; only they are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # peft asks transformers for what goes in its next version
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, config).eval()


def export_student(
    pair: Pair, model: Any, folder: Path, *, lora: bool, weights: dict[str, Any] | None = None
) -> None:
    """Write the student as a folder that transformers loads, LoRA merged and kept in `adapter/`.

    The folder appears whole or not at all.

    Args:
        pair: what was opened.
        model: the student; with `lora` its adapters are written and merged into fresh weights.
        folder: where to.
        lora: whether the student is a base model with adapters.
        weights: by name, where the model itself holds but a part of them.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    if lora:
        from peft import PeftModel

        model.save_pretrained(partial / "adapter", state_dict=weights)
        # on the CPU: the devices are full of the run's models
        spec = dataclasses.replace(pair.student_spec, device="cpu", device_map=None)
        base = load_model(pair.student, spec, trained=False)
        model = PeftModel.from_pretrained(base, partial / "adapter").merge_and_unload()
        weights = None
    model.save_pretrained(partial, state_dict=weights)
    pair.tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
