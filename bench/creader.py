"""The second floor: the reader in C, built when a compiler is there."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("reader.c")


@contextlib.contextmanager
def c_reader() -> Iterator[socket.socket | None]:
    """A connection to a running C reader, None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="stoop-bench-") as name:
        program, path = str(Path(name) / "reader"), str(Path(name) / "socket")
        subprocess.run([compiler, "-O2", "-w", "-o", program, str(SOURCE)], check=True)
        with subprocess.Popen([program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            process.stdout.readline()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                yield sock
            process.stdin.close()
