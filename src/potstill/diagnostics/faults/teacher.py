"""A fault in the teacher's folder: its token ids are permuted.

Vocabulary size, tokenizer files and special tokens are unchanged, so that comparing sizes or files
does not reveal it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from potstill.diagnostics.faults.base import Fault
from potstill.errors import PotstillError

ROWS = ("embed_tokens.weight", "lm_head.weight")  # tensors with one row a token id


class VocabPermuted(Fault):
    """An id is another token for the teacher than for the student."""

    name = "vocab_permuted"
    what = "the two vocabularies have the same size but different ids"
    where = "tokenizers are compared by their length only"
    remedy = "compare the tokens of each id in both tokenizers, not only their number"

    def teacher(self, teacher: str, folder: Path) -> str:
        return permuted_teacher(teacher, folder)


def permuted_teacher(teacher: str, folder: Path) -> str:
    """Write a permuted copy of a local model folder and return its path.

    Raises:
        PotstillError: the teacher is not a local folder with unsharded safetensors.
    """
    from safetensors.torch import load_file, save_file

    source = Path(teacher)
    if not (source / "model.safetensors").is_file():
        raise PotstillError(
            f'the fault vocab_permuted needs a local folder as teacher, got "{teacher}"',
            "use an embedded pair, or a folder with a single model.safetensors",
        )
    if (folder / "model.safetensors").exists():
        return str(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(ROWS):
            tensors[name] = tensor[_order(source, len(tensor))].contiguous()
    save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
    partial.rename(folder)
    return str(folder)


def _order(source: Path, rows: int) -> list[int]:
    """A fixed permutation that leaves special tokens where they are."""
    tokens = json.loads((source / "tokenizer.json").read_text())["added_tokens"]
    special = {token["id"] for token in tokens}
    free = [i for i in range(rows) if i not in special]
    order = list(range(rows))
    for id, source_id in zip(
        free, np.random.default_rng(0).permutation(free).tolist(), strict=True
    ):
        order[id] = source_id
    return order
