"""For test_journal_kill.py: an agent reduced to its journal, made to be killed. Usage: STATE_DIR TRUTH_FILE.

The "act" is one line appended to the truth file: like a signal it has happened once the system call returns. Each start
goes 100 alerts back, as a followed file does, and must not repeat an act.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path

import msgspec

from stoop.journal import Intent, Journal
from stoop.record import Record, Timing
from stoop.spec import (
    Verdict,
)


def warn(event: str, **fields: object) -> None:
    sys.exit(f"{event} {fields}")


def record(number: int, verdict: Verdict, received_ns: int) -> Record:
    name = f"{number:032x}"
    return Record(name, name, name, "a rule", "an action", "process:kill", verdict, "", {}, Timing(0, received_ns))


def main(state_dir: str, truth_file: str) -> None:
    begun = [int(line.split()[1]) for line in Path(truth_file).read_text().splitlines()]
    truth = os.open(truth_file, os.O_WRONLY | os.O_APPEND)
    journal = Journal(state_dir, max_age_s=0, max_bytes=0, warn=warn)
    recovery = journal.open()
    done = {int(act, 16) for act in recovery.recent_acts}
    found = {
        "window": msgspec.to_builtins(recovery.window),
        "unfinished": [int(record.act, 16) for record in recovery.unfinished],
    }
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    for number in itertools.count(max(max(begun, default=0) - 100, 1)):
        now_ns = time.time_ns()
        journal.accepted(1, now_ns)
        if number not in done:
            os.write(truth, f"accepted {number} {now_ns}\n".encode())
            if number % 3:
                name = f"{number:032x}"
                intent = Intent(
                    name, name, name, "a rule", "an action", "process:kill", "", number, 0, 0, now_ns, now_ns
                )
                slot = journal.reserve(intent)
                os.write(truth, f"act {number}\n".encode())
                journal.acted(slot)
                os.write(truth, f"stamped {number}\n".encode())
                journal.put(record(number, Verdict.DONE, now_ns), slot)
            else:
                journal.put(record(number, Verdict.SKIPPED, now_ns))
        journal.settled(1, now_ns)
        os.write(1, b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
