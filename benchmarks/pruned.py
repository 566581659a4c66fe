"""A student cut from its teacher: some of its layers, and everything else.

    python -m benchmarks.pruned Qwen/Qwen3-0.6B runs/cut --every 2

writes a model folder with layers 0, 2, 4, ... of the model, its embeddings, head and tokenizer. The
cut model continues badly until it is trained; `docs/recover.md` does that. Models whose layers
depend on their place in other ways than by a list in the config are refused.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.errors import PotstillError


def cut(model: Any, kept: Sequence[int]) -> Any:
    """Keep some layers of a causal language model, in their order.

    Args:
        model: of transformers; it is changed.
        kept: indices of the layers, ascending.
    """
    config = model.config.get_text_config()
    layers = getattr(getattr(model, "model", None), "layers", None)
    count = config.num_hidden_layers
    if not isinstance(layers, nn.ModuleList) or len(layers) != count:
        raise PotstillError(
            f'layers can be cut where model.layers is their list, got "{config.model_type}"',
            "cut its layers yourself, and save it with save_pretrained",
        )
    indices = list(kept)
    if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < count:
        raise PotstillError(
            f"layers to keep are ascending numbers from 0 to {count - 1}, got {indices}",
            "write --every 2 for every other one",
        )
    for name, value in config.to_dict().items():
        if not (isinstance(value, list) and len(value) == count):
            continue
        setattr(config, name, [value[i] for i in indices])
    model.model.layers = nn.ModuleList([layers[i] for i in indices])
    for place, layer in enumerate(model.model.layers):
        for module in layer.modules():  # of the cache
            if hasattr(module, "layer_idx"):
                module.layer_idx = place
    config.num_hidden_layers = len(indices)
    return model


def check(folder: Path, model: Any) -> None:
    """Raise a `PotstillError` unless the folder, loaded again, is the cut model."""
    from transformers import AutoModelForCausalLM

    ids = torch.arange(1, 9)[None] % model.config.get_text_config().vocab_size
    try:
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype).eval()
        with torch.no_grad():
            both = [m(ids, use_cache=False).logits for m in (again, model.eval())]
        gap = f"logits differ by {(both[0] - both[1]).abs().max().item():.2g}"
    except Exception as error:  # of a config that no longer describes the model
        gap, both = f"{type(error).__name__}: {str(error).splitlines()[0]}", []
    if not both or not torch.allclose(both[0], both[1], atol=1e-3):
        raise PotstillError(
            f'the cut model is not the one in its folder "{folder}": {gap}',
            "its config names layers by their numbers: cut another model",
        )


def main(words: Sequence[str] | None = None) -> None:
    """Cut a model and write its folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruned", description=__doc__)
    parser.add_argument("model", help="folder or Hub ID")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--every", type=int, default=2, help="keep one layer of so many")
    args = parser.parse_args(words)
    if args.every < 1:
        parser.error(f"--every is at least 1, got {args.every}")
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f'"{args.out}" is not empty')
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto", use_safetensors=True)
    layers = model.config.get_text_config().num_hidden_layers
    try:
        cut(model, range(0, layers, args.every)).save_pretrained(args.out)
        AutoTokenizer.from_pretrained(args.model).save_pretrained(args.out)
        check(args.out, model)
    except PotstillError as error:
        raise SystemExit(f"error: {error}. hint: {error.hint}") from None
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{args.out}: {len(model.model.layers)} of {layers} layers, {size:.0f} million parameters"
    )


if __name__ == "__main__":
    main()
