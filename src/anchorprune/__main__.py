"""`python -m anchorprune`: the command line."""

import sys

from anchorprune.commands import main

if __name__ == "__main__":
    sys.exit(main())
