"""GSM8K for real: pairs of a few million parameters made on the spot, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from test_cli import call

FILES = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="GSM8K's files are not here")

STUDY = """
name = "gsm8k"
methods = ["mixture"]
pairs = ["own"]

[task]
name = "gsm8k"
train_path = "{train}"
test_path = "{test}"

[pair.own]
student = "{student}"
teacher = "{teacher}"

[train]
steps = 3
batch_size = 4
max_tokens = 32
learning_rate = 1e-4
lora_rank = {rank}

[eval]
problems = 20
probe = 4
"""


def make_pair(folder: Path, family: str) -> tuple[Path, Path]:
    """A student of 2 and a teacher of 3 million parameters with random weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

    from potstill.engines import zoo

    tokenizer = AutoTokenizer.from_pretrained(zoo.folder(f"tiny-{family}", "student"))
    for role, layers in (("student", 2), ("teacher", 3)):
        torch.manual_seed(layers)
        config = {"qwen": Qwen3Config, "llama": LlamaConfig}[family](
            vocab_size=len(tokenizer),
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=32,
            max_position_embeddings=2048,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = AutoModelForCausalLM.from_config(config)
        assert 1e6 < model.num_parameters() < 6e6
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return folder / "student", folder / "teacher"


@pytest.mark.parametrize(
    ("family", "rank", "preflight"), [("llama", 0, "--no-preflight"), ("qwen", 8, "--preflight")]
)
def test_gsm8k_runs_through_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, rank: int, preflight: str
) -> None:
    student, teacher = make_pair(tmp_path, family)
    file = tmp_path / "gsm8k.toml"
    text = STUDY.format(
        train=FILES / "train.jsonl",
        test=FILES / "test.jsonl",
        student=student,
        teacher=teacher,
        rank=rank,
    )
    file.write_text(text)
    out = tmp_path / "out"
    assert call("study", file, "--out", out, "--no-figures", "--json", preflight) == 0
    records = json.loads((out / "results.json").read_text())["cells"]
    assert [record["status"] for record in records] == ["done"] * 3
    (trained,) = (record for record in records if record["method"] == "mixture")
    assert trained["steps"] == 3 and trained["tokens"]["trained"] > 100
    run = out / "cells" / "own" / "mixture" / "0"
    assert len(json.loads((run / "result.json").read_text())["outcomes"]["strict"]) == 20
    _untrained, *lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/loss"] for line in lines]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    assert (run / "student" / "adapter").is_dir() == (rank > 0)
    capsys.readouterr()
    problems = f"test_path={FILES / 'test.jsonl'}"
    words = ["--task", "gsm8k", problems, "--problems", 5, "--max-tokens", 16, "--json"]
    assert call("eval", run / "student", *words) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 5
