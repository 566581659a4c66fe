"""Open a pair of model folders or hub names: tokenizers, prompts, and weights.

Pairs are validated here, with a hint for each error: weights that are missing, tokenizers that
differ, prompts that cannot be meant. Heads that differ only in padding rows (Qwen2.5: 151,936 and
152,064) are truncated to the smaller one; ids of a tokenizer without a row are never sampled.
`checkpoints` reads configs and tokenizers, `ends` what ends a completion, `adapters` LoRA, and
`exporting` writes the student.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from potstill.engines.torch import weights
from potstill.engines.torch.adapters import merge_adapter
from potstill.engines.torch.checkpoints import TEXT_PART, Checkpoint, read_pretrained
from potstill.engines.torch.devices import check_device
from potstill.engines.torch.ends import defaults_note, ends_of, turn_note
from potstill.engines.torch.quantised import (
    in_floating_point,
    is_quantised,
    keep_layout,
    placement,
)
from potstill.engines.torch.tokenizers import difference_of, one_template, without_row
from potstill.engines.torch.unread import check_method, check_unread
from potstill.engines.torch.windows import Window, window_of
from potstill.errors import PotstillError
from potstill.problems import Messages
from potstill.tasks.rendering import check_rendering, render
from potstill.types import Ids, ModelSpec, Role, is_teacher


def resolve(spec: ModelSpec) -> ModelSpec:
    """Replace every "auto" of a placement by a value for this machine."""
    device = spec.device
    if device == "auto":
        rank = os.environ.get("LOCAL_RANK", "0")  # set by torchrun: one GPU per process
        device = f"cuda:{rank}" if torch.cuda.is_available() else "cpu"
    check_device(device)
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
    rows: tuple[int, int] = (0, 0)  # ids that the student and the teachers can read
    windows: tuple[Window, Window] = (Window(), Window())  # of the student and the teachers
    student_adapter: Mapping[str, Any] = field(default_factory=dict)  # if the student is one
    alone: bool = False  # no teacher: its fields are the student's

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
        bare = [
            dataclasses.replace(spec, template={}, date="")
            for spec in (self.student_spec, self.teacher_spec)
        ]
        return same and bare[0] == bare[1]

    def encode(self, text: str | Messages, role: Role = "student") -> Ids:
        """Return the prompt ids (P,) of a question or conversation, as a model reads it.

        Raises:
            PotstillError: the model has no row for one of them.
        """
        own = is_teacher(role) and self.teacher_tokenizer
        tokenizer = self.teacher_tokenizer if own else self.tokenizer
        ids = render(tokenizer, text, self.spec_of(role))
        if max(ids, default=0) >= self.rows[is_teacher(role)]:
            token = tokenizer.convert_ids_to_tokens(max(ids))
            raise PotstillError(
                f'a prompt has {token} (id {max(ids)}), "{self.name_of(role)}" has '
                f"{self.rows[is_teacher(role)]} rows",
                "take a model and its own tokenizer from the same folder, or remove the token "
                "from the problems or the chat template",
            )
        return ids

    def check_lengths(self, role: Role, prompts: Sequence[Ids], limits: Sequence[int]) -> None:
        """Raise a `PotstillError` if a completion may need a position that the model lacks."""
        window = self.windows[is_teacher(role)]
        sizes = [len(ids) + limit for ids, limit in zip(prompts, limits, strict=True)]
        if window.fixed and window.tokens and max(sizes, default=0) > window.tokens:
            raise window.error(self.name_of(role), max(map(len, prompts)), max(limits))

    @property
    def windows_by_role(self) -> dict[Role, Window]:
        """Positions of the student and of the teachers."""
        return dict(zip(("student", "teacher"), self.windows, strict=True))

    @property
    def two_renderings(self) -> bool:
        """True if the models read the same question in different words."""
        specs = self.student_spec, self.teacher_spec
        return len({repr((dict(spec.template), spec.date)) for spec in specs}) > 1

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
                eos=frozenset(
                    id for id in pair.eos | other.eos if id < min(pair.vocabulary, other.vocabulary)
                ),
                vocabulary=min(pair.vocabulary, other.vocabulary),
                rows=(pair.rows[0], min(pair.rows[1], other.rows[1])),
                windows=(pair.windows[0], pair.windows[1].narrower(other.windows[1])),
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
            teacher: hub name or folder; "" if the pair has none.
            student_spec: placement of the student.
            teacher_spec: placement of the teacher.
            cross: whether the tokenizers may differ.
        """
        if teacher:
            return cls._of_two(student, teacher, student_spec, teacher_spec, cross)
        pair = cls._of_two(student, student, student_spec, student_spec, cross=False)
        notes = (*pair.notes, "the pair has no teacher")
        return dataclasses.replace(pair, alone=True, notes=notes)

    @classmethod
    def _of_two(
        cls,
        student: str,
        teacher: str,
        student_spec: ModelSpec | None,
        teacher_spec: ModelSpec | None,
        cross: bool,
    ) -> ModelPair:
        """Read a student and a teacher, see `open`."""
        if student_spec and student_spec.dtype == "float16":
            raise PotstillError(
                "a student cannot train in float16: small gradients vanish without loss scaling",
                'use dtype = "bfloat16" or "float32" for the student; the teacher may use float16',
            )
        specs = resolve(student_spec or ModelSpec()), resolve(teacher_spec or ModelSpec())
        models = tuple(
            Checkpoint.find(name, spec.trust_remote_code)
            for name, spec in zip((student, teacher), specs, strict=True)
        )
        configs = [model.config for model in models]  # before the tokenizers: the kind of a model
        tok, teacher_tok = (model.tokenizer for model in models)
        rows = models[0].rows, models[1].rows
        difference = difference_of(tok, teacher_tok, min(rows))
        if difference and not cross:
            raise PotstillError(
                f'student and teacher must share a tokenizer: "{student}" and "{teacher}" differ '
                f"({difference})",
                "choose a student and a teacher of one model family",
            )
        notes = () if difference else one_template(tok, teacher_tok, specs[0])
        sampled = models[0].sampled_rows, models[1].sampled_rows
        vocabulary = sampled[0] if difference else min(sampled)
        ends = [
            ends_of(model, own, size)
            for model, own, size in zip(
                models,
                (tok, teacher_tok),
                rows if difference else (vocabulary, vocabulary),
                strict=True,
            )
        ]
        if rows[0] != rows[1] and not difference:
            notes += (f"heads of {rows[0]} and {rows[1]} rows truncated to {vocabulary}",)
        notes += tuple(
            f'"{model.name}" reads more than text ({model.whole_config.model_type}): its text '
            f"model ({model.config.model_type}) is used, and exported alone"
            for model in dict.fromkeys(models[: 1 + (student != teacher)])
            if model.text_part
        )
        notes += without_row(student, tok, vocabulary)
        if difference:
            notes += without_row(teacher, teacher_tok, rows[1])
        either = ends[0] if difference else ends[0] | ends[1]
        check_rendering(student, tok, either, specs[0])
        if difference:
            check_rendering(teacher, teacher_tok, ends[1], specs[1])
        else:
            check_rendering(teacher, tok, either, specs[1])
        notes += turn_note(tok, specs[0], either)
        roles = {"student": models[0], "teacher": models[1]}
        return cls(
            *(student, teacher, *specs, tok, either, vocabulary),
            notes + defaults_note(roles if student != teacher else {"model": models[0]}),
            teacher_tokenizer=teacher_tok if difference else None,
            teacher_eos=ends[1] if difference else frozenset(),
            teacher_vocabulary=sampled[1] if difference else 0,
            rows=rows,
            windows=(window_of(configs[0]), window_of(configs[1])),
            student_adapter=models[0].adapter,
        )


def without_adapters(model: Any) -> Any:
    """Return the transformers model inside a PEFT model; its layers still have the adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_model(
    name: str, spec: ModelSpec, *, trained: bool, share: bool = False, merged: bool = True
) -> Any:
    """Load a model for inference, or with `trained` in float32 and with gradients.

    Args:
        name: hub name or folder; an adapter is merged into its base.
        spec: placement.
        trained: float32 and gradients.
        share: leave the weights on the CPU, because each process moves only its shard.
        merged: false loads the base of an adapter alone.
    """
    checkpoint = Checkpoint.find(name, spec.trust_remote_code)
    dtype = torch.float32 if trained else getattr(torch, spec.dtype)
    check_method(checkpoint.base, checkpoint.whole_config)
    stored = weights.check_files(checkpoint.base)
    packed = placement(checkpoint.whole_config, spec.device)
    options: dict[str, Any] = {"device_map": spec.device_map} if spec.device_map else {**packed}
    if checkpoint.text_part:
        options |= {"config": checkpoint.config, "key_mapping": TEXT_PART}
    if spec.attention != "auto":
        options["attn_implementation"] = spec.attention
    try:
        model, report = read_pretrained(
            AutoModelForCausalLM,
            checkpoint.base,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=spec.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except PotstillError as error:
        raise weights.misfit(checkpoint.base, checkpoint.config, stored, error) from error
    weights.check_report(checkpoint.base, report)
    unread = report.get("unexpected_keys") or ()
    check_unread(checkpoint.base, model, unread, text_part=checkpoint.text_part)
    weights.check_integers(checkpoint.base, stored, packed=is_quantised(model))
    if checkpoint.text_part:
        model._weight_conversions = None  # else it is saved under the larger model's names
    if checkpoint.adapter and merged:  # merging into packed weights would round it away
        model = merge_adapter(in_floating_point(model, dtype), name)
    if not (spec.device_map or share or packed):
        model.to(spec.device)
    model.weight_notes = () if is_quantised(model) else weights.check_values(name, model)
    if getattr(model.config, "rescale_every", 0):  # RWKV would rescale its weights in place
        model.config.rescale_every = 0
    model.config.return_dict = True  # outputs by name, whatever the config says
    keep_layout(model)
    model.requires_grad_(trained and not is_quantised(model))
    return model.eval()  # no dropout: the sampling policy must be the trained policy
