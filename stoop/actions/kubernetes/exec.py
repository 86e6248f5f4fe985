"""kubernetes:exec: run a command in the pod's containers.

It counts as not destroying, because what it does is the rule author's command and not known here; for the same reason
it counts as neither repeatable nor reversible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import EXEC_IN_POD, POD_NEEDS, READ_POD
from stoop.spec import (
    Action,
    ActionSpec,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)


class ExecParameters(Parameters, frozen=True):
    """What to run, and by which shell."""

    command: Annotated[
        str,
        Meta(description="The command line. `${PROC_NAME}` and the like stand for fields of the alert, quoted."),
    ]
    shell: Annotated[str, Meta(description="The shell that runs it with `-c`.")] = "/bin/sh"


def check(params: ExecParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.given("command", params.command)


SPEC = ActionSpec(
    name="kubernetes:exec",
    description="Runs a command in the containers of the pod. They must have the shell.",
    parameters=ExecParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.POD,
    continue_default=True,
    sources=("syscall", "k8s_audit"),
    needs=POD_NEEDS,
    blocking=True,
    cluster_rights=(READ_POD, EXEC_IN_POD),
    example="""\
- action: Remove the new binary
  actionner: kubernetes:exec
  parameters:
    command: rm -f ${PROC_EXEPATH}
- rule: A binary that the image did not hold was run
  match:
    rules: [Drop and execute new binary in container]
  actions:
    - action: Remove the new binary
""",
)

ACTION = Action(spec=SPEC)
