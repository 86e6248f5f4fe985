"""local:file: a folder on the machine that carries the act out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.spec import (
    OutputSpec,
    ParameterFault,
    Parameters,
)


class LocalFileParameters(Parameters, frozen=True):
    """Which folder."""

    destination: Annotated[
        str,
        Meta(
            description="The folder: an absolute path to a directory that exists, through no symbolic link, and "
            "not in the agent's own state directory."
        ),
    ]


def check(params: LocalFileParameters) -> Iterator[ParameterFault]:
    """The value rules of this output."""
    yield from values.given("destination", params.destination)
    if params.destination and "\0" in params.destination:
        yield ParameterFault("param-value", "destination", "destination holds a NUL byte, which no path does")


SPEC = OutputSpec(
    name="local:file",
    description="Writes the data into a folder, readable by its owner only (mode 0600).",
    parameters=LocalFileParameters,
    check=check,
    example="""\
- rule: A binary directory was written to
  match:
    rules: [Write below binary dir]
  actions:
    - action: Keep the file
      actionner: kubernetes:download
      parameters:
        file: ${FD_NAME}
      output:
        target: local:file
        parameters:
          destination: /var/log/stoop/evidence
""",
)
