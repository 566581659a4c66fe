"""`python -m potstill`, and the command `potstill`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and exit; Ctrl-C while it is imported prints no traceback."""
    try:
        from potstill.interrupts import Interrupts, check_interrupts

        signal.signal(signal.SIGINT, Interrupts())
        from potstill.cli import main as run

        check_interrupts()
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
