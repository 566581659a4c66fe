"""What a teacher writes, kept by content: cells that ask the same teacher the same thing share it.

A wrapper around any engine. The key holds all that decides a completion: the teacher and where it
runs, prompts, limits, temperature and the random numbers; so a hit is what a miss would have
given. Only the teacher's texts are kept: the student changes with every step.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from potstill.engines.protocol import Engine, Wrapper
from potstill.errors import writing
from potstill.types import Prompt, Role, Sample, is_teacher

SAMPLER = 2  # of how texts are drawn: another sampler's texts are no hits


class CachedTeacher(Wrapper):
    """An engine whose teacher does not write the same text twice.

    Args:
        engine: who writes what is missing.
        teacher: what tells this teacher from any other, see `fingerprint`.
        folder: one small file a call; any number of processes may share it.
    """

    def __init__(self, engine: Engine, teacher: str, folder: Path) -> None:
        super().__init__(engine)
        self._teacher, self._folder = teacher, folder

    def sample(
        self,
        role: Role,
        prompts: Sequence[Prompt],
        max_tokens: Sequence[int],
        temperature: float,
        rng: np.random.Generator,
    ) -> list[Sample]:
        if not is_teacher(role):
            return self.engine.sample(role, prompts, max_tokens, temperature, rng)
        asked = (
            SAMPLER,
            self._teacher,
            *(prompt.route for prompt in prompts if prompt.route),
            *(prompt.foreign for prompt in prompts if prompt.foreign),
            [prompt.read_by(role) for prompt in prompts],
            list(max_tokens),
            temperature,
        )
        key = hashlib.sha256(repr((asked, rng.bit_generator.state)).encode()).hexdigest()
        file = self._folder / key[:2] / f"{key}.npz"
        samples = _read(file)
        if samples is None:
            samples = self.engine.sample(role, prompts, max_tokens, temperature, rng)
            _write(file, samples)
        return samples


def fingerprint(name: str, *where: object) -> str:
    """What tells one teacher from another: its name, for a folder its files, and its placement."""
    files = sorted(Path(name).glob("*")) if Path(name).is_dir() else []
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return repr((str(Path(name).resolve()) if files else name, stats, where))


def _read(file: Path) -> list[Sample] | None:
    """Kept samples; None where there are none, or where a file was cut short."""
    try:
        with file.open("rb") as raw, np.load(raw) as kept:
            ends = np.cumsum(kept["lengths"])[:-1]
            rows = zip(np.split(kept["tokens"], ends), np.split(kept["scores"], ends), strict=True)
            return [Sample(tuple(tokens.tolist()), scores) for tokens, scores in rows]
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        return None


def _write(file: Path, samples: Sequence[Sample]) -> None:
    """Keep samples; whole or not at all, as others may be reading."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=file.parent, suffix=".npz")
        with os.fdopen(handle, "wb") as out:
            np.savez(
                out,
                lengths=np.array([len(s.tokens) for s in samples], np.int64),
                tokens=np.array([t for s in samples for t in s.tokens], np.int64),
                scores=np.concatenate([s.logprobs for s in samples]).astype(np.float32),
            )
        Path(draft).replace(file)
