"""A student cut from its teacher, and the page of `make real`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import pruned, real
from benchmarks.pruned import check, cut
from transformers import AutoModelForCausalLM

from families import FAMILIES, write_pair
from launching import run_study
from potstill.engines import zoo
from potstill.errors import PotstillError
from potstill.study.loading import load_study, read_study
from potstill.tasks import load_task

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.tensor([[5, 9, 3, 41, 8, 2]])


def deep(place: Path, family: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A checkpoint of a family with four layers."""
    settings = {**FAMILIES[family], "num_hidden_layers": 4, **changes}
    if "layer_types" in settings:
        settings["layer_types"] = settings["layer_types"] * 2
    monkeypatch.setitem(FAMILIES, family, settings)
    return write_pair(place, family) / "teacher"


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("family", "last"),
    [("llama", 2), ("gemma2", 3), ("qwen3_5_text", 3), ("mixtral", 2), ("smollm3", 3)],
)
def test_a_cut_model_has_the_layers_that_are_kept(
    family: str, last: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = deep(tmp_path, family, monkeypatch)
    whole, model = load(folder), cut(load(folder), [0, last])
    kept = [whole.model.layers[i].state_dict() for i in (0, last)]
    for layer, wanted in zip(model.model.layers, kept, strict=True):
        assert layer.state_dict().keys() == wanted.keys()
        assert all(torch.equal(layer.state_dict()[key], wanted[key]) for key in wanted)
    model.save_pretrained(tmp_path / "cut")
    check(tmp_path / "cut", model)
    again = load(tmp_path / "cut")
    assert again.config.num_hidden_layers == 2
    for name, value in whole.config.to_dict().items():
        if isinstance(value, list) and len(value) == 4:
            assert getattr(again.config, name) == [value[0], value[last]]
    out = again.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        step = again(out[:, :-1], use_cache=False).logits[0, len(IDS[0]) - 1 :].argmax(-1)
    assert out[0, len(IDS[0]) :].tolist() == step.tolist()  # with its cache, and without


@pytest.mark.parametrize("kept", [[], [2, 0], [0, 0], [-1, 0], [3, 4]])
def test_layers_that_cannot_be_kept_are_refused(
    kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(deep(tmp_path, "llama", monkeypatch))
    with pytest.raises(PotstillError, match="ascending numbers from 0 to 3"):
        cut(model, kept)


def test_a_model_whose_layers_are_elsewhere_is_refused(tmp_path: Path) -> None:
    model = load(write_pair(tmp_path, "gpt2") / "teacher")
    with pytest.raises(PotstillError, match="gpt2"):
        cut(model, [0])


def test_a_model_that_its_config_no_longer_describes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bamba's config names the layers with attention by their numbers."""
    folder = deep(tmp_path, "bamba", monkeypatch, attn_layer_indices=[2])
    model = cut(load(folder), [0, 2])
    model.save_pretrained(tmp_path / "cut")
    with pytest.raises(PotstillError, match="not the one in its folder"):
        check(tmp_path / "cut", model)


def test_the_command_writes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = deep(tmp_path, "llama", monkeypatch)
    pruned.main([str(folder), str(tmp_path / "half")])
    assert "2 of 4 layers" in capsys.readouterr().out
    assert (tmp_path / "half" / "tokenizer.json").exists()
    with pytest.raises(SystemExit):
        pruned.main([str(folder), str(tmp_path / "half")])  # not empty


def test_the_page_of_a_finished_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "HELD_OUT", 4)
    table = {
        "pairs": ["tiny-llama"],
        "methods": ["off_policy", "hybrid"],
        "seeds": [0],
        "train": {"steps": 2, "batch_size": 4},
        "eval": {"problems": 8, "every": 2, "probe": 4},
    }
    folder = run_study(read_study(table), tmp_path / "out", workers=0)
    study = folder.study
    rows = list(real.rows(study, folder))
    assert [row["method"] for row in rows] == ["untrained", "off_policy", "hybrid", "teacher"]
    assert rows[1]["steps"] == 2 and rows[1]["train/kl_divergence"] > 0
    text = real.page(rows, load_task(**study.task))
    assert text.count("| `off_policy` |") == 1 + real.SHOWN
    assert text.count("| `teacher` |") == real.SHOWN


@pytest.mark.parametrize(
    ("text", "cell"),
    [("a\nb", "a b"), ("a|b", "a\\|b"), ("\n" * 48, " (48 line ends)"), ("", "(empty)")],
)
def test_a_completion_fits_a_cell(text: str, cell: str) -> None:
    assert real.shown(text) == cell


def test_the_study_of_the_tutorial_is_read() -> None:
    folders = [
        f"pair.smollm2-cut.{r}={zoo.folder('tiny-llama', r)}" for r in ("student", "teacher")
    ]
    study = load_study(real.STUDY, folders)
    assert list(study.models) == ["smollm2-cut"] and study.train.on_collapse == "stop"
