"""`stoop-controller`: not in this version. Acts that need rights over the cluster are refused until it is."""

from __future__ import annotations

import sys


def main() -> int:
    """Say so; returns 2, as for everything that a person has to change."""
    sys.stderr.write("stoop-controller: there is no controller in this version; run stoop-agent on each node\n")
    return 2
