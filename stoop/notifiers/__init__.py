"""Who can be told: one file a notifier, one line here. Their settings stand in the configuration, under `notifiers`."""

from __future__ import annotations

from stoop.notifiers import elasticsearch, k8sevents, loki, slack, smtp, webhook
from stoop.spec import (
    NotifierSpec,
)

NOTIFIERS: tuple[NotifierSpec, ...] = (
    k8sevents.SPEC,
    slack.SPEC,
    webhook.SPEC,
    smtp.SPEC,
    loki.SPEC,
    elasticsearch.SPEC,
)
