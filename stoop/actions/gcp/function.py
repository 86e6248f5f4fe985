"""gcp:function: call a Google Cloud function with the alert.

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


class FunctionParameters(Parameters, frozen=True):
    """Which function, and how long to wait for it."""

    gcp_function_name: Annotated[str, Meta(description="Name of the function.")]
    gcp_function_location: Annotated[str, Meta(description="Location of the function (`us-central1`).")]
    gcp_function_timeout: Annotated[
        int, Meta(description="Seconds to wait for the answer. 0: as long as the act may take.")
    ] = 0


def check(params: FunctionParameters) -> Iterator[ParameterFault]:
    """The value rules of this action."""
    yield from values.given("gcp_function_location", params.gcp_function_location)
    yield from values.given("gcp_function_name", params.gcp_function_name)


SPEC = ActionSpec(
    name="gcp:function",
    description="Calls a Google Cloud function (2nd generation) with the alert as its body (JSON).",
    parameters=FunctionParameters,
    check=check,
    target=TargetKind.NONE,
    scope=Scope.CLUSTER,
    reach=Reach.NONE,
    continue_default=True,
    blocking=True,
    # A function of the 2nd generation is a Cloud Run service: calling it takes the right on the route, not
    # cloudfunctions.functions.invoke (docs.cloud.google.com, "Authenticate for invocation").
    cloud_rights=("cloudfunctions.functions.get", "run.routes.invoke"),
    example="""\
- action: Call the function
  actionner: gcp:function
  parameters:
    gcp_function_name: quarantine
    gcp_function_location: us-central1
- rule: A critical alert
  match:
    priority: ">=Critical"
  actions:
    - action: Call the function
""",
)

ACTION = Action(spec=SPEC)
