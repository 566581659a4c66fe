"""Run pytest with an engine of several processes: the first runs the tests, the others follow.

torchrun --nproc-per-node 2 -m tests.two_processes tests/test_engine_contract.py -k torch
"""

from __future__ import annotations

import os
import sys

import pytest

if __name__ == "__main__":
    if os.environ["RANK"] == "0":
        sys.exit(pytest.main(sys.argv[1:]))
    from potstill.engines.cross_tokenizer.engine import TwoTokenizers
    from potstill.engines.torch import distributed as processes

    processes.follow(TwoTokenizers)
