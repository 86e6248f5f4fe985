"""An agent's status for a person. Pure: takes the mapping of the control socket; what is missing is left out.

What is worth waking someone for is a *finding*: `stoop status` then exits with 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from stoop.cli.screen import OUTCOME_STYLES, text
from stoop.log import timestamp

STALE_LAG = 10_000
"""Records not yet in the database above which its writer is said to be behind: some seconds of the worst load."""


def findings(status: Mapping[str, Any]) -> list[str]:
    """Everything that is not as it should be, one line each."""
    return [line for line in _findings(status) if line]


def _findings(status: Mapping[str, Any]) -> Iterator[str]:
    if status.get("ready") is False:
        yield "not ready: rules or an intake are missing"
    for name, reason in _part(status, "out_of_reach").items():
        yield f"intake {name} can't be reached: {reason}"
    mode = status.get("mode")
    if mode in ("off", "observe"):
        yield f"mode is {mode}: nothing is done (`stoop mode enforce`)"
    rules = _part(status, "rules")
    if rules.get("count") == 0:
        yield "no rules are loaded"
    if error := rules.get("last_error"):
        yield f"the rules files can't be used, the old rules stay: {_value(error)}"
    for actionner, lack in _part(status, "unavailable").items():
        if isinstance(lack, Mapping) and lack.get("rules"):
            needing = ", ".join(map(str, lack["rules"]))
            yield f"{actionner} can't be done on this node: {_value(lack.get('reason'))}; rules need it: {needing}"
    yield from _pods_findings(_part(status, "pods"))
    for rule, reason in _part(status, "disarmed").items():
        yield f"disarmed: {rule}: {reason} (`stoop arm`)"
    for act, trouble in _part(_part(status, "holds"), "trouble").items():
        yield f"held by act {str(act)[:12]}: {trouble} (`stoop active`)"
    for store, trouble in _part(_part(status, "deliveries"), "trouble").items():
        yield f"evidence can't be sent to {store}: {_value(trouble)}; it is tried again"
    yield from _vitals_findings(_part(status, "heartbeat"), _part(status, "pacemaker"))
    journal = _part(status, "journal")
    if error := journal.get("error"):
        yield f"the journal can't be written: {error}"
    if lost := journal.get("lost"):
        yield f"records lost: {lost}"
    lag = journal.get("lag")
    if isinstance(lag, int | float) and lag > STALE_LAG:
        yield f"the journal is {lag:g} records behind"
    if "helper" in status and not _part(status, "helper").get("pid"):
        yield "the helper is not running: no metrics, no reload"


def _pods_findings(pods: Mapping[str, Any]) -> Iterator[str]:
    needing = ", ".join(map(str, pods["rules"])) if isinstance(pods.get("rules"), list) else ""
    if pods.get("source") == "none" and needing:
        yield f"labels, annotations and owners of pods are not known here (pods.source); rules need them: {needing}"
    if error := pods.get("error"):
        yield f"labels, annotations and owners of pods can't be asked for: {_value(error)}"
    if pods.get("stale") and isinstance(age_s := pods.get("age_s"), int | float):
        yield f"labels, annotations and owners of pods are {_span(age_s)} old"
    if pods.get("listed") and not pods.get("known") and pods.get("unknown"):
        yield f"no pod of node {pods.get('node')} is known to {pods.get('source')}: is that its name (node_name)?"
    if left_out := pods.get("left_out"):
        yield f"{left_out} pods are left out: there are more on this node than are kept"


def _vitals_findings(heartbeat: Mapping[str, Any], pacemaker: Mapping[str, Any]) -> Iterator[str]:
    if trouble := heartbeat.get("trouble"):
        yield f"the heartbeat's beacon can't be touched: {_value(trouble)}"
    if heartbeat.get("alive") is False:
        last_s = heartbeat.get("last_s")
        last = f"the last {_span(last_s)} ago" if isinstance(last_s, int | float) else "none so far"
        yield f"Falco is silent: heartbeats do not come back, {last} (`stoop falco-config` prints the rule)"
    if pacemaker and not pacemaker.get("pid"):
        yield "the pacemaker is not running: alerts of a quiet node come up to 30 ms later"


def status_lines(status: Mapping[str, Any]) -> Iterator[Text]:
    """The lines of `stoop status`: a word on the left, what there is to say on the right."""
    for name, said in (
        ("agent", _agent(status)),
        ("mode", _mode(status)),
        ("rules", _rules(status)),
        ("intake", _intakes(status)),
        ("metrics", _address(_part(status, "metrics"))),
        ("control", str(status.get("control") or "")),
        ("counts", _counts(status)),
        ("queue", _value(status.get("queue"))),
        ("held", str(_part(status, "holds").get("count") or "")),
        ("to send", str(_part(status, "deliveries").get("waiting") or "")),
        ("feed", _feed(status)),
        ("heart", _heartbeat(_part(status, "heartbeat"))),
        ("pace", _pacemaker(_part(status, "pacemaker"))),
        ("pods", _pods(_part(status, "pods"))),
        ("clock", _clock(status)),
        ("journal", _pairs(_part(status, "journal"))),
        ("last end", _recovery(_part(status, "recovery"))),
        ("helper", _pairs(_part(status, "helper"))),
    ):
        if said:
            yield text((f"{name:<9}", "bold"), said)
    outcomes = _part(_part(status, "counts"), "outcomes")
    if outcomes:
        line = Text("outcomes ", style="bold")
        for outcome, count in outcomes.items():
            line.append_text(text((f"{outcome} {count}  ", OUTCOME_STYLES.get(str(outcome), ""))))
        yield line


def until(at_ns: object) -> str:
    """` until TIME` of nanoseconds since the epoch; "" for 0 and for nothing."""
    return f" until {timestamp(at_ns)}" if isinstance(at_ns, int) and at_ns else ""


def _part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = status.get(name)
    return part if isinstance(part, Mapping) else {}


def _agent(status: Mapping[str, Any]) -> str:
    said = []
    if version := status.get("version"):
        said.append(f"stoop {version}")
    if node := status.get("node"):
        said.append(f"on {node}")
    if pid := status.get("pid"):
        said.append(f"pid {pid}")
    if "ready" in status:
        said.append("ready" if status["ready"] else "not ready")
    if isinstance(uptime := status.get("uptime_s"), int | float):
        said.append(f"up {_span(uptime)}")
    return ", ".join(said)


def _mode(status: Mapping[str, Any]) -> str:
    mode = status.get("mode")
    return f"{mode}{until(status.get('mode_until_ns'))}" if mode else ""


def _rules(status: Mapping[str, Any]) -> str:
    rules = _part(status, "rules")
    said = [f"{rules['count']} loaded"] if "count" in rules else []
    if at_ns := rules.get("loaded_at_ns"):
        said.append(f"at {timestamp(at_ns)}")
    if digest := rules.get("digest"):
        said.append(f"digest {str(digest)[:12]}")
    return ", ".join(said)


def _intakes(status: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_address(at)}" for name, at in _part(status, "intakes").items())


def _address(at: object) -> str:
    """`address:port` of a mapping, or what there is."""
    if isinstance(at, Mapping):
        if not at:
            return ""
        host = str(at.get("address", ""))
        return f"[{host}]:{at.get('port')}" if ":" in host else f"{host}:{at.get('port')}"
    return str(at)


def _counts(status: Mapping[str, Any]) -> str:
    counts = {name: value for name, value in _part(status, "counts").items() if name != "outcomes"}
    return _pairs(counts)


def _feed(status: Mapping[str, Any]) -> str:
    feed = _part(status, "feed")
    said = []
    if isinstance(silence := feed.get("silence_s"), int | float):
        said.append(f"last alert {_span(silence)} ago")
    if "peers" in feed:
        said.append(f"senders {_count(feed['peers'])}")
    return ", ".join(said)


def _heartbeat(heartbeat: Mapping[str, Any]) -> str:
    if not heartbeat:
        return ""
    alive = heartbeat.get("alive")
    said = ["alive" if alive else "silent" if alive is False else "no beat answered yet"]
    if missed := heartbeat.get("missed_total"):
        said.append(f"{missed} missed")
    for pace, lag in _part(heartbeat, "lag_ms").items():
        with_it = "" if pace == "off" else f" (pacemaker {pace})"
        said.append(f"lag {_number(lag, 'p50')} ms, at most {_number(lag, 'max')}{with_it}")
    return ", ".join(said)


def _pacemaker(pacemaker: Mapping[str, Any]) -> str:
    if not pacemaker:
        return ""
    said = [str(pacemaker.get("state", ""))]
    rate, cpu = pacemaker.get("rate"), pacemaker.get("cpu")
    if rate and isinstance(cpu, int | float):
        said.append(f"{rate} calls/s for {100 * cpu:.1f} % of a core")
    if restarts := pacemaker.get("restarts"):
        said.append(f"started again {restarts} times")
    return ", ".join(said)


def _pods(pods: Mapping[str, Any]) -> str:
    if "known" not in pods:
        return ""
    said = [f"{pods['known']} known from {pods.get('source')}"]
    if pods.get("listed") is False:
        said.append("not listed yet")
    elif isinstance(age_s := pods.get("age_s"), int | float):
        said.append(f"{_span(age_s)} old")
    return ", ".join(said)


def _number(part: object, name: str) -> str:
    value = part.get(name) if isinstance(part, Mapping) else None
    return f"{value:.2f}" if isinstance(value, int | float) else "?"


def _clock(status: Mapping[str, Any]) -> str:
    clock = _part(status, "clock")
    said = []
    if isinstance(offset := clock.get("offset_ms"), int | float):
        sure = "" if clock.get("established", True) else " (not yet established)"
        said.append(f"Falco's is {offset:+.2f} ms from ours{sure}")
    if steps := clock.get("steps"):
        said.append(f"{steps} steps noticed")
    return ", ".join(said)


def _recovery(recovery: Mapping[str, Any]) -> str:
    """How the agent before this one ended, and what that may have cost."""
    if not recovery:
        return ""
    said = ["in order" if recovery.get("clean") else "not in order (killed, or the machine went down)"]
    if unfinished := recovery.get("unfinished"):
        said.append(f"{_count(unfinished)} acts under way then (`stoop history`)")
    if window := _part(recovery, "window"):
        most = "an unknown number of" if window.get("at_most") is None else f"at most {window['at_most']}"
        times = [timestamp(window.get(name) or 0) for name in ("from_ns", "to_ns")]
        said.append(f"{most} accepted alerts lost between {times[0]} and {times[1]}, and what lay unread")
    return ", ".join(said)


def _pairs(part: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in part.items() if value not in (None, "", [], {}))


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return _pairs(value)
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return "" if value is None else str(value)


def _count(value: object) -> object:
    return len(value) if isinstance(value, list | tuple | Mapping) else value


def _span(seconds: float) -> str:
    """`42 s`, `17 min`, `3.5 h` or `12 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
