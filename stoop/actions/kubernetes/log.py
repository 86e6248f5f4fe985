"""kubernetes:log: fetch the last lines of the pod's log. It only reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import POD_NEEDS, READ_POD
from stoop.spec import (
    Action,
    ActionSpec,
    ClusterRight,
    OutputUse,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)


class LogParameters(Parameters, frozen=True):
    """How much of the log."""

    tail_lines: Annotated[int, Meta(description="How many of the last lines. 0 means 20.")] = 20


def check(params: LogParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.number("tail_lines", params.tail_lines, 0)


SPEC = ActionSpec(
    name="kubernetes:log",
    description="Fetches the last log lines of the pod's first container that has any. Without an output they go to "
    "the record of the act.",
    parameters=LogParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.POD,
    continue_default=True,
    output=OutputUse.ALLOWED,
    sources=("syscall", "k8s_audit"),
    needs=POD_NEEDS,
    idempotent=True,
    cluster_rights=(READ_POD, ClusterRight(group="", resources=("pods/log",), verbs=("get",))),
    example="""\
- action: Keep the log
  actionner: kubernetes:log
  parameters:
    tail_lines: 200
  output:
    target: aws:s3
    parameters:
      bucket: evidence
      prefix: logs
- rule: A sensitive file was read
  match:
    rules: [Read sensitive file untrusted]
  actions:
    - action: Keep the log
""",
)

ACTION = Action(spec=SPEC)
