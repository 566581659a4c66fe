"""A content-addressed cache of teacher completions, shared between runs.

The cache wraps any engine. Its key contains everything that determines a completion: the teacher
and its placement, prompts, limits, temperature, truncation and random state. A hit therefore equals
the result of a miss. Student completions are not cached, because the student changes with every
step. Each file also has the seconds that its samples took, so that a run's cost does not depend on
the runs before it.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from potstill.engines.model_files import read_json
from potstill.engines.protocol import Engine, Wrapper
from potstill.errors import writing
from potstill.types import WHOLE, Prompt, Role, Sample, Truncation, is_teacher

SAMPLER = 2  # version of the sampler: raise it when the same random state gives other samples


class CachedTeacher(Wrapper):
    """An engine that reads teacher completions from a cache if they were sampled before.

    Args:
        engine: samples the missing completions.
        teacher: identifies the teacher, see `fingerprint`.
        folder: holds one small file per call; any number of processes may share it.
    """

    def __init__(self, engine: Engine, teacher: str, folder: Path) -> None:
        super().__init__(engine)
        self._teacher, self._folder = teacher, folder
        self.saved = 0.0  # see `protocol.Cached`

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
        truncation: Truncation = WHOLE,
    ) -> list[Sample]:
        if not is_teacher(role):
            return self.engine.sample(role, prompts, max_tokens, temperature, rng, truncation)
        request = (
            SAMPLER,
            self._teacher,
            *(prompt.route for prompt in prompts if prompt.route),
            *(prompt.foreign for prompt in prompts if prompt.foreign),
            [prompt.read_by(role) for prompt in prompts],
            list(max_tokens),
            temperature,
            *([truncation] if truncation != WHOLE else []),
        )
        key = hashlib.sha256(repr((request, rng.bit_generator.state)).encode()).hexdigest()
        file = self._folder / key[:2] / f"{key}.npz"
        start = time.perf_counter()
        cached = _read(file)
        if cached is None:
            samples = self.engine.sample(role, prompts, max_tokens, temperature, rng, truncation)
            _write(file, samples, time.perf_counter() - start)
            return samples
        samples, seconds = cached
        self.saved += max(0.0, seconds - (time.perf_counter() - start))
        return samples


def fingerprint(name: str, *placement: object) -> str:
    """Return a string that identifies a teacher: name, placement, and the files of a folder."""
    stats: list[object] = [*_stats(name)]
    where = str(Path(name).resolve()) if stats else name
    adapter = Path(name) / "adapter_config.json"
    if adapter.is_file():  # its base has the other weights
        base = str(read_json(adapter).get("base_model_name_or_path"))
        stats.append((base, _stats(base)))
    return repr((where, stats, placement))


def _stats(name: str) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a folder; empty for a hub name."""
    files = sorted(Path(name).glob("*")) if Path(name).is_dir() else []
    return [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]


def _read(file: Path) -> tuple[list[Sample], float] | None:
    """Read cached samples and their seconds; None if the file is missing, truncated or too old."""
    try:
        with file.open("rb") as raw, np.load(raw) as arrays:
            ends = np.cumsum(arrays["lengths"])[:-1]
            names = ("tokens", "scores", "behavior")
            rows = zip(*(np.split(arrays[name], ends) for name in names), strict=True)
            samples = [Sample(tuple(ids.tolist()), *logprobs) for ids, *logprobs in rows]
            return samples, float(arrays["seconds"])
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return None


def _write(file: Path, samples: Sequence[Sample], seconds: float) -> None:
    """Write samples atomically, because other processes may be reading."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=file.parent, suffix=".npz")
        with os.fdopen(handle, "wb") as out:
            np.savez(
                out,
                lengths=np.array([len(s.tokens) for s in samples], np.int64),
                tokens=np.array([t for s in samples for t in s.tokens], np.int64),
                scores=np.concatenate([s.logprobs for s in samples]).astype(np.float32),
                behavior=np.concatenate([s.behavior_logprobs for s in samples]).astype(np.float32),
                seconds=seconds,
            )
        Path(draft).replace(file)
