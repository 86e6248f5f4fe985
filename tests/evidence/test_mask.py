"""What of an environment is hidden, and what must stay to be seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoop.evidence.mask import is_secret_name, mask_environment, mask_value, mask_variable

SECRET = b"""DB_PASSWORD PGPASSWORD MYSQL_PWD GITHUB_TOKEN githubToken SECRET SECRET_KEY AWS_SECRET_ACCESS_KEY
    API_KEY APIKEY X_API_KEY STRIPE_KEY private_key PASSPHRASE CREDENTIALS DB_CREDS BASIC_AUTH AUTHORIZATION HTTP_AUTH
    COOKIE SESSION_ID JWT SENTRY_DSN SLACK_WEBHOOK_URL CONNECTION_STRING KUBECONFIG AWS_ACCESS_KEY_ID DB_PASS
    ENCRYPTION_KEY SIGNING_KEY""".split()
SEEN = b"""PATH HOME PWD OLDPWD LD_PRELOAD LD_LIBRARY_PATH SSH_AUTH_SOCK HOSTNAME LANG KUBERNETES_SERVICE_HOST AUTHOR
    SHLVL TERM BYPASS COMPASS KEYBOARD MONKEY_TYPE""".split()


@pytest.mark.parametrize("name", SECRET)
def test_names_of_secrets(name: bytes) -> None:
    assert is_secret_name(name)
    assert mask_variable(name + b"=hunter2") == name + b"=*** (7 bytes)"
    assert mask_variable(name + b"=") == name + b"="


@pytest.mark.parametrize("name", SEEN)
def test_names_of_none(name: bytes) -> None:
    assert mask_variable(name + b"=value") == name + b"=value"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"postgres://user:hunter2@db:5432/x", b"postgres://user:***@db:5432/x"),
        (b"http://db:5432/a@b", b"http://db:5432/a@b"),
        (b"a -----BEGIN RSA PRIVATE KEY-----\nMIIE\n", b"a ***"),
        (b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln", b"***"),
        (b"id AKIAIOSFODNN7EXAMPLE.", b"id ***."),
        (b"ghp_" + b"a" * 36, b"***"),
        (b"\xff\x00 any", b"\xff\x00 any"),
    ],
)
def test_values_that_are_secrets_by_themselves(value: bytes, kept: bytes) -> None:
    assert mask_value(value) == kept
    assert mask_variable(b"OTHER=" + value) == b"OTHER=" + kept


def test_a_whole_environment() -> None:
    block = b"A=1\0TOKEN=abc\0\0no pair\0B=\xff\0"
    assert mask_environment(block) == [b"A=1", b"TOKEN=*** (3 bytes)", b"no pair", b"B=\xff"]
    assert mask_environment(b"") == []


@given(st.binary(max_size=300))
def test_a_secrets_value_never_shows(value: bytes) -> None:
    assert mask_variable(b"TOKEN=" + value) == (b"TOKEN=*** (%d bytes)" % len(value) if value else b"TOKEN=")
