"""The replay buffer between rollouts and training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potstill.training.rollout import generator
from potstill.types import Trajectory


class Buffer:
    """Keeps the newest trajectories and draws from them with weight 1 + step_added / step.

    Args:
        capacity: trajectories kept; 0: every batch is the step's fresh trajectories.
        entries: trajectories restored from a checkpoint.
    """

    def __init__(self, capacity: int, entries: Sequence[Trajectory] = ()) -> None:
        self.capacity = capacity
        self.entries = list(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def exchange(self, fresh: list[Trajectory], step: int, seed: int) -> list[Trajectory]:
        """Add the step's fresh trajectories and draw as many to train on."""
        if not self.capacity or not (self.entries or fresh):
            return fresh
        self.entries = (self.entries + fresh)[-self.capacity :]
        weights = np.array([1 + entry.version / max(step, 1) for entry in self.entries])
        rng = generator(seed, step, "replay")
        size = min(len(fresh), len(self.entries))
        drawn = rng.choice(len(weights), size, replace=False, p=weights / weights.sum())
        return [self.entries[i] for i in drawn]
