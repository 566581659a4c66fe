"""Copy an embedded pair to ordinary folders, in any dtype.

The embedded models are stored in half precision, in which JAX cannot compute on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from potstill.engines import zoo
from potstill.errors import PotstillError, did_you_mean, writing

DTYPES = ("float32", "bfloat16", "float16")


def save_pair(pair: str, out: Path, dtype: str = "float32") -> Path:
    """Write `out`/`pair`/student and `out`/`pair`/teacher, and return `out`/`pair`.

    Raises:
        PotstillError: the pair or dtype is unknown, or the folder exists.
    """
    if pair not in zoo.PAIRS:
        raise PotstillError(f'unknown pair "{pair}"', did_you_mean(pair, zoo.PAIRS, "pairs"))
    if dtype not in DTYPES:
        raise PotstillError(f'unknown dtype "{dtype}"', did_you_mean(dtype, DTYPES, "dtypes"))
    folder = out / pair
    if folder.exists():
        raise PotstillError(f'"{folder}" exists already', "use another --out")
    for role in ("student", "teacher"):
        source = zoo.folder(pair, role)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
        with writing(folder):
            model.save_pretrained(folder / role)
            AutoTokenizer.from_pretrained(source).save_pretrained(folder / role)
    return folder
