"""Operations: held against torch's own counter, by hand for LoRA, and kept over a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import prompt_of
from potstill.algorithms.losses import CROSS_ENTROPY, REVERSE_KL
from potstill.engines.fake import FakeEngine
from potstill.engines.flops import Machine, Size
from potstill.engines.registry import open_engine
from potstill.settings import TorchSettings
from potstill.training.metering import Metered, Usage
from potstill.training.spending import Spent, total
from potstill.types import Datum, ModelSpec, Prompt, Term


@pytest.mark.parametrize("pair", ["tiny-qwen", "tiny-llama"])
def test_a_forward_and_a_backward_pass_are_what_torch_counts(pair: str) -> None:
    """Torch counts matrix products, and the whole square of scores where half is masked."""
    from torch.utils.flop_counter import FlopCounterMode

    engine = open_engine(
        "torch", pair, settings=TorchSettings(student=ModelSpec(attention="eager"))
    )
    size, n, c = engine.size("student"), 40, 20
    row = (Prompt.of(tuple(range(5, 5 + n - c))), tuple(range(5, 5 + c)))
    masked = size.mixing * n * n / 2  # the other half
    with FlopCounterMode(display=False) as counter:
        engine.score("student", [row])
    assert counter.get_total_flops() == pytest.approx(size.forward([(n - c, c)]) + masked, rel=0.02)
    term = Term(CROSS_ENTROPY, np.full(c, 1 / c, np.float32))
    datum = Datum(*row, row[1], (term,), "teacher", np.zeros(c, np.float32))
    with FlopCounterMode(display=False) as counter:
        engine.step([datum], 0.0)
    assert counter.get_total_flops() == pytest.approx(
        size.training([(n - c, c)]) + 3 * masked, rel=0.1
    )


def test_operations_by_hand() -> None:
    """Two rows of four tokens: eight are read, three have the head, each attends to two of four."""
    size, rows = Size(body=100, head=10, width=4, keys=0, mixing=8), [(3, 1), (2, 2)]
    weights, attention = 2 * 100 * 8 + 2 * 10 * 3, 8 * 2 * 4 * 2
    assert size.forward(iter(rows)) == weights + attention
    assert size.training(iter(rows)) == 3 * weights + 3 * attention
    assert replace(size, frozen=True).training(iter(rows)) == 2 * weights + 3 * attention
    assert size.forward([]) == size.training([]) == 0.0


def test_the_slower_of_computing_and_reading_decides() -> None:
    machine = Machine(bandwidth=10.0, matmul=100.0)
    assert [machine.seconds(500, 20), machine.seconds(500, 80), machine.seconds(500)] == [5, 8, 5]
    assert machine.seconds(0) == 0


def test_frozen_weights_get_no_gradient() -> None:
    full = Size(body=100, head=10, width=4, keys=0, mixing=0)
    lora = Size(body=100, head=10, width=4, keys=0, mixing=0, frozen=True)
    rows = [(0, 7)]
    assert full.training(rows) == 6 * 110 * 7 and lora.training(rows) == 4 * 110 * 7
    assert open_engine("torch", "tiny-llama", lora_rank=4).size("student").frozen


def test_attention_has_a_whole_backward_pass_without_weights_to_train() -> None:
    """Torch's count of a long row through adapters of rank 1, with much attention."""
    from torch.utils.flop_counter import FlopCounterMode

    plain = TorchSettings(student=ModelSpec(attention="eager"))
    engine = open_engine("torch", "tiny-llama", lora_rank=1, settings=plain)
    size, n, c = engine.size("student"), 900, 20
    row = (Prompt.of(tuple(5 + i % 90 for i in range(n - c))), tuple(range(5, 5 + c)))
    term = Term(CROSS_ENTROPY, np.full(c, 1 / c, np.float32))
    datum = Datum(*row, row[1], (term,), "teacher", np.zeros(c, np.float32))
    with FlopCounterMode(display=False) as counter:
        engine.step([datum], 0.0)
    masked = 3 * size.mixing * n * n / 2
    assert masked > 0.3 * size.training([(n - c, c)])
    assert counter.get_total_flops() == pytest.approx(
        size.training([(n - c, c)]) + masked, rel=0.03
    )


def test_a_meter_counts_each_kind_and_goes_on_after_a_restart() -> None:
    engine = open_engine("torch", "tiny-llama")
    usage = Usage(engine)
    meter = Metered(engine, usage)
    rng = np.random.default_rng(0)
    prompts = [prompt_of(meter, "12 + 3"), prompt_of(meter, "4")]
    samples = meter.sample("student", prompts, [5, 5], 1.0, rng)
    rows = [(len(p.student), len(s.tokens)) for p, s in zip(prompts, samples, strict=True)]
    sizes = {role: meter.size(role) for role in ("student", "teacher")}
    data = []
    for prompt, sample in zip(prompts, samples, strict=True):
        term = Term(REVERSE_KL, np.full(len(sample.tokens), 0.1, np.float32))
        data.append(
            Datum(prompt, sample.tokens, sample.tokens, (term,), "student", sample.logprobs)
        )
    meter.step(data, 0.0)
    state = usage.state()
    assert state["flops"] == {
        "student_sampled": pytest.approx(sizes["student"].forward(rows)),
        "trained": pytest.approx(sizes["student"].training(rows)),
        "teacher_scored": pytest.approx(sizes["teacher"].forward(rows)),
    }
    meter.score("student", [(prompt, (5, 6)) for prompt in prompts])
    meter.inspect("teacher", [(prompt, (5, 6)) for prompt in prompts])
    read = [(n, 2) for n, _ in rows]
    scored = usage.state()["flops"]
    assert scored["student_scored"] == pytest.approx(sizes["student"].forward(read))
    assert scored["teacher_scored"] - state["flops"]["teacher_scored"] == pytest.approx(
        sizes["teacher"].forward(read)
    )
    again = Usage(engine)
    again.recall(state)
    assert again.state()["flops"] == state["flops"]
    Metered(engine, again, "evaluation").sample("student", prompts, [5, 5], 0.0, rng)
    assert again.state()["flops"]["graded"] > 0


def test_what_is_unknown_is_not_nothing(tmp_path: Path) -> None:
    usage = Usage(FakeEngine())
    usage.work("trained", "student", [(1, 2)])
    assert usage.flops == {}
    record = {"seconds": 1.0, "tokens": {"trained": 2}, "flops": usage.flops}
    assert Spent.read(record).flops is None and Spent.read({}).flops == 0.0
    known = Spent.read({**record, "flops": {"trained": 3.0, "graded": 4.0}})
    assert known.flops == 7.0 and (known * 2).flops == 14.0
    assert total([known, known]).flops == 14.0
    assert total([known, Spent.read(record)]).flops is None
    assert Spent.read({"seconds": 1.0, "tokens": {"trained": 2}}).flops is None  # an older record
