"""file:quarantine: a file that a container wrote is kept as evidence and taken out of use, until it is given back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.actions.evidence.bounds import size
from stoop.actions.holding import Ttl, check_ttl
from stoop.spec import (
    ActionSpec,
    OutputUse,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)
from stoop.units import parse_size

MAX_FILE = 1024**3
"""Bytes: a file is taken away only when it is kept whole, and the store holds 4 GiB."""


class QuarantineParameters(Parameters, frozen=True):
    """Which file, and until when."""

    file: Annotated[
        str,
        Meta(description="The file's path in the container. `${FD_NAME}` and the like stand for fields of the alert."),
    ]
    image_files: Annotated[
        bool,
        Meta(
            description="`true`: also a file of the image, such as its shell. Only this container's view of it is "
            "taken away, but what needs it breaks."
        ),
    ] = False
    max_bytes: Annotated[str, Meta(description="A larger file is refused, and left where it is. At most 1GiB.")] = (
        "256MiB"
    )
    ttl: Ttl = "24h"

    @property
    def bytes(self) -> int:
        """Of the file."""
        return parse_size(self.max_bytes)


def check(params: QuarantineParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.given("file", params.file)
    yield from size("max_bytes", params.max_bytes, MAX_FILE, "1GiB", least=1)
    yield from check_ttl(params.ttl)


SPEC = ActionSpec(
    name="file:quarantine",
    description="Keeps a file of the container in a bundle, then takes its permissions away and renames it in its "
    "directory to `.stoop-quarantine-ACT`. Only a regular file with one name on the container's own overlay: nothing "
    "on a volume or hostPath, nothing of the node's. What runs already runs on, and root in the container can rename "
    "it back: it stops what is started by that name. After `ttl` it has its name and permissions again.",
    parameters=QuarantineParameters,
    check=check,
    target=TargetKind.CONTAINER,
    scope=Scope.NODE,
    reach=Reach.CONTAINER,
    continue_default=True,
    sources=("syscall",),
    reversible=True,
    # A moved file is on disk.
    outlives_boot=True,
    destroys=True,
    idempotent=True,
    blocking=True,
    output=OutputUse.ALLOWED,
    # The root of another user's process; its files, whoever owns them; their mode.
    node_rights=("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_FOWNER"),
    example="""\
- action: Take the program away
  actionner: file:quarantine
  parameters:
    file: ${PROC_EXEPATH}
    ttl: 24h
- rule: A binary that the image did not hold was run
  match:
    rules: [Drop and execute new binary in container]
  actions:
    - action: Take the program away
""",
)
