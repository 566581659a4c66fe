"""An engine's student as a model of lm-evaluation-harness. Imported only where that is installed.

Requests are encoded as lm-eval's own model for transformers encodes them, so that its numbers are
comparable: no second copy of the student is loaded, and a quantised or adapted student is evaluated
as it is. Prompts that are too long lose tokens on the left, as there; `cut` counts them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from potstill.training.completing import RowGenerator
from potstill.types import Ids, Prompt, Truncation

GENERATED = 256  # tokens of a completion, where a task does not limit it
SAMPLER = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "min_p"}


class EngineModel(TemplateLM):
    """The student of an engine.

    Args:
        engine: has a tokenizer of transformers and full-vocabulary log-probs.
    """

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine
        self.tokenizer = self.engine.tokenizer
        self.window = self.engine.windows["student"].tokens
        self.cut = 0  # requests that lost tokens on the left

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        if add_special_tokens is None and string.startswith(
            self.tokenizer.decode(self.prefix_token_id)
        ):
            add_special_tokens = False  # as of a chat template, which writes it
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **chosen))

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = True, **options: Any
    ) -> list[tuple[float, bool]]:
        readings = []
        for _, context, continuation in requests:
            room = (self.window or len(context) + len(continuation)) - len(continuation)
            self.cut += len(context) > room
            readings.append((Prompt.of(tuple(context[-max(1, room) :])), tuple(continuation)))
        looks = self.engine.inspect("student", readings)
        return [
            (float(np.sum(look.logprobs, dtype=float)), bool((look.rank == 0).all()))
            for look in looks
        ]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        totals = []
        for (text,) in (request.args for request in requests):
            windows = map(
                utils.make_disjoint_window,
                utils.get_rolling_token_windows(
                    token_list=self.tok_encode(text),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.window or len(text) + 1,
                    context_len=1,
                ),
            )
            scored = self._loglikelihood_tokens([(None, *window) for window in windows])
            totals.append(sum(value for value, _ in scored))
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        groups: dict[str, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[repr(request.args[1])].append(i)
        texts: dict[int, str] = {}
        for rows in groups.values():
            chosen = [requests[i].args for i in rows]
            texts.update(zip(rows, self._generate(chosen, rows), strict=True))
        return [texts[i] for i in range(len(requests))]

    def _generate(self, requests: Sequence[Any], rows: Sequence[int]) -> list[str]:
        """Texts of requests with the same options; `rows` are their places among all."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(requests[0][1], GENERATED))
        if unknown := sorted(set(options) - SAMPLER):
            raise ValueError(f"generation_kwargs of a task has {unknown[0]}, which is not read")
        limit, temperature = int(options["max_gen_toks"]), 0.0
        if options.get("do_sample"):
            temperature = float(options.get("temperature") or 1.0)
        prompts: list[Ids] = [tuple(self.tok_encode(context)) for context, _ in requests]
        room = (self.window or max(map(len, prompts)) + limit) - limit
        if room < 1:
            raise ValueError(
                f"a task generates {limit} tokens, the student's window is {self.window}"
            )
        self.cut += sum(len(prompt) > room for prompt in prompts)
        truncation = Truncation(
            int(options.get("top_k") or 0),
            float(options.get("top_p") or 1.0),
            float(options.get("min_p") or 0.0),
        )
        rng = RowGenerator([("lm-eval", row) for row in rows], 0)
        samples = self.engine.sample(
            "student",
            [Prompt.of(prompt[-room:]) for prompt in prompts],
            [limit] * len(prompts),
            temperature,
            rng,
            **({"truncation": truncation} if temperature else {}),
        )
        return [
            postprocess_generated_text(self.engine.decode(sample.tokens), options["until"], None)
            for sample in samples
        ]
