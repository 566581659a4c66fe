"""Does a race keep the best method, and what does it save? Simulated with known truth.

Outcomes are drawn as in `benchmarks.coverage`: a skill a method, an effect a seed, an effect a
problem and one a method and problem. Each race is decided by the shipped functions on the outcomes
that its looks would have seen, and the best mean of a grid of 3 and of 10 seeds is picked from the
same outcomes.

    python -m benchmarks.race --races 400
    python -m benchmarks.race --folder runs/full      # a finished grid, raced without training
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

from benchmarks.coverage import NOISE, OWN, SKILL
from potstill.report.race import look_line, named_looks
from potstill.stats.mean_squares import Matrix
from potstill.study.race import Rules
from potstill.study.race.course import course
from potstill.study.race.decision import Entry, decide, levels
from potstill.study.storage import StudyFolder, runs_of

UNTRAINED = 0.45
PROBLEMS = 500
SEED_SDS = (0.01, 0.03, 0.06)
ALARM = 0.9  # share of collapsed runs whose collapse is found
CLOSE = 0.0101  # one point, and rounding

# Level of each look by share of the planned seeds: cumulative functions of Lan and DeMets (1983),
# and an equal part for each look.
SPENDING: dict[str, Callable[[float, Sequence[int]], list[float]]] = {
    "pocock": levels,  # the shipped one
    "equal": lambda alpha, looks: [alpha / len(looks)] * len(looks),
    "obrien-fleming": lambda alpha, looks: np.diff(
        [0.0, *(2 * norm.sf(norm.isf(alpha / 2) / np.sqrt(n / looks[-1])) for n in looks)]
    ).tolist(),
}

LOW = 0.02  # accuracy of a collapsed method
# True accuracies, the best one first.
SCENARIOS: dict[str, tuple[float, ...]] = {
    "all equal": (0.65,) * 8,
    "all equal to the untrained student": (UNTRAINED,) * 8,
    "5 of 8 collapse": (0.586, 0.532, 0.51, *[LOW] * 5),
    "4 of 8 far below": (0.65, 0.64, 0.63, 0.62, *[0.2] * 4),
    "one clear best": (0.68, *[0.6] * 7),
    "slope of 1 point": tuple(0.65 - 0.01 * i for i in range(8)),
    "slope of 3 points": tuple(0.68 - 0.03 * i for i in range(8)),
    "all equal, 2 of 8 wild": (0.65,) * 8,
}
WILD = 0.12  # seed sd of the last two methods where they are wild, as in `benchmarks.coverage`


@dataclass(frozen=True)
class Outcome:
    """One simulated race."""

    best_dropped: bool
    close: bool  # its leader is within a point of the best
    runs: int  # on deciding seeds
    finalists: int


def simulate(
    truth: Sequence[float],
    sds: Sequence[float],
    seeds: int,
    rng: np.random.Generator,
    problems: int = PROBLEMS,
) -> tuple[dict[str, Matrix], Matrix]:
    """Outcomes (seeds, problems) of each method, and those (problems,) of the untrained student."""
    skill, spread = rng.normal(0, SKILL, problems), np.sqrt(SKILL**2 + OWN**2 + NOISE**2)

    def drawn(accuracy: float, sd: float, seeds: int) -> Matrix:
        tau = sd * spread / norm.pdf(ndtri(accuracy))  # the seeds' deviation, latent
        latent = ndtri(accuracy) * np.sqrt(spread**2 + tau**2) + tau * rng.normal(size=(seeds, 1))
        latent = latent + skill + rng.normal(0, OWN, problems)
        return (latent + rng.normal(0, NOISE, (seeds, problems)) > 0).astype(float)

    outcomes = {
        f"method {i}": drawn(accuracy, 0.0 if accuracy == LOW else sd, seeds)
        for i, (accuracy, sd) in enumerate(zip(truth, sds, strict=True))
    }
    return outcomes, drawn(UNTRAINED, 0.0, 1)[0]


def race(
    outcomes: Mapping[str, Matrix],
    untrained: Matrix,
    collapsed: Mapping[str, Matrix],
    rules: Rules,
    spending: str = "pocock",
) -> tuple[str, tuple[str, ...], int]:
    """Race on outcomes that are known; returns the leader, the finalists and the number of runs.

    Args:
        outcomes: of each method, (seeds, problems).
        untrained: of the untrained student, (problems,).
        collapsed: 1 for each seed with a finding, by method; methods without one may be left out.
        rules: of the race.
        spending: one of `SPENDING`.
    """
    racing, runs, before = tuple(outcomes), 0, 0
    parts = SPENDING[spending](rules.alpha, rules.looks)
    for level, seeds in zip(parts, rules.looks, strict=True):
        runs, before = runs + len(racing) * (seeds - before), seeds
        entries = {
            m: Entry(outcomes[m][:seeds], int(collapsed.get(m, np.zeros(seeds))[:seeds].sum()))
            for m in racing
        }
        look = decide(
            entries,
            untrained,
            seeds=seeds,
            level=level,
            within=rules.within / 100,
            last=seeds == rules.looks[-1],
        )
        racing = look.survivors
        if look.ended:
            break
    return look.leader, racing, runs


def picked(outcomes: Mapping[str, Matrix], seeds: int) -> str:
    """The best mean of a grid."""
    return max(outcomes, key=lambda m: outcomes[m][:seeds].mean())


def trial(
    scenario: str,
    sd: float,
    rules: Sequence[Rules],
    races: int,
    seed: int,
    spending: str = "pocock",
) -> tuple[dict[int, float], list[list[Outcome]]]:
    """Many races of one scenario under several rules.

    Returns:
        The share of grids of so many seeds that pick a method within a point of the best, and the
        races under each of the rules.
    """
    truth, rng = SCENARIOS[scenario], np.random.default_rng([seed, int(1000 * sd)])
    sds = [sd] * 6 + [WILD if "wild" in scenario else sd] * 2
    seeds = max(rule.looks[-1] for rule in rules)
    close: dict[int, list[bool]] = {3: [], seeds: []}
    results: list[list[Outcome]] = [[] for _ in rules]

    def near(method: str) -> bool:
        return bool(method) and truth[0] - truth[int(method.split()[1])] <= CLOSE

    for _ in range(races):
        outcomes, untrained = simulate(truth, sds, seeds, rng)
        low = [m for m, accuracy in zip(outcomes, truth, strict=True) if accuracy == LOW]
        collapsed = {m: (rng.random(seeds) < ALARM).astype(float) for m in low}
        for n in close:
            close[n].append(near(picked(outcomes, n)))
        for rule, kept in zip(rules, results, strict=True):
            leader, finalists, runs = race(outcomes, untrained, collapsed, rule, spending)
            lost = "method 0" not in finalists
            kept.append(Outcome(lost, near(leader), runs, len(finalists)))
    return {n: float(np.mean(values)) for n, values in close.items()}, results


def lines(
    scenario: str, sd: float, rules: Sequence[Rules], races: int, seed: int, spending: str
) -> list[str]:
    """The results of one scenario as Markdown table rows, one for each of the rules."""
    grids, results = trial(scenario, sd, rules, races, seed, spending)
    methods, rows = len(SCENARIOS[scenario]), []
    for rule, outcomes in zip(rules, results, strict=True):
        runs = float(np.mean([one.runs for one in outcomes]))
        finalists = float(np.mean([one.finalists for one in outcomes]))
        shares = [100 * runs / (methods * n) for n in grids]
        picks = [100 * float(np.mean([one.close for one in outcomes]))]
        picks += [100 * share for share in grids.values()]
        lost = 100 * float(np.mean([one.best_dropped for one in outcomes]))
        rows.append(
            f"| {scenario} | {100 * sd:.0f} | {','.join(map(str, rule.looks))} | {lost:.1f} | "
            f"{' / '.join(f'{value:.0f}' for value in picks)} | {runs:.1f} | "
            f"{' / '.join(f'{value:.0f}' for value in shares)} | {finalists:.1f} |"
        )
    return rows


def replay(folder: Path, rules: Rules) -> None:
    """Race on the records of a finished grid, and print what was dropped and the cost."""
    place = StudyFolder(folder)
    study = place.study
    records = place.results(runs_of(study))
    for pair in study.models:
        run = course(pair, list(study.methods), study.seeds, rules, records, {}, {})
        deciding = [key for key in run.planned if key.seed in rules.deciding(study.seeds)]
        grid = [key for key in records if key.pair == pair and key.seed is not None]
        print(f"\n{pair}, looks at {', '.join(map(str, rules.looks))} seeds")
        for name, look in named_looks(run):
            print(f"  {look_line(name, look)}")
        spent, whole = (sum(records[key]["seconds"] for key in some) for some in (deciding, grid))
        print(
            f"  {run.ended}: {len(deciding)} of {len(grid)} runs, {spent:.0f} of {whole:.0f} "
            f"seconds ({spent / whole:.0%})"
        )
        print("  mean accuracy of the grid, %: " + ", ".join(_means(pair, study.methods, records)))


def _means(pair: str, methods: Sequence[str], records: Mapping) -> list[str]:
    means = {
        m: np.mean([r["accuracy"] for k, r in records.items() if (k.pair, k.method) == (pair, m)])
        for m in methods
    }
    return [f"{m} {100 * means[m]:.1f}" for m in sorted(means, key=means.__getitem__, reverse=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--races", type=int, default=400, help="of each scenario and seed sd")
    parser.add_argument("--looks", nargs="+", default=["1,3,5,10", "1,3"], help="of the race")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--within", type=float, default=1.0, help="points")
    parser.add_argument("--scenario", choices=SCENARIOS, nargs="+", default=list(SCENARIOS))
    parser.add_argument("--spending", choices=SPENDING, default="pocock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="a finished grid to race on")
    args = parser.parse_args()
    rules = [
        Rules.read(
            {"looks": [*map(int, looks.split(","))], "alpha": args.alpha, "fresh": 0}
            | {"within": args.within}
        )
        for looks in args.looks
    ]
    if args.folder:
        for rule in rules:
            replay(args.folder, rule)
        return
    most = max(rule.looks[-1] for rule in rules)
    print(
        f"| scenario | seed sd, points | looks | best dropped, % | within 1 point of the best, %: "
        f"race / grid of 3 / grid of {most} | runs of the race | % of a grid of 3 / {most} seeds | "
        "finalists |\n|---|--:|---|--:|--:|--:|--:|--:|"
    )
    with ProcessPoolExecutor(args.processes) as pool:
        jobs = [
            pool.submit(lines, scenario, sd, rules, args.races, args.seed, args.spending)
            for scenario in args.scenario
            for sd in SEED_SDS
        ]
        for job in jobs:
            print("\n".join(job.result()), flush=True)


if __name__ == "__main__":
    main()
