"""Whether the teacher's longest prompt fits its window: asks the tokenizer and the config alone.

A prompt has at most as many tokens as bytes, so most tasks are let through without a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from potstill.errors import PotstillError
from potstill.tasks.context.builder import Briefing
from potstill.tasks.rendering import plain, render
from potstill.types import Problem

TEMPLATE = 256  # bytes that a chat template may add to a message


def check_window(
    briefing: Briefing,
    teacher: str,
    graded: Sequence[Problem],
    max_tokens: int,
    trust_remote_code: bool = False,
) -> None:
    """Refuse a context that leaves no room for a completion.

    Args:
        briefing: what the teacher reads.
        teacher: its folder or hub name.
        graded: the held-out problems that it answers, beside all training problems.
        max_tokens: most tokens of a completion.
        trust_remote_code: run code that comes with the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    from potstill.engines.torch.loading import read_pretrained

    trust = {"trust_remote_code": trust_remote_code}
    config = read_pretrained(AutoConfig, teacher, **trust).get_text_config()
    window = getattr(config, "max_position_embeddings", None)
    if window is None:
        return  # positions have no end
    problems = [*briefing.task.train, *graded]
    asked = {problem.id: briefing.tell(problem) for problem in problems}
    close = {
        name: said
        for name, said in asked.items()
        if len(plain(said).encode()) + TEMPLATE * (len(said) + 1) + max_tokens > window
    }
    if not close:
        return
    tokenizer = read_pretrained(AutoTokenizer, teacher, **trust)
    lengths = {name: len(render(tokenizer, said)) for name, said in close.items()}
    longest = max(lengths, key=lambda name: lengths[name])
    if lengths[longest] + max_tokens > window:
        raise PotstillError(
            f"a context fits the teacher's window: {longest} takes {lengths[longest]} tokens and "
            f"up to {max_tokens} of completion, {teacher} has {window}",
            "show fewer or shorter examples, documents or hints, or lower max_tokens",
        )
