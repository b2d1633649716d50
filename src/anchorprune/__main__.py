"""`python -m anchorprune`."""

import sys

from anchorprune.cli import main

sys.exit(main())
