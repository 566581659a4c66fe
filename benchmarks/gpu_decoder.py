"""The fast decoder against transformers' own forward pass, in numbers and in tokens a second.

Both read the same tokens (those that the plain decoder finds likeliest), so that one tie does not
send them apart. In bfloat16 both are off from float32; the fast decoder may not be further off than
the plain one by more than half. Another likeliest token counts as a tie if the plain decoder gives
both log-probs that differ by less than twice the largest distance between the decoders.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_models as models
from benchmarks.beside import spread
from benchmarks.gpu_section import Section
from potstill.engines.torch.adapters import add_lora
from potstill.engines.torch.decoding import Fast, Plain, fits
from potstill.settings import Lora

EXACT = 2e-3  # largest distance of log-probs in float32, as a share of their spread
WORSE = 1.5  # times that the fast decoder's error in bfloat16 may be the plain one's
REPEATS = 3


def run(section: Section) -> None:
    shapes = (models.SMALL, models.MIDDLE, models.LARGE, models.LARGEST)
    section.text(
        "Prompts of several lengths, padded on the left. `distance` is the largest one between the "
        "decoders' log-probs of the likeliest tokens, in nats. `error` is the distance from the "
        "plain decoder in float32, over all tokens of the vocabulary. The engine takes the fast "
        "decoder only for models that it may copy, so the last column shows its own choice."
    )
    same = section.table(
        "",
        ["model", "dtype", "tokens", "same", "ties", "distance", "error, fast : plain", "engine"],
    )
    section.text(
        "Greedy decoding after prompts of one length, in bfloat16; the decoders take turns, and "
        "ranges are over repeats."
    )
    speeds = section.table(
        "", ["model", "rows", "plain, tokens/s", "fast, tokens/s", "fast : plain"]
    )
    least = 0.0 if section.tiny else 12.0
    for shape in models.fitting(section, shapes, 4.0):
        for name, work, rows in (("numbers", numbers, same), ("speed", speed, speeds)):
            with section.part(f"{shape.name}: {name}", least) as go:
                if go:
                    work(section, shape, rows)
            models.clear()


def numbers(section: Section, shape: models.Shape, rows: Any) -> None:
    """Compare the decoders in float32, in bfloat16 weights, under autocast, and with adapters."""
    device, steps = section.device, 6 if section.tiny else 24
    model = models.build(shape, device, torch.float32)
    tokens, exact = follow(Plain, model, device, steps)
    _, fast = follow(Fast, model, device, steps, tokens)
    spreading = float(exact.std(-1).mean())
    row = compared(exact, fast)
    rows.row(shape.name, "float32", *row, "", choice(model))
    if not row[3] < EXACT * spreading:
        section.fail(f"{shape.name}, float32", f"log-probs differ by {row[3]:.2g}")
    with torch.autocast(device, dtype=torch.bfloat16):
        half(section, shape, "bfloat16 (autocast)", model, tokens, exact, rows)
    half(section, shape, "bfloat16", model.to(torch.bfloat16), tokens, None, rows)
    torch.manual_seed(1)
    adapted = add_lora(model, Lora(rank=4)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, 0.0, 0.02)
    with torch.autocast(device, dtype=torch.bfloat16):
        half(section, shape, "bfloat16, LoRA", adapted, tokens, None, rows)


def half(
    section: Section,
    shape: models.Shape,
    name: str,
    model: Any,
    tokens: Tensor,
    exact: Tensor | None,
    rows: Any,
) -> None:
    """Compare the decoders in bfloat16; without `exact`, with a float32 copy of the weights."""
    device, steps = section.device, tokens.shape[1]
    _, plain = follow(Plain, model, device, steps, tokens)
    _, fast = follow(Fast, model, device, steps, tokens)
    chosen = choice(model)
    if exact is None:
        whole = float32_copy(model)
        with torch.autocast(device, enabled=False):
            _, exact = follow(Plain, whole, device, steps, tokens)
        del whole
    errors = [float((each - exact).norm()) for each in (fast, plain)]
    row = compared(plain, fast)
    rows.row(shape.name, name, *row, errors[0] / max(errors[1], 1e-9), chosen)
    if not errors[0] <= WORSE * errors[1]:
        section.fail(f"{shape.name}, {name}", f"errors {errors[0]:.3g} and {errors[1]:.3g}")
    if row[1] + row[2] < 1:
        section.fail(f"{shape.name}, {name}", f"{1 - row[1] - row[2]:.1%} of tokens differ, no tie")


def float32_copy(model: Any) -> Any:
    """The same weights in float32."""
    return copy.deepcopy(model).float()


@torch.inference_mode()
def follow(
    kind: Any, model: Any, device: str, steps: int, given: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Decode a few padded rows.

    Args:
        kind: the decoder's class.
        model: its model.
        device: of the model.
        steps: number of tokens.
        given: (B, steps) tokens to read; default: the likeliest ones.

    Returns:
        The tokens (B, steps) and log-probs (B, steps, V) in float32.
    """
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (5, 19), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 0, 18, 7)):
        mask[row, :padding] = 0
    decoder = kind(model, ids.to(device), mask.to(device), steps)
    tokens, values = [], []
    for step in range(steps):
        logp = decoder.logits.float().log_softmax(-1)
        values.append(logp)
        tokens.append(logp.argmax(-1) if given is None else given[:, step])
        if step + 1 < steps:
            decoder.step(tokens[-1])
    return torch.stack(tokens, 1), torch.stack(values, 1)


def compared(plain: Tensor, fast: Tensor) -> tuple[int, float, float, float]:
    """Number of tokens, shares that are the same and tied, largest distance of a likeliest one."""
    first, second = plain.argmax(-1, keepdim=True), fast.argmax(-1, keepdim=True)
    both = torch.cat((first, second), -1)
    apart = (plain.gather(-1, both) - fast.gather(-1, both)).abs().max(-1)[0]
    gap = (plain.gather(-1, first) - plain.gather(-1, second))[..., 0]
    same, most = (first == second)[..., 0], float(apart.max())
    tied = ~same & (gap <= 2 * most)
    return same.numel(), float(same.float().mean()), float(tied.float().mean()), most


def choice(model: Any) -> str:
    """The decoder that the engine takes."""
    return "fast" if fits(model) else "plain"


@torch.inference_mode()
def speed(section: Section, shape: models.Shape, rows: Any) -> None:
    """Tokens a second of both decoders in turns, at several numbers of rows."""
    device = section.device
    prompt, added = (8, 6) if section.tiny else (64, 32)
    model = models.build(shape, device, torch.bfloat16)
    for count in (1, 4) if section.tiny else (1, 16, 128):
        if section.left() < 10 and not section.tiny:
            section.skip(f"{shape.name}, {count} rows and more", "too little time was left")
            return
        rates: dict[Any, list[float]] = {Plain: [], Fast: []}
        for turn in range(REPEATS + 1):
            for kind, found in rates.items():
                ids = torch.randint(3, shape.vocabulary, (count, prompt), device=device)
                decoder = kind(model, ids, torch.ones_like(ids), added)
                models.synchronise(device)
                start = time.perf_counter()
                for _ in range(added):
                    decoder.step(decoder.logits.argmax(-1))
                models.synchronise(device)
                if turn:  # the first allocates
                    found.append(count * added / (time.perf_counter() - start))
                del decoder
        ratios = [fast / plain for plain, fast in zip(*rates.values(), strict=True)]
        plain, fast = (statistics.median(found) for found in rates.values())
        rows.row(shape.name, count, plain, fast, spread(ratios))
