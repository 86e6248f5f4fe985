"""`python -m stoop.cli`: the same as `stoop`."""

import sys

from stoop.cli import main

if __name__ == "__main__":
    sys.exit(main())
