"""What the runs of a study's folder have spent, and whether its budget allows more.

Runs write down what they have spent as they go, so that the sum over a folder is what all
processes have spent so far, with what a killed or failed attempt spent and had to do again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.settings import Budget, Price
from potstill.training.spending import Spent, excess, total

EVERY = 1.0  # seconds between two looks at what other processes have spent


class Ledger:
    """What the cells of a folder have spent, and whether they may go on.

    Args:
        cells: the folder that holds them.
        budget: what they may spend in all.
        price: to tell dollars.
        told: a limit that is reached as others see it, in words, for a cell whose folder does not
            hold the whole study.
    """

    def __init__(
        self, cells: Path, budget: Budget, price: Price, told: Callable[[], str] = str
    ) -> None:
        self._cells, self._budget, self._price, self._told = cells, budget, price, told
        self._looked = -EVERY
        self._ended: dict[Path, Spent] = {}  # cells with a result: they spend no more
        self._lost: dict[Path, Spent] = {}  # by earlier attempts at cells that run here

    def over(self) -> str:
        """The limit that is reached, in words; empty where none is."""
        if self._budget == Budget():
            return self._told()
        return excess(self._budget, self._price, self.spent()) or self._told()

    def spent(self, mine: Path | None = None) -> Spent:
        """The sum over all cells but one."""
        return total(self._cell(path) for path in self._cells.glob("*/*/*") if path != mine)

    def _cell(self, path: Path) -> Spent:
        if path not in self._ended:
            result, running = _read(path / "result.json"), _read(path / ".spent") or {}
            lost = Spent.read(running.get("lost") or {})
            if not result or result.get("status") != "done":
                return Spent.read(running) + lost
            self._ended[path] = Spent.read(result) + lost
        return self._ended[path]

    def charge(self, cell: Path, spent: Spent, *, now: bool = False) -> str:
        """Write down what a cell has spent and look at the sum, at most once a second.

        Args:
            cell: the cell's folder.
            spent: by it so far.
            now: whatever the clock says.

        Returns:
            The limit that is reached, in words; empty where none is.
        """
        if self._budget == Budget():
            return self._told()
        if cell not in self._lost:
            self._lost[cell] = _thrown_away(_read(cell / ".spent") or {}, spent)
        if not now and time.monotonic() - self._looked < EVERY:
            return self._told()
        self._looked, lost = time.monotonic(), self._lost[cell]
        record: dict[str, Any] = {"seconds": spent.seconds, "tokens": dict(spent.tokens)}
        if lost.seconds or lost.tokens:
            record["lost"] = {"seconds": lost.seconds, "tokens": dict(lost.tokens)}
        partial = cell / ".spent.partial"
        partial.write_text(json.dumps(record))
        partial.replace(cell / ".spent")
        return excess(self._budget, self._price, self.spent(cell) + spent + lost) or self._told()


def _thrown_away(before: Mapping[str, Any], spent: Spent) -> Spent:
    """What earlier attempts spent beyond the point that this one goes on from.

    Args:
        before: what the last attempt wrote down.
        spent: by this one when it is first asked, what its resume point kept among it.
    """
    last, lost = Spent.read(before), Spent.read(before.get("lost") or {})
    gone = {k: n - spent.tokens.get(k, 0.0) for k, n in last.tokens.items()}
    tokens = {k: n for k, n in gone.items() if n > 0}
    return lost + Spent(max(0.0, last.seconds - spent.seconds), tokens)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
