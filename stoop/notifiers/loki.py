"""loki: a line in Grafana Loki."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, field

from stoop import values
from stoop.spec import (
    NotifierSpec,
    ParameterFault,
    Parameters,
)


class LokiParameters(Parameters, frozen=True):
    """Where to, and as whom."""

    url: Annotated[str, Meta(description="URL of Loki, without the path of its API.")]
    user: Annotated[str, Meta(description="User name; used only together with `api_key`.")] = ""
    api_key: Annotated[str, Meta(description="Password or key; used only together with `user`. A secret.")] = ""
    tenant: Annotated[str, Meta(description="The tenant (`X-Scope-OrgID`). Empty: none.")] = ""
    custom_headers: Annotated[dict[str, str], Meta(description="Further headers. May hold secrets.")] = field(
        default_factory=dict
    )


def check(params: LokiParameters) -> Iterator[ParameterFault]:
    """The value rules of this notifier."""
    yield from values.url("url", params.url)


SPEC = NotifierSpec(
    name="loki",
    description="Writes a line into Grafana Loki.",
    parameters=LokiParameters,
    check=check,
    example="""\
default_notifiers: [loki]
notifiers:
  loki:
    url: http://loki.observability:3100
    tenant: security
""",
)
