"""The `stoop` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

FINE, FINDINGS, USAGE = 0, 1, 2
"""Exit codes: fine · findings (what was asked about is not as it should be) · usage, or what a person must mend."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells do it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never a traceback for what a person can mend."""
    # Typer and rich take 0.1 s to import: only who calls the command pays for them.
    from stoop.cli.app import run_command

    try:
        return run_command(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`). What Python flushes at its end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except KeyboardInterrupt:
        return INTERRUPTED
