"""`python -m bench [ROW …]`: measure, print the table, exit 1 when a goal was missed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from bench import beside, containers, evidence, kills, network, pacing, resolve, standing, throughput
from bench.table import Row, show

ROWS: dict[str, Callable[[], Iterator[Row]]] = {
    "idle": kills.kill_idle,
    "busy": kills.kill_busy,
    "http": kills.kill_http,
    "flood": kills.kill_flood,
    "reload": kills.kill_reload,
    "ten": kills.kill_ten,
    "containers": containers.contained,
    "ndjson": throughput.ndjson,
    "rates": throughput.http,
    "match": standing.match,
    "snapshot": evidence.snapshot,
    "beside": beside.beside_slow,
    "resolve": resolve.resolve,
    "memory": standing.memory,
    "start": standing.start,
    "isolate": network.first_drop,
    "isolate-hundred": network.hundred,
    "pace": pacing.pacemaker,
}


def main(wanted: list[str]) -> int:
    """Run the rows asked for, or all."""
    unknown = sorted(set(wanted) - set(ROWS))
    if unknown:
        sys.stderr.write(f"no such row: {', '.join(unknown)} (there are {', '.join(ROWS)})\n")
        return 2
    throughput.raise_limits()
    rows: list[Row] = []
    for name in wanted or ROWS:
        for row in ROWS[name]():
            rows.append(row)
            sys.stderr.write(f"{name}: {row.measured} (goal {row.goal})\n")
    sys.stdout.write(show(rows) + "\n")
    return 1 if any(row.reached is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
