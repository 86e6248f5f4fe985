"""aws:lambda: call an AWS Lambda function with the alert.

What the function does is not known here: it counts as not destroying, and as neither repeatable nor reversible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta

from stoop import values
from stoop.spec import (
    Action,
    ActionSpec,
    ParameterFault,
    Parameters,
    Reach,
    Scope,
    TargetKind,
)

INVOCATION_TYPES = ("RequestResponse", "Event", "DryRun")


class LambdaParameters(Parameters, frozen=True):
    """Which function, and how to call it."""

    aws_lambda_name: Annotated[str, Meta(description="Name or ARN of the function.")]
    aws_lambda_alias_or_version: Annotated[
        str, Meta(description="Alias or version of the function, as text (`'3'`). Taken literally.")
    ] = "$LATEST"
    aws_lambda_invocation_type: Annotated[
        str,
        Meta(
            description="`RequestResponse` waits for the answer, `Event` only hands the alert over, "
            "`DryRun` only checks that the call is permitted."
        ),
    ] = "RequestResponse"


def check(params: LambdaParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.given("aws_lambda_name", params.aws_lambda_name)
    yield from values.choice("aws_lambda_invocation_type", params.aws_lambda_invocation_type, INVOCATION_TYPES)


SPEC = ActionSpec(
    name="aws:lambda",
    description="Calls an AWS Lambda function with the alert as its payload (JSON).",
    parameters=LambdaParameters,
    check=check,
    target=TargetKind.NONE,
    scope=Scope.CLUSTER,
    reach=Reach.NONE,
    continue_default=True,
    blocking=True,
    cloud_rights=("lambda:GetFunction", "lambda:InvokeFunction"),
    example="""\
- action: Call the function
  actionner: aws:lambda
  parameters:
    aws_lambda_name: quarantine
    aws_lambda_invocation_type: Event
- rule: A critical alert
  match:
    priority: ">=Critical"
  actions:
    - action: Call the function
""",
)

ACTION = Action(spec=SPEC)
