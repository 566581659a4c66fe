"""Everything that a user, a disk or a stranger's file can do, and how it ended.

    python -m benchmarks.hardening [PART ...] [--kills N] [--damages N] [--settings N]

Parts: kills (SIGKILL at random moments), damage (of a file of a study's folder), disk (full from a
write on), settings (wrong ones), models (damaged and hostile folders), secrets (in every sink, by
the tests of them). Right: the numbers of an undisturbed study. Refused: an error that names the
rule and a way out, exit code 2. The last three columns have to be 0.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "hardening")]

STREAMS = 2  # studies that are killed at the same time
FAULTS = ("traceback", "wrong", "leaked")
COLUMNS = ("tried", "right", "refused", *FAULTS)


def kills(number: int) -> Counter[str]:
    """Kills, and the studies that then reached other numbers or left something behind."""
    with ThreadPoolExecutor(STREAMS) as pool:
        return sum(pool.map(_kills, [-(-number // STREAMS)] * STREAMS, range(STREAMS)), Counter())


def _kills(number: int, seed: int) -> Counter[str]:
    from kills import killed

    with tempfile.TemporaryDirectory() as place:
        study = killed(Path(place), number, seed)
    print(dict(study.counts), *study.faults, sep="\n", file=sys.stderr)
    tried = sum(study.counts.values())
    traces = sum("Traceback" in fault for fault in study.faults)
    wrong = len(study.faults) - traces
    return Counter(right=tried - traces - wrong, traceback=traces, wrong=wrong)


def damage(number: int) -> Counter[str]:
    """Damages of one file each, under one command each."""
    from damage import Folder

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(Path(place))
        for case in range(number):
            for title, how, text in folder.case(case):
                counts["wrong" if how == "unnamed" else how] += 1
                if how not in ("right", "refused"):
                    print(how, title, text[-400:], file=sys.stderr)
    return counts


def disk(_: int) -> Counter[str]:
    """A disk that is full from each write of a study on, and one that refuses a single write."""
    from test_full_disk import every_write, made

    with tempfile.TemporaryDirectory() as place:
        study, whole = made(Path(place))
        (Path(place) / "full").mkdir()
        return every_write(study, whole, Path(place) / "full", share=1)


def settings(number: int) -> Counter[str]:
    """Wrong values of every key of a study file, as the command line reads them."""
    from settings import outcomes, sample

    counts = outcomes(sample(number), lambda case, how: print(how, case, file=sys.stderr))
    known = {kind: counts.pop(kind, 0) for kind in ("right", "refused")}
    traces = sum(n for kind, n in counts.items() if "traceback" in kind or kind == "hang")
    return Counter(known) + Counter(traceback=traces, wrong=sum(counts.values()) - traces)


def models(_: int) -> Counter[str]:
    """Damaged and hostile model folders, opened in each way."""
    from folders import met, outcomes

    counts: Counter[str] = Counter()
    for name, expected, outcome in outcomes():
        fine = met(expected, outcome) or outcome.kind in FAULTS
        counts[outcome.kind if fine else "wrong"] += 1
        if not met(expected, outcome):
            print(name, outcome.kind, outcome.text[-300:], file=sys.stderr)
    return counts


def secrets(_: int) -> Counter[str]:
    """Secrets of URLs, looked for in every file, name, message and argument: one case a test."""
    file = str(TESTS / "hardening" / "test_secrets.py")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", file]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print(*failed, sep="\n", file=sys.stderr)
    return Counter(right=sum(line.startswith("PASSED") for line in lines), leaked=len(failed))


PARTS: dict[str, Callable[[int], Counter[str]]] = {
    part.__name__: part for part in (kills, damage, disk, settings, models, secrets)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--settings", type=int, default=21_000)
    args = parser.parse_args()
    numbers = {"kills": args.kills, "damage": args.damages, "settings": args.settings}
    warnings.simplefilter("ignore")
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'--:|' * len(COLUMNS)}")
    total: Counter[str] = Counter()
    for name in args.parts or PARTS:
        counts = PARTS[name](numbers.get(name, 0))
        counts["tried"] = sum(counts.values())
        total += counts
        print(f"| {name} | {' | '.join(f'{counts[c]:,}' for c in COLUMNS)} |", flush=True)
    sys.exit(1 if any(total[fault] for fault in FAULTS) else 0)


if __name__ == "__main__":
    main()
