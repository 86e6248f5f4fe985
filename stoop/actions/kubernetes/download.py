"""kubernetes:download: copy a file out of the pod. It only reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.pods import EXEC_IN_POD, POD_NEEDS, READ_POD
from stoop.spec import (
    Action,
    ActionSpec,
    OutputUse,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)


class DownloadParameters(Parameters, frozen=True):
    """Which file."""

    file: Annotated[
        str,
        Meta(description="The file's path in the container. `${FD_NAME}` and the like stand for fields of the alert."),
    ]


def check(params: DownloadParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.given("file", params.file)


SPEC = ActionSpec(
    name="kubernetes:download",
    description="Copies one file out of the pod's first container that has it, and sends it to the output.",
    parameters=DownloadParameters,
    check=check,
    target=TargetKind.OBJECT,
    scope=Scope.CLUSTER,
    reach=Reach.POD,
    continue_default=True,
    output=OutputUse.REQUIRED,
    sources=("syscall",),
    needs=POD_NEEDS,
    idempotent=True,
    blocking=True,
    cluster_rights=(READ_POD, EXEC_IN_POD),
    example="""\
- action: Keep the file
  actionner: kubernetes:download
  parameters:
    file: ${FD_NAME}
  output:
    target: local:file
    parameters:
      destination: /var/log/stoop/evidence
- rule: A binary directory was written to
  match:
    rules: [Write below binary dir]
  actions:
    - action: Keep the file
""",
)

ACTION = Action(spec=SPEC)
