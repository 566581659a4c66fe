"""The account of a study: what its runs have spent, against the study's budget.

Each run writes its spending to its own folder as it goes. The sum over all folders is therefore
the spending of all processes, with the cost of failed attempts that had to be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from potstill.settings import Budget, Price
from potstill.study.file_schemas import SpentRecord, checked, read_result
from potstill.study.files import read_record, write_record
from potstill.training.spending import Spent, excess, total

SCREEN = "screen"  # folder of a race's shorter runs, which its budget includes
EVERY = 1.0  # seconds between two sums over all runs


class Ledger:
    """Sums the spending of a study's runs and compares it with the budget.

    Limits are returned as text, such as "3 USD of budget.usd = 3"; empty if none is reached.

    Args:
        runs: the folder that contains the runs' folders.
        budget: the limits.
        price: converts seconds and tokens to dollars.
        elsewhere: the limit that another process reports, for a run whose folder does not contain
            the whole study.
    """

    def __init__(
        self, runs: Path, budget: Budget, price: Price, elsewhere: Callable[[], str] = str
    ) -> None:
        self._runs, self._budget, self._price, self._elsewhere = runs, budget, price, elsewhere
        self._summed_at = -EVERY
        self._ended: dict[Path, Spent] = {}  # runs with a result: they spend no more
        self._lost: dict[Path, Spent] = {}  # by earlier attempts at runs of this process

    def over(self) -> str:
        """The limit that is reached, if any."""
        if self._budget == Budget():
            return self._elsewhere()
        return excess(self._budget, self._price, self.spent()) or self._elsewhere()

    def spent(self, without: Path | None = None) -> Spent:
        """The sum over all runs, or over all but one."""
        runs = [*self._runs.glob("*/*/*"), *self._runs.parent.glob(f"{SCREEN}/cells/*/*/*")]
        return total(self._run(path) for path in runs if path != without)

    def _run(self, path: Path) -> Spent:
        if path not in self._ended:
            running = read_spent(path / ".spent")
            hint = f'remove the folder "{path}" to run it again'
            result = read_result(path / "result.json", hint) or {}
            lost = Spent.read(running.get("lost") or {})
            if result.get("status") != "done":
                return Spent.read(running) + lost
            self._ended[path] = Spent.read(result) + lost
        return self._ended[path]

    def charge(self, run: Path, spent: Spent, *, now: bool = False) -> str:
        """Write what a run has spent and compare the sum with the budget, at most once a second.

        Args:
            run: the run's folder.
            spent: by the run so far.
            now: do so even if the last time was less than a second ago.

        Returns:
            The limit that is reached, if any.
        """
        if self._budget == Budget():
            return self._elsewhere()
        if run not in self._lost:
            self._lost[run] = _repeated(read_spent(run / ".spent"), spent)
        if not now and time.monotonic() - self._summed_at < EVERY:
            return self._elsewhere()
        self._summed_at, lost = time.monotonic(), self._lost[run]
        record: dict[str, Any] = {"seconds": spent.seconds, "tokens": dict(spent.tokens)}
        if lost.seconds or lost.tokens:
            record["lost"] = {"seconds": lost.seconds, "tokens": dict(lost.tokens)}
        write_record(run / ".spent", record)
        everything = self.spent(without=run) + spent + lost
        return excess(self._budget, self._price, everything) or self._elsewhere()


def read_spent(path: Path) -> dict[str, Any]:
    """The account in a run's folder; empty if there is none.

    Raises:
        DamagedFile: it is not what was written.
    """
    hint = f'remove "{path}": what its run has spent so far is then not counted'
    account, _ = read_record(path, hint) or ({}, True)
    return dict(checked(SpentRecord, account, path, hint))


def _repeated(last: Mapping[str, Any], spent: Spent) -> Spent:
    """The cost of earlier attempts after the checkpoint from which this attempt continues.

    Args:
        last: the account that the previous attempt wrote.
        spent: by this attempt at its first charge, including what its checkpoint had counted.
    """
    before, lost = Spent.read(last), Spent.read(last.get("lost") or {})
    beyond = {kind: n - spent.tokens.get(kind, 0.0) for kind, n in before.tokens.items()}
    tokens = {kind: n for kind, n in beyond.items() if n > 0}
    return lost + Spent(max(0.0, before.seconds - spent.seconds), tokens)
