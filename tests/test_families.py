"""Every family of causal language models: the engine's numbers are those of its own forward pass.

A few families are checked in seconds, all of them by `make test-all`.
`python tests/test_families.py` checks them all and prints the table of `docs/models.md`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

from families import FAMILIES, write_pair
from potstill.algorithms.recipe import Recipe
from potstill.engines.torch.decoding import fits
from potstill.engines.torch.engine import TorchEngine
from potstill.engines.torch.lm_head import PLAIN
from potstill.engines.torch.proved import sliced_head
from potstill.problems import Problem
from potstill.settings import TorchSettings
from potstill.training.objective import build
from potstill.training.rollout import collect
from potstill.types import Datum, Ids, Limits, ModelSpec, Prompt, Sample

QUICK = "llama", "gemma2", "gpt_neox", "mamba2", "qwen3_5_text"
DROPPING = "opt", "bloom", "starcoder2", "falcon"  # dropout outside of modules for it
PROMPTS: list[Ids] = [(5, 300, 77, 8, 121, 9), (41,), (200, 17, 33), (88, 6, 250, 4, 61, 90, 301)]
LIMITS = [7, 4, 9, 1]  # rows leave the batch one after another


def open_pair(folder: Path, dtype: str = "auto", **options: Any) -> TorchEngine:
    config = AutoConfig.from_pretrained(folder / "student")
    sdpa = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    spec = ModelSpec(dtype=dtype, attention="sdpa" if sdpa else "eager")
    settings = TorchSettings(threads=0, student=spec, teacher=spec)
    names = str(folder / "student"), str(folder / "teacher")
    return TorchEngine(*names, max_grad_norm=0.0, settings=settings, **options)


def load(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if hasattr(model.config, "rescale_every"):
        model.config.rescale_every = 0  # in-place changes of the weights
    return model


def sample(engine: TorchEngine, temperature: float = 1.0) -> list[Sample]:
    prompts = [Prompt.of(ids) for ids in PROMPTS]
    return engine.sample("student", prompts, LIMITS, temperature, np.random.default_rng(0))


def exact(engine: TorchEngine, prompt: Ids, completion: Ids) -> Any:
    logp = engine.rows("student", Prompt.of(prompt), completion)
    return logp[np.arange(len(completion)), list(completion)]


def distances(engine: TorchEngine) -> tuple[list[float], list[float]]:
    """Distances of sampled log-probs and scores from a forward pass of each row alone."""
    samples = sample(engine)
    rows = [(Prompt.of(ids), s.tokens) for ids, s in zip(PROMPTS, samples, strict=True)]
    wanted = [exact(engine, prompt.student, tokens) for prompt, tokens in rows]
    scores = engine.score("student", rows)
    sampled = [np.abs(s.logprobs - x).max() for s, x in zip(samples, wanted, strict=True)]
    scored = [np.abs(s - x).max() for s, x in zip(scores, wanted, strict=True)]
    return sampled, scored


def batch_of(engine: TorchEngine) -> list[Datum]:
    recipe = Recipe(name="all", on_policy=0.5, prefix=3, anchor=0.1)
    texts = ["Tom has 3", "7", "Ann has 12 pens, buys 5", "Eva"]
    problems = [Problem(str(i), text, "0") for i, text in enumerate(texts)]
    return build(recipe, collect(recipe, engine, problems, 0.0, 0, 0, Limits(7, 1.0, 1.0)), engine)


def one_pass(folder: Path) -> None:
    """Sampled log-probs, scores, and the forward pass of each row alone."""
    sampled, scored = distances(open_pair(folder))
    assert max(sampled) < 1e-4 and max(scored) < 1e-4, (sampled, scored)


def company(folder: Path) -> None:
    """A row's completion and numbers, alone and in a batch."""
    engine = open_pair(folder)
    together = sample(engine, 0.0)
    for ids, limit, row in zip(PROMPTS, LIMITS, together, strict=True):
        (alone,) = engine.sample(
            "student", [Prompt.of(ids)], [limit], 0.0, np.random.default_rng(0)
        )
        assert alone.tokens == row.tokens
        np.testing.assert_allclose(alone.logprobs, row.logprobs, atol=1e-4)
        (score,) = engine.score("student", [(Prompt.of(ids), row.tokens)])
        np.testing.assert_allclose(score, row.logprobs, atol=1e-4)


def greedy(folder: Path) -> None:
    """Greedy completions, and those of transformers' `generate`."""
    engine, model = open_pair(folder), load(folder / "student")
    for ids, limit, row in zip(PROMPTS, LIMITS, sample(engine, 0.0), strict=True):
        out = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(engine.eos),
            pad_token_id=0,
        )
        assert tuple(out[0, len(ids) :].tolist()) == row.tokens


def step(folder: Path) -> None:
    """Loss and gradient norm of a step, and those of a naive one without batches."""
    engine = open_pair(folder)
    data = batch_of(engine)
    models = {role: load(folder / role) for role in ("student", "teacher")}
    models["init"] = load(folder / "student")
    total = torch.zeros(())
    for datum in data:
        prompt = datum.prompt.student
        ids = torch.tensor([prompt + datum.completion])
        rows = {
            role: model(ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for role, model in models.items()
        }
        targets = torch.tensor(datum.completion)
        for term in datum.terms:
            p, weights = rows["student"], torch.from_numpy(term.weights)
            if term.loss.name == "cross_entropy":
                values = -p.gather(1, targets[:, None])[:, 0]
            else:
                values = term.loss.value(p, rows[term.loss.to].detach())
            total = total + (weights * values).sum()
    total.backward()
    grads = [p.grad for p in models["student"].parameters() if p.grad is not None]
    norm = torch.sqrt(sum((g**2).sum() for g in grads)).item()
    stats = engine.step(data, 0.01)
    assert stats.loss == pytest.approx(total.item(), rel=1e-4)
    assert stats.grad_norm == pytest.approx(norm, rel=1e-3)


def export(folder: Path, **settings: Any) -> None:
    """A trained and exported student, loaded by transformers alone."""
    engine = open_pair(folder, **settings)
    before = exact(engine, PROMPTS[0], PROMPTS[3])
    for _ in range(2):
        engine.step(batch_of(engine), 0.01)
    sampled, scored = distances(engine)
    assert max(sampled) < 2e-4 and max(scored) < 2e-4, (sampled, scored)
    wanted = exact(engine, PROMPTS[0], PROMPTS[3])
    assert np.abs(wanted - before).max() > 1e-3
    with tempfile.TemporaryDirectory() as place:
        engine.export(Path(place) / "out")
        model = load(Path(place) / "out")
        ids = torch.tensor([PROMPTS[0] + PROMPTS[3]])
        with torch.no_grad():
            logp = model(ids, use_cache=False).logits[0].log_softmax(-1)
    got = [logp[len(PROMPTS[0]) + i - 1, y].item() for i, y in enumerate(PROMPTS[3])]
    np.testing.assert_allclose(got, wanted, atol=2e-4)


def lora(folder: Path) -> None:
    """The same with adapters, merged in the export."""
    export(folder, lora_rank=2)


def recompute(folder: Path) -> None:
    """Gradient checkpointing, where the config asks for dropout: the numbers of a plain step."""
    with tempfile.TemporaryDirectory() as place:
        dropping = Path(shutil.copytree(folder, Path(place) / folder.name))
        file = dropping / "student" / "config.json"
        config = json.loads(file.read_text())
        defaults = AutoConfig.for_model(config["model_type"]).to_dict()
        shares = {k: 0.4 for k, v in defaults.items() if "drop" in k and type(v) in (int, float)}
        file.write_text(json.dumps(config | shares))
        for rank in (0, 2):
            plain = open_pair(dropping, lora_rank=rank)
            lean = open_pair(dropping, lora_rank=rank, gradient_checkpointing=True)
            data = batch_of(plain)
            wanted, got = plain.step(data, 0.01), lean.step(data, 0.01)
            assert got.loss == pytest.approx(wanted.loss, rel=1e-5)
            assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-4)
            assert distances(lean)[1] == pytest.approx(distances(plain)[1], abs=1e-4)


def bfloat16(folder: Path) -> None:
    """Sampled log-probs and scores in bfloat16, close to the forward pass in bfloat16."""
    full, half = open_pair(folder), open_pair(folder, "bfloat16")
    sampled, scored = distances(half)
    assert np.median(sampled) < 0.15 and np.median(scored) < 0.15, (sampled, scored)
    data = batch_of(full)
    assert half.measure(data).loss == pytest.approx(full.measure(data).loss, rel=0.05)


CHECKS: dict[str, Callable[[Path], None]] = {
    "one pass": one_pass,
    "batches": company,
    "greedy": greedy,
    "step": step,
    "export": export,
    "LoRA": lora,
    "recompute": recompute,
    "bfloat16": bfloat16,
}
# Checks that a family cannot pass, and why.
EXCEPT: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, written = tmp_path_factory.mktemp("families"), {}

    def pair(family: str) -> Path:
        if family not in written:
            written[family] = write_pair(root, family)
        return written[family]

    return pair


def cases() -> Iterator[Any]:
    for family in FAMILIES:
        for name in CHECKS:
            quick = family in QUICK or (name == "recompute" and family in DROPPING)
            marks = () if quick else (pytest.mark.slow,)
            if (family, name) not in EXCEPT:
                yield pytest.param(family, name, marks=marks, id=f"{family}-{name}")


@pytest.mark.filterwarnings("ignore")  # transformers' own, about kernels and masks
@pytest.mark.parametrize(("family", "name"), list(cases()))
def test_a_family(family: str, name: str, pairs: Callable[[str], Path]) -> None:
    CHECKS[name](pairs(family))


def way(folder: Path) -> list[str]:
    """The decoder and the head that the engine uses for a family."""
    engine = open_pair(folder)
    model, sharing = engine.models.held["student"], engine.models.sharing("student")
    decoder = "fast" if fits(model) else "the model's own"
    if not sharing.padded:
        decoder = "the model's own, prompts of one length"
    if not sharing.cached:
        decoder = "all tokens read again for each"
    return [type(model).__name__, decoder, "sliced" if sliced_head(model, PLAIN) else "whole"]


def table(families: Any = FAMILIES) -> Iterator[str]:
    yield f"| model | decoder | head | {' | '.join(CHECKS)} |"
    yield "|---|---|---|" + "---|" * len(CHECKS)
    for family in families:
        with tempfile.TemporaryDirectory() as place:
            folder, marks = write_pair(Path(place), family), []
            for name, check in CHECKS.items():
                try:
                    check(folder)
                    marks.append("yes")
                except Exception as error:
                    marks.append(EXCEPT.get((family, name)) or f"FAILED {str(error)[:300]!r}")
            try:
                line = (*way(folder), *marks)
            except Exception as error:
                line = (family, str(error), *marks)
            yield f"| {' | '.join(line)} |"


if __name__ == "__main__":
    import sys
    import warnings

    import transformers

    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    for line in table(sys.argv[1:] or FAMILIES):
        print(line, flush=True)
