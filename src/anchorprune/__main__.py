"""`anchorprune`, and `python -m anchorprune`: the command line as a process of its own."""

import os
import signal
import sys
from types import FrameType


def run() -> int:
    """The command line; its exit code. SIGTERM is as Ctrl-C: what is half-written goes, one line, exit code 130.

    While Python is still importing, and when it is done, there is nothing to tidy up: then it ends at once.
    """
    at_work = False

    def stop(number: int, _: FrameType | None) -> None:
        if at_work:
            raise KeyboardInterrupt
        os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup
            signal.signal(number, stop)
    if hasattr(os, "register_at_fork"):  # worker processes have nothing to tidy up
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        from anchorprune.commands import main

        at_work = True
        return main()
    except KeyboardInterrupt:  # between two lines of main
        return 130
    finally:
        at_work = False


if __name__ == "__main__":
    sys.exit(run())
