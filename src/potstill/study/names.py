"""Names that become folders: those of a study, its pairs and its methods.

A folder of a study is copied between systems, so a name is one that all of them can hold, and two
names differ in more than case. Characters are checked in `schema` and in `Recipe`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from potstill.algorithms.methods import KNOWN, METHODS
from potstill.errors import Errors, PotstillError
from potstill.study.schema import Study

# Bytes of a name. `potstill run` has a folder STUDY-PAIR-METHOD-SEED, file systems 255 bytes.
LONGEST = 72
BASELINES = ("teacher", "untrained")  # their folders are those of methods
MIRRORS = "mirrors"  # runs/mirrors has the copies of studies behind a URL
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows


def folded(name: str) -> str:
    """A name as a file system may compare it: without case, in one Unicode form.

    >>> folded("Hybrid") == folded("hybrid"), folded("e\\u0301") == folded("\\u00e9")
    (True, True)
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def check_study_names(study: Study) -> None:
    """Check the names of a study, its pairs and its methods.

    Raises:
        PotstillError: names that are reserved, too long, or the same to some file system.
    """
    errors = Errors()
    _check("name", study.name, (MIRRORS,), "the copies of studies behind a URL", errors)
    for name in study.pair:
        _check("pair", name, (), "", errors)
    for name in study.recipe:
        _check("recipe", name, BASELINES, "a baseline", errors)
    built_in = [*METHODS, *(name for name in study.methods if name in KNOWN)]
    _check_apart("recipe", study.recipe, built_in, errors)
    _check_apart("pair", study.pair, study.models, errors)
    errors.check()


def _check(kind: str, name: str, taken: Iterable[str], owner: str, errors: Errors) -> None:
    """Check one name."""
    rule, size = "", len(name.encode())
    if folded(name) in taken:
        rule = f"the folder of that name is {owner}'s" if owner else ""
    elif size > LONGEST:
        rule = f"a name that becomes a folder has at most {LONGEST} bytes in UTF-8, got {size}"
    elif name.endswith("."):
        rule = "a name that becomes a folder does not end in a dot"
    elif _DEVICES.fullmatch(name):
        rule = "a device of Windows has that name"
    elif not name.isprintable():
        rule = f"a name has no control characters, got {name!r}"
    if rule:
        short = name if len(name) <= LONGEST else f"{name[:LONGEST]}..."
        errors.add(PotstillError(f'{kind} "{short}": {rule}', "choose another name"))


def _check_apart(kind: str, own: Iterable[str], known: Iterable[str], errors: Errors) -> None:
    """Check that no two names are the same folder where case does not count."""
    first = {folded(name): name for name in known}
    for name in own:
        other = first.setdefault(folded(name), name)
        if other != name:
            errors.add(
                PotstillError(
                    f'{kind} "{name}" and "{other}" are one folder where case does not count',
                    "choose another name",
                )
            )
