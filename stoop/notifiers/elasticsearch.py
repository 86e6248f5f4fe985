"""elasticsearch: a document in Elasticsearch."""

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


class ElasticsearchParameters(Parameters, frozen=True):
    """Where to, as whom, and into which index."""

    url: Annotated[str, Meta(description="URL of Elasticsearch.")]
    user: Annotated[str, Meta(description="User name. Empty: no authentication.")] = ""
    password: Annotated[str, Meta(description="Password. A secret.")] = ""
    # Talon's, so that what is there goes on in the same index.
    index: Annotated[str, Meta(description="Name of the index, before its suffix.")] = "falco-talon"
    suffix: Annotated[
        str, Meta(description="How often a new index begins: `daily`, `monthly`, `annually` or `none`.")
    ] = "daily"
    create_index_template: Annotated[
        bool, Meta(description="Whether to make the index template if it is not there.")
    ] = True
    number_of_shards: Annotated[int, Meta(description="Shards of an index that the template makes, at least 1.")] = 3
    number_of_replicas: Annotated[
        int, Meta(description="Replicas of an index that the template makes, at least 1.")
    ] = 3
    custom_headers: Annotated[dict[str, str], Meta(description="Further headers. May hold secrets.")] = field(
        default_factory=dict
    )


def check(params: ElasticsearchParameters) -> Iterator[ParameterFault]:
    """The value rules of this notifier."""
    yield from values.url("url", params.url)
    yield from values.choice("suffix", params.suffix, ("daily", "monthly", "annually", "none"))
    yield from values.number("number_of_shards", params.number_of_shards, 1)
    yield from values.number("number_of_replicas", params.number_of_replicas, 1)


SPEC = NotifierSpec(
    name="elasticsearch",
    description="Writes the record of the act into an index of Elasticsearch.",
    parameters=ElasticsearchParameters,
    check=check,
    example="""\
default_notifiers: [elasticsearch]
notifiers:
  elasticsearch:
    url: https://elasticsearch.observability:9200
    user: stoop
    password: secret
    suffix: monthly
""",
)
