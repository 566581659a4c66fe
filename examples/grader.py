"""A grader of one's own: 1 for the right total, 0.5 for a right first step, 0 otherwise."""

import re


def grade(completion: str, answer: str) -> float:
    """Grade a completion against the reference, the last assistant message of the data."""
    numbers = re.findall(r"-?\d+", completion)
    total = re.findall(r"-?\d+", answer)[-1]
    if numbers and numbers[-1] == total:
        return 1.0
    return 0.5 if completion.splitlines()[:1] == answer.splitlines()[:1] else 0.0
