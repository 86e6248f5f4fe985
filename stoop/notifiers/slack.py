"""slack: a message by an incoming webhook of Slack."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.spec import (
    NotifierSpec,
    ParameterFault,
    Parameters,
)


class SlackParameters(Parameters, frozen=True):
    """Where to, and how it looks."""

    webhook_url: Annotated[str, Meta(description="URL of the incoming webhook. A secret.")]
    icon: Annotated[str, Meta(description="URL of the sender's picture. Empty: the webhook's own.")] = ""
    username: Annotated[str, Meta(description="The sender's name.")] = "Stoop"
    footer: Annotated[str, Meta(description="Text at the foot of the message. Empty: none.")] = ""
    format: Annotated[str, Meta(description="`long`: a field for each thing that is known. `short`: one line.")] = (
        "long"
    )


def check(params: SlackParameters) -> Iterator[ParameterFault]:
    """The value rules of this notifier."""
    yield from values.url("webhook_url", params.webhook_url)
    yield from values.choice("format", params.format, ("long", "short"))


SPEC = NotifierSpec(
    name="slack",
    description="Sends a message to a channel of Slack, coloured by the outcome.",
    parameters=SlackParameters,
    check=check,
    example="""\
default_notifiers: [slack]
notifiers:
  slack:
    webhook_url: https://hooks.slack.example.com/services/T0/B0/secret
    format: short
""",
)
