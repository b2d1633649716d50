"""How long `anchorprune --help` takes, in processes of its own. Target: 0.3 s, and nothing imports torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import target

RUNS = 9


def main() -> None:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "anchorprune", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    target.hold("seconds for --help", statistics.median(seconds), at_most=0.3)
    code = (
        "import sys\nfrom anchorprune.commands import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    torch_came = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode
    target.hold("torch imported by --help", torch_came, at_most=0)
    target.leave()


if __name__ == "__main__":
    main()
