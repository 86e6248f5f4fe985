"""The courier against real stores: what it puts there, what it needs for that, and what becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.carry import sts
from agent.dispatch import Dispatch
from agent.letters import Fate, Send, Sent, Setup
from tests.real.conftest import PATIENCE_S, await_that
from tests.real.stores.bundles import MIB, PART, make_bundle
from tests.real.stores.servers import BUCKET, REGION, SECRET, USER, Google, Minio, Moto, Server, running

GROWTH_KIB = 16 * 1024
"""How much memory a courier may take beyond a small thing's, whatever the size."""

EACH_SERVER = pytest.mark.parametrize("kind", [Moto, Minio, Google], ids=lambda kind: kind.name)


def setup_for(target: Server) -> Setup:
    """As the reflex makes it of stoop.yaml."""
    minio = target.settings.get("minio", {})
    return Setup(
        gcp_credentials=target.settings.get("gcp", {}).get("credentials_path", ""),
        minio_endpoint=minio.get("endpoint", ""),
        minio_access_key=minio.get("access_key", ""),
        minio_secret_key=minio.get("secret_key", ""),
        minio_use_ssl=minio.get("use_ssl", False),
    )


@contextlib.asynccontextmanager
async def dispatching(setup: Setup, idle_s: float = 60.0) -> AsyncIterator[Dispatch]:
    """A dispatch that is served."""
    dispatch = Dispatch(lambda: setup, lambda pid: None, lambda *words, **fields: None, idle_s)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(dispatch.serve)
        await trio.testing.wait_all_tasks_blocked()
        yield dispatch
        nursery.cancel_scope.cancel()


def looks(pid: int) -> tuple[str, bytes]:
    """Its status, and what it was started with (proc(5))."""
    of = Path(f"/proc/{pid}")
    return (of / "status").read_text(), (of / "cmdline").read_bytes() + (of / "environ").read_bytes()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it, with a bound."""
    for _ in range(int(PATIENCE_S * 1000)):
        if condition():
            return
        await trio.sleep(0.001)
    raise AssertionError("not seen in time")


def letter(target: str, key: str = "one", part: str = PART, bucket: str = BUCKET) -> Send:
    return Send(0, target, bucket, "", key, part, 60.0)


async def send(dispatch: Dispatch, bundle: Path, letter: Send) -> Sent:
    fd = os.open(bundle, os.O_RDONLY)
    try:
        return await dispatch.send(letter, fd)
    finally:
        os.close(fd)


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    """Have a courier find what a server asks for in its environment."""

    def use(target: Server) -> None:
        for name, value in target.environment.items():
            monkeypatch.setenv(name, value)

    return use


@EACH_SERVER
async def test_one_part_and_the_whole(kind: type[Server], tmp_path: Path, environ: Callable[[Server], None]) -> None:
    with running(kind, tmp_path / "store") as target:
        environ(target)
        bundle = make_bundle(tmp_path)
        async with dispatching(setup_for(target)) as dispatch:
            sent = await send(dispatch, bundle, letter(target.name, "part"))
            assert (sent.fate, sent.reason, sent.bytes) == (Fate.SENT, "", 17)
            sent = await send(dispatch, bundle, letter(target.name, "whole", ""))
            assert (sent.fate, sent.sha256) == (Fate.SENT, sha256(bundle.read_bytes()).hexdigest())
            again = await send(dispatch, bundle, letter(target.name, "whole", ""))
            assert again.fate is Fate.SENT
            assert again.reason == ""
            none = await send(dispatch, bundle, letter(target.name, "none", "no/such"))
            assert (none.fate, none.reason) == (
                Fate.NEVER,
                "the bundle is not as it was written: it has no part 'no/such'",
            )
        assert target.objects() == {"part": b"what was captured", "whole": bundle.read_bytes()}


@EACH_SERVER
async def test_odd_names(kind: type[Server], tmp_path: Path, environ: Callable[[Server], None]) -> None:
    names = ["cases/one", "a b/ü~'!*()/one", "%41#?&+=;,@/one", "x" * 500]
    with running(kind, tmp_path / "store") as target:
        environ(target)
        bundle = make_bundle(tmp_path)
        async with dispatching(setup_for(target)) as dispatch:
            sent = [(await send(dispatch, bundle, letter(target.name, name))).reason for name in names[:3]]
            assert sent == ["", "", ""]
            long = await send(dispatch, bundle, letter(target.name, names[3]))  # what a store refuses is told
        assert set(names[:3]) <= set(target.objects())
        assert (long.fate is Fate.SENT) is (names[3] in target.objects())


@pytest.mark.parametrize("kind", [Minio, Google], ids=lambda kind: kind.name)
async def test_memory_does_not_grow_with_what_is_sent(
    kind: type[Server], tmp_path: Path, environ: Callable[[Server], None]
) -> None:
    with running(kind, tmp_path / "store") as target:
        bundle = make_bundle(tmp_path, mib=256)
        async with dispatching(setup_for(target)) as dispatch:
            small = await send(dispatch, bundle, letter(target.name, "small", "log.txt"))
            assert small.fate is Fate.SENT
            before = peak_kib(dispatch.pid)
            sent = await send(dispatch, bundle, letter(target.name, "big"))
            grown = peak_kib(dispatch.pid) - before
        assert (sent.fate, sent.bytes) == (Fate.SENT, 256 * MIB), sent.reason
        assert grown < GROWTH_KIB, f"{grown} KiB"
        assert sha256(target.objects()["big"]).hexdigest() == sent.sha256


@pytest.mark.parametrize("mib", [0, 12], ids=["one request", "several"])
async def test_a_damaged_bundle_is_never_sent(mib: int, tmp_path: Path) -> None:
    with running(Minio, tmp_path / "store") as target:
        bundle = make_bundle(tmp_path, mib)
        data = bytearray(bundle.read_bytes())
        at = len(data) // 2 if mib else 60
        data[at] ^= 0xFF
        bundle.write_bytes(data)
        async with dispatching(setup_for(target)) as dispatch:
            for part in (PART, ""):
                sent = await send(dispatch, bundle, letter(target.name, "one", part))
                assert sent.fate is Fate.NEVER
                assert sent.reason.startswith("the bundle is not as it was written: ")
        assert target.objects() == {}


@EACH_SERVER
async def test_no_bucket(kind: type[Server], tmp_path: Path, environ: Callable[[Server], None]) -> None:
    with running(kind, tmp_path / "store") as target:
        environ(target)
        bundle = make_bundle(tmp_path)
        async with dispatching(setup_for(target)) as dispatch:
            sent = await send(dispatch, bundle, letter(target.name, bucket="no-such-bucket"))
        assert sent.fate is Fate.MEND
        assert "AccessDenied" in sent.reason if target.name == "gcp:gcs" else "NoSuchBucket" in sent.reason


async def test_nobody_there(tmp_path: Path) -> None:
    target = Minio(tmp_path / "store")
    bundle = make_bundle(tmp_path)
    async with dispatching(setup_for(target)) as dispatch:
        sent = await send(dispatch, bundle, letter("minio:s3"))
    assert sent.fate is Fate.LATER
    assert sent.reason.startswith("it can't be reached: ")


@pytest.mark.root
async def test_it_has_no_rights_and_ends_with_what_it_is_for(tmp_path: Path) -> None:
    with running(Minio, tmp_path / "store") as target:
        bundle = make_bundle(tmp_path)
        async with dispatching(setup_for(target), idle_s=1.0) as dispatch:
            assert dispatch.pid == 0
            fates = []

            async def one() -> None:
                fates.append((await send(dispatch, bundle, letter("minio:s3"))).fate)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                await until(lambda: bool(dispatch.pid))
                status, told = looks(dispatch.pid)
            assert fates == [Fate.SENT]
            await until(lambda: not dispatch.pid)
        found = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert found["Uid"].split() == ["65534"] * 4
        assert found["Gid"].split() == ["65534"] * 4
        assert found["Groups"].strip() == ""
        assert (found["CapEff"], found["CapPrm"], found["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
        assert SECRET.encode() not in told


async def test_one_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    with running(Minio, tmp_path / "store") as target:
        bundle = make_bundle(tmp_path, mib=64)
        async with dispatching(setup_for(target)) as dispatch:
            assert (await send(dispatch, bundle, letter("minio:s3", "small", "log.txt"))).fate is Fate.SENT
            fates: list[Sent] = []

            async def one() -> None:
                fates.append(await send(dispatch, bundle, letter("minio:s3", "big")))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(one)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(dispatch.pid, signal.SIGKILL)
            assert (fates[0].fate, fates[0].reason) == (Fate.LATER, "the courier ended")
            assert "big" not in target.objects()
            await one()
            assert fates[1].fate is Fate.SENT
        assert set(target.objects()) == {"small", "big"}


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.real.stores.tls import TlsMinio

    with running(TlsMinio, tmp_path / "store") as target:
        bundle = make_bundle(tmp_path)
        async with dispatching(setup_for(target)) as dispatch:
            sent = await send(dispatch, bundle, letter("minio:s3"))
            assert sent.fate is not Fate.SENT
            assert "can't be reached" in sent.reason
        monkeypatch.setenv("SSL_CERT_FILE", str(target.authority))
        async with dispatching(setup_for(target)) as dispatch:
            sent = await send(dispatch, bundle, letter("minio:s3"))
            assert (sent.fate, sent.reason) == (Fate.SENT, "")


# ---------------------------------------------------------------- credentials


async def test_a_role_is_assumed(tmp_path: Path, environ: Callable[[Server], None]) -> None:
    role = "arn:aws:iam::123456789012:role/evidence"
    with running(Moto, tmp_path / "store") as target:
        environ(target)
        bundle = make_bundle(tmp_path)
        got = sts.assume(target.url, REGION, sts.Key(USER, SECRET), role, "extern")
        assert got["access_key_id"].startswith("ASIA")
        assert got["token"]
        setup = Setup(aws_role_arn=role, aws_access_key=USER, aws_secret_key=SECRET, aws_external_id="extern")
        async with dispatching(setup) as dispatch:
            assert (await send(dispatch, bundle, letter("aws:s3"))).reason == ""
        assert set(target.objects()) == {"one"}


async def test_a_pods_token_is_read_before_the_rights_go(
    tmp_path: Path, environ: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Moto, tmp_path / "store") as target:
        environ(target)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        token = tmp_path / "token"
        token.write_text("a.b.c")
        token.chmod(0o600)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
        monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pod")
        bundle = make_bundle(tmp_path)
        async with dispatching(Setup()) as dispatch:
            assert (await send(dispatch, bundle, letter("aws:s3"))).reason == ""
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "none"))
        async with dispatching(Setup()) as dispatch:
            sent = await send(dispatch, bundle, letter("aws:s3"))
            assert (sent.fate, sent.reason) == (
                Fate.MEND,
                f"the credentials can't be read: {tmp_path}/none: No such file or directory",
            )


def test_minio_checks_our_signature(tmp_path: Path) -> None:
    with running(Minio, tmp_path / "store") as target:

        def assumed() -> bool:
            """MinIO gives no roles for a moment after its start, but checks who asks."""
            try:
                return bool(sts.assume(target.url, REGION, sts.Key(USER, SECRET), "arn:x:y", "")["token"])
            except sts.StsError as error:
                if "400 InvalidParameterValue" not in str(error):
                    raise
                return False

        await_that(assumed, "a role")
        with pytest.raises(sts.StsError, match="STS gave no credentials: 403 AccessDenied"):
            sts.assume(target.url, REGION, sts.Key(USER, "wrong-secret"), "arn:x:y", "")


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        ("{", "gcp.credentials_path: neither a file with a key nor the key's JSON"),
        (
            json.dumps({"type": "authorized_user"}),
            "gcp.credentials_path: not a service account's key (no private_key in it)",
        ),
        ("/no/such/file", "the credentials can't be read: /no/such/file: No such file or directory"),
    ],
)
async def test_a_key_of_google_that_is_none(credentials: str, reason: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    async with dispatching(Setup(gcp_credentials=credentials)) as dispatch:
        sent = await send(dispatch, bundle, letter("gcp:gcs"))
    assert (sent.fate, sent.reason) == (Fate.MEND, reason)


def peak_kib(pid: int) -> int:
    """The most memory that it ever had resident (VmHWM, proc(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1])
    raise AssertionError(f"{pid} has ended")
