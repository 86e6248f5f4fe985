"""The settings of stores: Talon's keys, its variables, what is wrong in them, and that no secret is shown."""

from __future__ import annotations

import pytest

from stoop import config
from stoop.config import Aws, ConfigErrors, Gcp, Minio
from tests.config.conftest import Loading

TALON = """\
aws: {region: eu-west-1, access_key: ID, secret_key: AWS-SECRET, role_arn: "arn:aws:iam::1:role/r", external_id: EXT}
gcp: {credentials_path: '{"private_key": "GCP-SECRET"}'}
minio: {endpoint: "minio.example.com:9000", access_key: ID, secret_key: MINIO-SECRET, use_ssl: true}
"""


def test_talons_keys_mean_what_they_mean_there(load: Loading) -> None:
    made = load(TALON)
    assert made.warnings == ()
    assert made.aws == Aws(
        region="eu-west-1",
        access_key="ID",
        secret_key="AWS-SECRET",
        role_arn="arn:aws:iam::1:role/r",
        external_id="EXT",
    )
    assert made.gcp == Gcp(credentials_path='{"private_key": "GCP-SECRET"}')
    assert made.minio == Minio(
        endpoint="minio.example.com:9000", access_key="ID", secret_key="MINIO-SECRET", use_ssl=True
    )


def test_no_secret_is_shown(load: Loading) -> None:
    made = load(TALON)
    rows = config.printable(made)
    shown = {key: value for key, value, _ in rows}
    assert (shown["minio.secret_key"], shown["aws.secret_key"], shown["gcp.credentials_path"]) == ("***",) * 3
    assert shown["minio.endpoint"] == "minio.example.com:9000"
    assert "SECRET" not in repr(rows) + repr(made) + str(made)


def test_talons_variables_count_where_the_file_has_the_key(load: Loading) -> None:
    environ = {"MINIO_ENDPOINT": "h:1", "MINIO_ACCESS_KEY": "A", "MINIO_SECRET_KEY": "S", "MINIO_USE_SSL": "true"}
    assert load("{}", environ).minio == Minio()
    file = 'minio: {endpoint: "", access_key: "", secret_key: "", use_ssl: false}'
    assert load(file, environ).minio == Minio(endpoint="h:1", access_key="A", secret_key="S", use_ssl=True)
    assert load('aws: {region: ""}', {"AWS_REGION": "eu-west-2"}).aws == Aws(region="eu-west-2")
    assert load('gcp: {credentials_path: ""}', {"GCP_CREDENTIALS_PATH": "/k"}).gcp == Gcp(credentials_path="/k")


def test_ours_count_always_and_win(load: Loading) -> None:
    environ = {"STOOP_MINIO_ENDPOINT": "ours:1", "MINIO_ENDPOINT": "talons:1"}
    assert load("{}", environ).minio.endpoint == "ours:1"
    assert load("minio: {endpoint: file:1}", environ).minio.endpoint == "ours:1"


@pytest.mark.parametrize("endpoint", ["https://minio:9000", "minio", "minio:port", "a b:9000", "u@minio:9000"])
def test_an_endpoint_is_host_and_port(load: Loading, endpoint: str) -> None:
    with pytest.raises(ConfigErrors) as raised:
        load(f'minio:\n  endpoint: "{endpoint}"')
    assert str(raised.value) == f"{load.path}:2: minio.endpoint: not HOST:PORT (write minio.example.com:9000)"


def test_half_a_pair_of_keys_is_odd(load: Loading) -> None:
    (warning,) = load("minio: {access_key: A}").warnings
    assert (
        warning == f"{load.path}:1: minio.access_key: it means nothing without minio.secret_key: give both, or neither"
    )
