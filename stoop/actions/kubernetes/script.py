"""kubernetes:script: run a script in the pod. What counts for kubernetes:exec counts here too.

That `file` exists can't be checked here: declarations do no I/O. Who loads the rules checks it (`script-file-missing`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

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


class ScriptParameters(Parameters, frozen=True):
    """The script: either its text or a file that holds it."""

    script: Annotated[
        str,
        Meta(
            description="The script's text. Either this or `file`. "
            "`${PROC_NAME}` and the like stand for fields of the alert, quoted."
        ),
    ] = ""
    file: Annotated[
        str,
        Meta(description="A file that holds the script, where the rules are loaded; it must exist then."),
    ] = ""
    shell: Annotated[str, Meta(description="The shell that runs the script.")] = "/bin/sh"


def check(params: ScriptParameters) -> Iterator[ParameterFault]:
    """Exactly one of `script` and `file`; empty counts as not given."""
    if params.script and params.file:
        yield ParameterFault("script-and-file", "script", "give either script or file, not both")
    elif not params.script and not params.file:
        yield ParameterFault("script-missing", "script", "give the script's text as script, or its path as file")


SPEC = ActionSpec(
    name="kubernetes:script",
    description="Runs a script in the containers of the pod. They must have the shell.",
    parameters=ScriptParameters,
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
- action: List what runs
  actionner: kubernetes:script
  parameters:
    shell: /bin/bash
    script: |
      ps aux
      ls -l /proc/${PROC_VPID}/fd
- rule: A reverse shell
  match:
    rules: [Redirect STDOUT/STDIN to Network Connection in Container]
  actions:
    - action: List what runs
""",
)

ACTION = Action(spec=SPEC)
