"""A target that dies between each pair of steps of each act: the act says so or is done, and leaves nothing behind.

A step is whatever an act asks of the node or of a process that it holds. Before the first, the second, … the target is
killed and reaped, so that its number is free.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio

from agent.node.host import LinuxHost
from stoop.catalogue import CATALOGUE
from stoop.errors import ActFailed, TargetError, TargetGone
from stoop.node import HeldProcess
from stoop.rules.params import typed_parameters
from stoop.spec import ActContext, Begun, Outcome, Reversal, TargetKind, Verdict
from tests.real.conftest import PATIENCE_S, Box, MakeBox, Process, Spawn, alive, line

pytestmark = [pytest.mark.root, pytest.mark.real]

MAX_STEPS = 200
"""More than any act takes of a target of three processes."""

ACTS: list[tuple[str, dict[str, Any]]] = [
    ("process:kill", {}),
    ("process:kill", {"signal": "TERM"}),
    ("process:kill", {"scope": "tree"}),
    ("process:kill", {"scope": "container"}),
    ("process:suspend", {}),
    ("process:suspend", {"scope": "tree"}),
    ("container:kill", {}),
    ("container:freeze", {}),
]

TREE = "sleep 1001 & sh -c 'sleep 1002 & wait' & echo ready; wait"


class Steps:
    """Counts them, and kills before the one that a test chose."""

    def __init__(self, at: int, kill: Callable[[], None]) -> None:
        self._left = at
        self._kill = kill
        self.killed = False

    def step(self) -> None:
        """One more is about to be taken."""
        if not self._left:
            self.killed = True
            self._kill()
        self._left -= 1


class Stepping:
    """A process that is held, or the node: each call of one of its methods is a step. Letting go is none."""

    def __init__(self, real: Any, steps: Steps) -> None:
        self._real = real
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not callable(found) or name == "close":
            return found

        def call(*given: Any, **named: Any) -> Any:
            self._steps.step()
            result = found(*given, **named)
            return Stepping(result, self._steps) if name == "hold" else result

        return call


async def carried_out(actionner: str, parameters: dict[str, Any], box: Box, pid: int, steps: Steps) -> list[Outcome]:
    """The act from its first look at the target to its undo, as the responder and the holdings go through it."""
    action = CATALOGUE.actions[actionner]
    real = LinuxHost()
    host: Any = Stepping(real, steps)
    process: HeldProcess | None = None
    outcomes: list[Outcome] = []
    try:
        is_process = action.spec.target is TargetKind.PROCESS
        process = host.hold(pid) if is_process else None
        ctx = ActContext(
            host=host,
            params=typed_parameters(action.spec, parameters),
            process=process,
            container=None if is_process else host.find_container(box.container_id),
            protects=lambda facts: "",
            protects_container=lambda container: "",
            act="a",
            keep=lambda state: None,
        )
        planned = action.plan(ctx) if action.plan is not None else None
        if isinstance(planned, Outcome):
            return [planned]
        if isinstance(planned, Reversal):
            ctx = msgspec.structs.replace(ctx, reversal=planned)
        outcomes.append(await begun_and_verified(action, ctx))
        if isinstance(planned, Reversal) and action.undo is not None:
            outcomes.append(await action.undo(host, planned.state))
    except TargetGone as error:
        outcomes.append(Outcome(Verdict.SKIPPED, error.reason))
    except TargetError as error:
        outcomes.append(Outcome(Verdict.REFUSED, error.reason))
    finally:
        if process is not None:
            process.close()
        real.close()
    return outcomes


async def begun_and_verified(action: Any, ctx: ActContext) -> Outcome:
    """As the responder does it; an act that takes longer than PATIENCE_S fails the test."""
    try:
        begun = action.begin(ctx)
        if isinstance(begun, Begun):
            with trio.fail_after(PATIENCE_S):
                return await action.verify(ctx, begun)  # type: ignore[no-any-return]
    except ActFailed as error:
        return Outcome(Verdict.FAILED, error.reason)
    assert isinstance(begun, Outcome)
    return begun


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", ["hybrid"])
@pytest.mark.parametrize(("actionner", "parameters"), ACTS)
async def test_it_dies_before_each_step(
    actionner: str, parameters: dict[str, Any], kind: str, make_box: MakeBox, spawn: Spawn
) -> None:
    neighbour = spawn("sleep", "1000")
    whole = parameters.get("scope") in ("tree", "container") or actionner.startswith("container:")
    for at in range(MAX_STEPS):
        box = make_box(kind)
        victim = spawn("sh", "-c", TREE if whole else "echo ready; exec sleep 1000", preexec_fn=box.enter)
        assert line(victim) == "ready"
        steps = Steps(at, lambda box=box, victim=victim: all_of_it_dies(box, victim))  # type: ignore[misc]
        before = descriptors()
        outcomes = await carried_out(actionner, parameters, box, victim.pid, steps)
        assert {outcome.verdict for outcome in outcomes} <= {Verdict.DONE, Verdict.SKIPPED}, (at, outcomes)
        assert descriptors() == before, at
        assert not box.is_frozen(), at
        if not steps.killed:
            assert outcomes[0].verdict is Verdict.DONE, outcomes
            assert at > 2
            break
    else:
        pytest.fail(f"more than {MAX_STEPS} steps")
    assert alive(neighbour.pid)


def all_of_it_dies(box: Box, victim: Process) -> None:
    """Every process of it is killed, and the first one reaped. One that is frozen on v1 dies with the thaw."""
    for pid in box.pids():
        os.kill(pid, 9)
    if not (box.freezer is not None and box.is_frozen()):
        victim.wait(PATIENCE_S)
