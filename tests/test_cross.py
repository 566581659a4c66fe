"""A student and a teacher of two tokenizers: brute force on toy vocabularies, the engine against
plain models, every method, resuming, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import monitored
from potstill.algorithms.losses import GOLD, JSD, REVERSE_KL_SAMPLED, loss, loss_to_toml, over_spans
from potstill.algorithms.losses.gold import uld
from potstill.algorithms.methods import METHODS
from potstill.algorithms.recipe import Recipe
from potstill.cli import main
from potstill.engines import zoo
from potstill.engines.cross_tokenizer.alignment import (
    align,
    match_tokens,
    span_numbers,
    spread_scores,
)
from potstill.engines.cross_tokenizer.engine import CrossEngine, TwoTokenizers
from potstill.engines.protocol import bare
from potstill.engines.registry import open_engine
from potstill.engines.torch.engine import TorchEngine
from potstill.errors import PotstillError
from potstill.settings import Eval, Train
from potstill.study.loading import read_study
from potstill.study.run import preflight_pair
from potstill.tasks import load_task
from potstill.training.evaluation import evaluate
from potstill.training.objective import build
from potstill.training.recorder import Memory
from potstill.training.rollout import collect
from potstill.types import Datum, Limits, Prompt, Term, Trajectory

SAMPLED = "reverse_kl_sampled"
TASK = load_task("arithmetic")
Table = dict[bytes, torch.Tensor]


class Toy:
    """A student over a few byte strings and a teacher over others; texts of a few bytes."""

    def __init__(self, mine: list[bytes], its: list[bytes], size: int) -> None:
        torch.manual_seed(len(mine) + 7 * len(its))
        self.mine, self.its, self.size = mine, its, size
        starts = [bytes(x) for n in range(size + 1) for x in itertools.product(b"ab", repeat=n)]
        self.p: Table = {s: torch.randn(len(mine)).double().requires_grad_() for s in starts}
        self.q: Table = {s: torch.randn(len(its)).double() for s in starts}

    @staticmethod
    def logs(table: Table, tokens: list[bytes], text: bytes, y: bytes, t: float) -> torch.Tensor:
        return (table[text] / t).log_softmax(-1)[tokens.index(y)]

    def score(
        self, table: Table, tokens: list[bytes], ids: list[bytes], t: float = 1.0
    ) -> list[torch.Tensor]:
        return [self.logs(table, tokens, b"".join(ids[:i]), y, t) for i, y in enumerate(ids)]

    def texts(self, begun: tuple[bytes, ...] = ()) -> Iterator[list[bytes]]:
        """Everything that the student can write: its tokens until there are enough bytes."""
        if len(b"".join(begun)) >= self.size:
            yield list(begun)
            return
        for token in self.mine:
            yield from self.texts((*begun, token))

    def read(self, text: bytes) -> list[bytes]:
        """The teacher's tokens: its longest one at every place."""
        ids = []
        while text:
            ids.append(max((t for t in self.its if text.startswith(t)), key=len))
            text = text[len(ids[-1]) :]
        return ids


TOYS = {
    "teacher's tokens are longer": ([b"a", b"b"], [b"aa", b"ab", b"ba", b"bb"], 4),
    "student's tokens are longer": ([b"aa", b"ab", b"ba", b"bb"], [b"a", b"b"], 4),
    "three for two": (
        [b"aa", b"ab", b"ba", b"bb"],
        [bytes(x) for x in itertools.product(b"ab", repeat=3)],
        6,
    ),
    "tokens of both lengths": ([b"a", b"b", b"ab"], [b"a", b"b"], 3),
    "the same tokens": ([b"a", b"b"], [b"a", b"b"], 3),
}


def expected(toy: Toy) -> torch.Tensor:
    """Sum over spans of KL(p, q) at the places that the student gets to, by enumeration; the places
    are held fixed, so that autograd gives the gradient of the divergences alone."""
    total = torch.zeros((), dtype=torch.double)
    seen: set[tuple] = set()
    for ids in toy.texts():
        its = toy.read(b"".join(ids))
        for span in align(ids, its):
            start, action = tuple(ids[: span.student.start]), tuple(ids[span.student])
            if (start, action) in seen:
                continue
            seen.add((start, action))
            reach = sum(toy.score(toy.p, toy.mine, list(start)), torch.zeros(())).exp().detach()
            logp = sum(toy.score(toy.p, toy.mine, ids[: span.student.stop])[span.student.start :])
            logq = sum(toy.score(toy.q, toy.its, its[: span.teacher.stop])[span.teacher.start :])
            total = total + reach * logp.exp() * (logp - logq)
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("name", TOYS)
def test_credit_gives_the_gradient_of_the_divergence_over_spans(
    name: str, temperature: float
) -> None:
    """Expectation of the sampled loss over all texts that a sampler writes, its gradient by
    autograd, both enumerated. The sampler has a temperature inside of a span, and reaches each
    span's start as the student does, because the states visited are the sampler's."""
    toy = Toy(*TOYS[name])
    exact = expected(toy)
    sampled, counted, mass = torch.zeros(()).double(), 0.0, 0.0
    for ids in toy.texts():
        its = toy.read(b"".join(ids))
        spans = align(ids, its)
        logp = torch.stack(toy.score(toy.p, toy.mine, ids))
        scores = torch.stack(toy.score(toy.q, toy.its, its)).numpy()
        now = logp.detach()
        shared = torch.from_numpy(spread_scores(spans, scores, len(ids))).double()
        drawn = torch.stack(toy.score(toy.p, toy.mine, ids, temperature)).detach()
        numbers = torch.from_numpy(span_numbers(spans, len(ids)))
        sampler, then, found = (over_spans(x, now, numbers) for x in (drawn, now, shared))
        values = REVERSE_KL_SAMPLED.value(logp, sampler, found, then)
        mass += now.sum().exp().item()
        for span in spans:
            place = span.student  # reached by p, drawn by the sampler, and what follows by p
            chance = (now.sum() - now[place].sum() + drawn[place].sum()).exp()
            sampled = sampled + chance * values[place].sum()
            counted += chance.item() * values[place].mean().item()  # a span's divergence, once
    assert mass == pytest.approx(1.0)
    assert counted == pytest.approx(exact.item(), abs=1e-5)
    leaves = list(toy.p.values())
    wanted = torch.autograd.grad(exact, leaves, allow_unused=True)
    for got, want in zip(
        torch.autograd.grad(sampled, leaves, allow_unused=True), wanted, strict=True
    ):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert any(want is not None and want.abs().max() > 1e-2 for want in wanted)


def test_uld_is_the_least_distance_over_all_pairings() -> None:
    torch.manual_seed(0)
    logp = torch.randn(4).double().log_softmax(-1)
    logq = torch.randn(5).double().log_softmax(-1)
    p, q = [*logp.exp().tolist(), 0.0], logq.exp().tolist()
    least = min(
        sum(abs(x - y) for x, y in zip(p, other, strict=True))
        for other in itertools.permutations(q)
    )
    assert uld(logp, logq).item() == pytest.approx(least)
    assert uld(logq, logp).item() == pytest.approx(least)
    assert uld(logp, logp.flip(-1)).item() == pytest.approx(0.0)  # it knows no identities


def written_out(
    p: list[float], q: list[float], shared: list[tuple[int, int]], beta: float
) -> float:
    """The hybrid in plain Python."""
    a, b = [p[i] for i, _ in shared], [q[j] for _, j in shared]
    rest_p = [x for i, x in enumerate(p) if i not in [i for i, _ in shared]]
    rest_q = [x for j, x in enumerate(q) if j not in [j for _, j in shared]]
    rows = [
        torch.tensor([*kept, max(sum(rest), 1e-30)], dtype=torch.double).log()
        for kept, rest in ((a, rest_p), (b, rest_q))
    ]
    size = max(len(rest_p), len(rest_q))
    falling = [sorted(r, reverse=True) + [0.0] * (size - len(r)) for r in (rest_p, rest_q)]
    return JSD(beta).value(*rows).item() + sum(abs(x - y) for x, y in zip(*falling, strict=True))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shared", [[(0, 1), (2, 0)], [(0, 0), (1, 2), (2, 3), (3, 4)], [(1, 1)]])
def test_gold_by_value_and_by_gradient(beta: float, shared: list[tuple[int, int]]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(4).double()
    logq = torch.randn(6).double().log_softmax(-1)
    ids = torch.tensor(shared)

    def value(x: torch.Tensor) -> float:
        p = x.log_softmax(-1).exp().tolist()
        return written_out(p, logq.exp().tolist(), shared, beta)

    leaf = logits.clone().requires_grad_()
    got = GOLD(beta).value(leaf.log_softmax(-1), logq, ids)
    assert got.item() == pytest.approx(value(logits), abs=1e-5)
    (slope,) = torch.autograd.grad(got, leaf)
    for i in range(4):
        step = torch.zeros(4).double()
        step[i] = 1e-6
        want = (value(logits + step) - value(logits - step)) / 2e-6
        assert slope[i].item() == pytest.approx(want, abs=1e-5)
    batch = GOLD(beta).value(logits.log_softmax(-1).expand(3, 4), logq.expand(3, 6), ids)
    torch.testing.assert_close(batch, got.detach().expand(3))


def test_gold_is_nought_for_equal_rows_and_reads_as_a_loss() -> None:
    logp = torch.randn(5).log_softmax(-1)
    shared = torch.tensor([[0, 0], [3, 3]])
    assert GOLD(0.5).value(logp, logp, shared).item() == pytest.approx(0.0)
    assert loss({"gold": 0.5}) == GOLD(0.5) == loss(loss_to_toml(GOLD(0.5)))
    for wrong in ("gold", {"gold": 1.5}):
        with pytest.raises(PotstillError, match="beta in") as caught:
            loss(wrong)
        assert "gold = 0.5" in caught.value.hint


@pytest.fixture(scope="module")
def engine() -> CrossEngine:
    """Its weights are never changed."""
    opened = open_engine("torch", "tiny-cross", threads=1)
    assert isinstance(opened, CrossEngine) and bare(opened) is opened
    return opened


def batch_of(engine: CrossEngine, recipe: Recipe, count: int = 6) -> list[Trajectory]:
    return collect(recipe, engine, TASK.train[:count], 0.0, 0, 0, Limits(32, 1.0, 1.0))


def naive(data: list[Datum], shared: np.ndarray) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a step from two plain models and their tokenizers, row by row."""
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(zoo.folder("tiny-cross", role), dtype=torch.float32)
        for role in ("student", "teacher")
    )
    tok, its_tok = (
        AutoTokenizer.from_pretrained(zoo.folder("tiny-cross", role))
        for role in ("student", "teacher")
    )
    questions = {tuple(tok(p.question + "\n").input_ids): p.question for p in TASK.train[:50]}
    spell = {id: token.replace("▁", " ").encode() for token, id in tok.get_vocab().items()}
    total, gold_total, gold_count = torch.zeros(()), torch.zeros(()), 0
    for datum in data:
        text = tok.decode(datum.completion, skip_special_tokens=True)
        chat = [{"role": "user", "content": questions[datum.prompt.student]}]
        asked = its_tok.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        lead = its_tok(asked, add_special_tokens=False).input_ids
        ended = datum.completion[-1] == tok.eos_token_id
        its = its_tok(text, add_special_tokens=False).input_ids
        its += [its_tok.eos_token_id] * ended
        rows = []
        own = datum.prompt.student
        for model, prompt, ids in ((student, own, datum.completion), (teacher, lead, its)):
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0]
            rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
        p, q = rows[0], rows[1].detach()
        body = datum.completion[: len(datum.completion) - ended]
        mine = [spell[y] for y in body]
        mine[:1] = [mine[0].lstrip(b" ")]  # the space that the tokenizer adds to a text
        theirs = [its_tok.decode([y]).encode() for y in its[: len(its) - ended]]
        spans = align([*mine, *[b"E"] * ended], [*theirs, *[b"E"] * ended])
        assert all(span.aligned for span in spans)
        y = torch.tensor(datum.completion)
        logp = p.gather(1, y[:, None])[:, 0]
        weights = torch.from_numpy(datum.terms[0].weights)
        for span in spans:
            if datum.terms[0].loss.name == SAMPLED:
                right = q.gather(1, torch.tensor(its)[:, None])[span.teacher].sum()
                sampler = torch.from_numpy(datum.logprobs)[span.student]
                ratio = (logp[span.student] - sampler).exp()
                total = total - (weights[span.student] * ratio).sum() * (right - sampler.sum())
            elif datum.terms[0].loss.name == "gold" and span.single and span.student.start:
                at = weights[span.student].gt(0).item()
                pairs = torch.from_numpy(shared)
                gold_total = (
                    gold_total + at * GOLD(0.5).value(p[span.student], q[span.teacher], pairs).sum()
                )
                gold_count += at
        if datum.terms[0].loss.name == "cross_entropy":
            total = total - (weights * logp).sum()
    share = sum(float(d.terms[0].weights.sum()) for d in data if d.terms[0].loss.name == "gold")
    if gold_count:
        total = total + share * gold_total / gold_count
    total.backward()
    return total.item(), {n: p.grad for n, p in student.named_parameters()}


@pytest.mark.parametrize("name", [SAMPLED, {"gold": 0.5}])
def test_a_step_is_that_of_two_plain_models(name: object, engine: CrossEngine) -> None:
    recipe = Recipe(name="x", on_policy=0.5, prefix=5, student_loss=name)
    data = build(recipe, batch_of(engine, recipe), engine)
    want, gradients = naive(data, engine.shared)
    fresh = open_engine("torch", "tiny-cross", max_grad_norm=0.0, batch_tokens=150, threads=1)
    before = {n: p.detach().clone() for n, p in fresh.engine.models.trained.items()}
    assert fresh.measure(data).loss == pytest.approx(want, rel=1e-3, abs=1e-4)
    stats = fresh.step(data, 0.01)
    assert stats.loss == pytest.approx(want, rel=1e-3, abs=1e-4)
    norm = torch.sqrt(sum((g**2).sum() for g in gradients.values())).item()
    assert stats.grad_norm == pytest.approx(norm, rel=1e-3)
    for key, old in before.items():  # Adam's first step moves by the gradient's sign
        large = gradients[key].abs() > 1e-3
        moved = (fresh.engine.models.trained[key] - old)[large]
        assert torch.allclose(moved, -0.01 * gradients[key][large].sign(), rtol=1e-2)


def test_what_the_teacher_writes_comes_as_the_students_tokens(engine: CrossEngine) -> None:
    recipe = Recipe(name="x", on_policy=0.0)
    batch = batch_of(engine, recipe, 16)
    assert all(t.completion[-1] in engine.eos for t in batch)
    for t in batch:
        text = engine.student_tokens.decode(t.completion)
        assert (*engine.student_tokens.encode(text), engine.student_tokens.eos_id) == t.completion
        (_, ids), spans = engine.teacher_reading(t.prompt, t.completion)
        assert ids[-1] == engine.teacher_tokens.eos_id and engine.teacher_tokens.decode(ids) == text
        assert spans[-1].single
        score = engine.score("teacher", [(t.prompt, t.completion)])[0]
        np.testing.assert_allclose(score, t.logprobs, atol=1e-4)  # it samples what it scores
    read = [engine.teacher_reading(t.prompt, t.completion)[0] for t in batch]
    inner = engine.engine.score("teacher", [(Prompt.of(lead), ids) for lead, ids in read])
    for t, scores in zip(batch, inner, strict=True):
        assert t.logprobs.sum() == pytest.approx(scores.sum(), abs=1e-4)
    assert evaluate(engine, "teacher", TASK, TASK.test[:40], 32).strict >= 0.9


def test_limits_count_the_students_tokens(engine: CrossEngine) -> None:
    prompts = [engine.prompt(p) for p in TASK.train[:12]]
    whole = engine.sample("teacher", prompts, [40] * 12, 0.0, np.random.default_rng(0))
    for limit in (0, 1, 5, 9, 22):
        cut = engine.sample("teacher", prompts, [limit] * 12, 0.0, np.random.default_rng(0))
        for short, long in zip(cut, whole, strict=True):
            assert short.tokens == long.tokens[:limit]
            assert len(short.logprobs) == len(short.tokens)
    (mixed,) = engine.sample("teacher", prompts[:1], [4], 1.0, np.random.default_rng(3))
    (again,) = engine.sample("teacher", prompts[:1], [4], 1.0, np.random.default_rng(3))
    assert mixed.tokens == again.tokens


def test_seeded_prefixes_end_between_characters(engine: CrossEngine) -> None:
    """A text that the teacher did write, in tokens that split its characters."""
    ids = engine.teacher_tokens.encode("é🚀好".encode())
    scores = np.full(len(ids), -1.0, np.float32)
    ends = set()
    for limit in range(len(ids) + 4):
        sample = engine._to_student(ids, scores, limit)
        engine.student_tokens.decode(sample.tokens).decode()
        assert len(sample.tokens) == len(sample.logprobs) <= limit
        ends.add(len(sample.tokens))
    assert ends == {0, 1, 3, 7, 10}  # the space that is no text, one, two, three characters


def test_broken_characters_are_read_by_the_teacher(engine: CrossEngine) -> None:
    prompt = engine.prompt(TASK.train[0])
    for text in (b"", b"\xf0\x9f", b"7\xff8", b"\xe5\xa5\xbd"):
        completion = (*engine.student_tokens.encode(text), engine.student_tokens.eos_id)
        (_, ids), spans = engine.teacher_reading(prompt, completion)
        assert engine.teacher_tokens.decode(ids) == text
        (scores,) = engine.score("teacher", [(prompt, completion)])
        lead, ids = engine.teacher_reading(prompt, completion)[0]
        (its,) = engine.engine.score("teacher", [(Prompt.of(lead), ids)])
        assert scores.sum() == pytest.approx(its.sum(), abs=1e-3)
        assert match_tokens(spans, len(completion))[-1] == len(ids) - 1
    assert [len(s) for s in engine.score("teacher", [(prompt, ())])] == [0]


def test_special_tokens_carry_no_advantage(engine: CrossEngine) -> None:
    prompt = engine.prompt(TASK.train[0])
    bos = engine.engine.tokenizer.bos_token_id
    completion = (
        *engine.student_tokens.encode(b"12"),
        bos,
        *engine.student_tokens.encode(b"3")[1:],
        engine.student_tokens.eos_id,
    )
    datum = build_one(engine, prompt, completion)
    (found,) = engine.translate([datum])
    assert found.match is not None
    (outside,) = np.flatnonzero(found.match.spans < 0)
    assert outside == completion.index(bos)
    only = np.float32(np.arange(len(completion)) == outside)
    alone = dataclasses.replace(datum, terms=(Term(REVERSE_KL_SAMPLED, only),))
    assert engine.measure([alone]).loss == 0 != engine.measure([datum]).loss
    assert bos not in found.views["teacher"][1]


def build_one(engine: CrossEngine, prompt: Prompt, completion: tuple) -> Datum:
    (scores,) = engine.score("student", [(prompt, completion)])
    t = Trajectory(prompt, completion, scores - np.float32(0.5), "student")
    (datum,) = build(Recipe(name="x", student_loss=SAMPLED), [t], engine)
    return datum


def test_a_prompt_has_each_models_own_template(engine: CrossEngine) -> None:
    problem = TASK.train[7]
    prompt = engine.prompt(problem)
    assert prompt.student == engine.encode(problem.question)
    assert prompt.foreign == engine.encode(problem.question, "teacher") != prompt.student
    head = engine.student_tokens.encode(b"12+")
    (lead, ids), _ = engine.teacher_reading(prompt.then(head), ())
    assert lead == prompt.foreign and engine.teacher_tokens.decode(ids) == b"12+"
    with pytest.raises(PotstillError, match="under its own template") as refused:
        engine.score("teacher", [(Prompt.of((5, 5, 5)), (6,))])
    assert "engine.prompt" in refused.value.hint


def test_the_teachers_view_of_a_begun_text(engine: CrossEngine) -> None:
    prompt = engine.prompt(TASK.train[0])
    whole = (*engine.student_tokens.encode(b"70+86=156"), engine.student_tokens.eos_id)
    (scores,) = engine.score("teacher", [(prompt, whole)])
    for cut in (1, 2, 4):
        (rest,) = engine.score("teacher", [(prompt.then(whole[:cut]), whole[cut:])])
        assert len(rest) == len(whole) - cut
        np.testing.assert_allclose(rest[4:], scores[cut + 4 :], atol=1e-5)


SETTINGS = Train(steps=4, batch_size=6, max_tokens=32, learning_rate=1e-4, checkpoint_every=2)
GRADING = Eval(every=4, problems=8, probe=4, probe_every=2)


def run(recipe: Recipe, memory: Memory) -> Memory:
    opened = open_engine("torch", "tiny-cross", threads=1)
    monitored(recipe, opened, TASK, SETTINGS, GRADING, recorder=memory)
    return memory


@pytest.mark.parametrize("recipe", METHODS.values(), ids=lambda r: r.name)
def test_every_method_trains(recipe: Recipe) -> None:
    which = {"gold": 0.5} if recipe.name in ("hybrid", "mixture") else SAMPLED
    recipe = dataclasses.replace(recipe, student_loss=which, budget=1.0)
    memory = run(recipe, Memory())
    rows = memory.metrics[1:]
    assert len(rows) == 4 and all(np.isfinite(row["train/loss"]) for row in rows)
    assert all(row["train/grad_norm"] > 0 for row in rows)
    assert not [finding for finding in memory.findings if finding.kind != "note"]
    assert recipe.uses_student == any(row["train/on_policy_loss"] is not None for row in rows)
    assert recipe.uses_teacher == any(row["train/off_policy_loss"] is not None for row in rows)


class Killed(Memory):
    """Stops the run before a step is recorded, once."""

    def record(self, metrics: dict, evaluation: object) -> None:
        if metrics["step"] == 4 and not getattr(self, "again", False):
            self.again = True
            raise KeyboardInterrupt
        super().record(metrics, None)


@pytest.mark.parametrize("name", [SAMPLED, {"gold": 0.5}])
def test_a_run_resumes_to_the_same_numbers(name: object, tmp_path: Path) -> None:
    """The buffer holds prompts that the second engine has never rendered."""
    recipe = Recipe(name="x", on_policy=0.5, prefix=4, student_loss=name, replay={"capacity": 3})
    whole = run(recipe, Memory())
    killed = Killed(checkpoints=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, killed)
    resumed = run(recipe, killed)
    assert resumed.metrics == whole.metrics and len(whole.metrics) == 5


def table(**changes: object) -> dict:
    small = {"train": {"batch_size": 8}, "eval": {"problems": 16}}
    return {"pairs": ["tiny-cross"], "methods": ["on_policy_gkd"], **small, **changes}


def test_a_studys_loss_is_that_of_all_its_methods() -> None:
    mine = {"plain": {}, "kept": {"from": "hybrid", "student_loss": {"gold": 0.5}}}
    study = read_study(
        table(methods=["mixture", "plain", "kept"], recipe=mine, student_loss=SAMPLED)
    )
    losses = {name: str(recipe.student_loss) for name, recipe in study.recipes.items()}
    assert losses == {"mixture": SAMPLED, "plain": SAMPLED, "kept": "gold(0.5)"}
    assert read_study(study.to_toml()).recipes == study.recipes
    assert str(METHODS["mixture"].student_loss) == "reverse_kl"
    assert "tiny-cross" not in read_study({}).models


@pytest.mark.parametrize(
    ("changes", "says", "hint"),
    [
        ({}, "on_policy_gkd needs reverse_kl", "reverse_kl_sampled"),
        ({"student_loss": {"topk_reverse_kl": 8}}, "tokenizers of pair", "gold = 0.5"),
        ({"pairs": ["tiny-qwen"], "student_loss": {"gold": 0.5}}, "share theirs", "jsd = 0.5"),
        ({"student_loss": "reverse_kl_sample"}, "unknown loss", "reverse_kl_sampled"),
        (
            {
                "methods": ["mine"],
                "recipe": {"mine": {"from": "kl_anchored", "anchor_loss": SAMPLED}},
            },
            "has sampled other tokens",
            "reverse_kl",
        ),
        (
            {"methods": ["m"], "recipe": {"m": {"on_policy": 0, "teacher_loss": "forward_kl"}}},
            "m needs forward_kl",
            "gold",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_read(changes: dict, says: str, hint: str) -> None:
    with pytest.raises(PotstillError, match=says) as caught:
        read_study(table(**changes))
    assert hint in caught.value.hint


def test_an_open_pair_refuses_what_a_file_did_not_show(engine: CrossEngine, tmp_path: Path) -> None:
    recipe = Recipe(name="x")
    batch = batch_of(engine, recipe, 2)
    for call in (engine.measure, lambda data: engine.step(data, 0.1)):
        with pytest.raises(PotstillError, match="log-probs over the student's vocabulary"):
            call(build(recipe, batch, engine))
    with pytest.raises(PotstillError, match="no log-probs over"):
        engine.rows("teacher", batch[0].prompt, batch[0].completion)
    plain = open_engine("torch", "tiny-llama", threads=1)
    assert isinstance(plain, TorchEngine)
    weights = np.ones(1, np.float32)
    datum = dataclasses.replace(
        build(recipe, batch[:1], engine)[0], completion=(5,), targets=(5,), logprobs=-weights
    )
    term = dataclasses.replace(datum.terms[0], loss=GOLD(0.5), weights=weights)
    with pytest.raises(PotstillError, match="share theirs"):
        plain.measure([dataclasses.replace(datum, terms=(term,))])
    models = (zoo.folder("tiny-llama", "student"), zoo.folder("tiny-qwen", "teacher"))
    with pytest.raises(PotstillError, match="share a tokenizer"):
        TorchEngine(*models)
    assert TwoTokenizers(*models).pair.teacher_tokenizer is not None


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_advantage_of_a_span_is_clipped_as_a_whole(
    engine: CrossEngine, temperature: float
) -> None:
    """A limit of 1 stays 1 at each token of a span of several, and r is the span's product."""
    limit = 1.0
    recipe = Recipe(name="x", student_loss=SAMPLED, clip_advantage=limit)
    limits = Limits(24, temperature, 1.0)
    batch = collect(recipe, engine, TASK.train[:8], 0.0, 0, 0, limits)
    data, reached = build(recipe, batch, engine), 0
    for datum in data:
        (found,) = engine.translate([datum])
        assert found.match is not None
        now = engine.score("student", [(datum.prompt, datum.completion)])[0]
        for number in {*found.match.spans} - {-1}:
            span = np.flatnonzero(found.match.spans == number)
            if len(span) < 2:
                continue
            gap = (datum.teacher_logprobs - now)[span].sum()
            reached += abs(gap) > limit
            want = -np.exp((now - datum.behavior_logprobs)[span].sum()) * np.clip(gap, -1, 1)
            for token in span:
                only = np.float32(np.arange(len(now)) == token)
                term = Term(datum.terms[0].loss, only)
                alone = engine.measure([dataclasses.replace(datum, terms=(term,))])
                assert alone.loss == pytest.approx(want, abs=2e-3)
    assert reached


def test_preflight_prints_the_alignment_and_passes() -> None:
    study = read_study(
        table(methods=["teacher_seeded", "kl_anchored", "rows"], student_loss=SAMPLED)
        | {"recipe": {"rows": {"from": "mixture", "student_loss": {"gold": 0.5}}}}
    )
    checks = preflight_pair(study, "tiny-cross")
    assert {check.status for check in checks} == {"passed"}, checks
    evidence = {check.name: check.evidence for check in checks}
    assert evidence["alignment"].startswith("100.0% of")
    assert "1.28 tokens of the student's" in evidence["alignment"]
    assert "352 tokens spell the same" in evidence["shared vocabulary"]
    assert "</s> aligns with the other's EOS" in evidence["special tokens"]
    assert "as computed from logits" in evidence["rows: student tokens"]


@pytest.mark.parametrize("which", [SAMPLED, "gold"])
def test_preflight_sees_a_wrong_translation(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of the teacher one token late; the row of the token before."""

    def late(spans: list, scores: np.ndarray, size: int) -> np.ndarray:
        return np.roll(spread_scores(spans, scores, size), 1)

    def before(spans: list, size: int) -> np.ndarray:
        return np.maximum(match_tokens(spans, size) - 1, -1)

    wrong: Callable = late if which == SAMPLED else before
    name = "spread_scores" if which == SAMPLED else "match_tokens"
    monkeypatch.setattr(f"potstill.engines.cross_tokenizer.engine.{name}", wrong)
    chosen = SAMPLED if which == SAMPLED else {"gold": 0.5}
    checks = preflight_pair(read_study(table(student_loss=chosen)), "tiny-cross")
    assert [c.name for c in checks if c.status == "refused"] == ["on_policy_gkd: student tokens"]


def test_faults_are_refused_here_too() -> None:
    study = read_study(
        table(methods=["mixture"], student_loss=SAMPLED, faults=["unshifted_targets"])
    )
    refused = [c for c in preflight_pair(study, "tiny-cross") if c.status == "refused"]
    assert [(c.name, c.cause) for c in refused] == [
        ("mixture: teacher tokens", "unshifted_targets")
    ]


def test_an_opened_pair_is_asked_for_losses_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with hub names, whose files are not looked at when a study is read."""
    monkeypatch.setattr("potstill.study.loading.differ", lambda *_: None)
    checks = preflight_pair(read_study(table()), "tiny-cross")
    (found,) = checks
    assert found.status == "refused" and "reverse_kl_sampled" in found.hint


def test_the_command_line_refuses_with_a_hint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["potstill", "check", "pairs=tiny-cross"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: on_policy_gkd needs reverse_kl") and "hint: losses for" in err
