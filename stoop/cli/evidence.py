"""`stoop evidence list|show|verify|extract`: what was kept of targets, in the node's store or in a bundle's file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import typer

from stoop.cli import FINDINGS, FINE
from stoop.cli.options import ConfigOption, JsonOption, load_config
from stoop.cli.screen import err, json_line, out, plain, target_name
from stoop.cli.sent import deliveries, line_of
from stoop.errors import ActFailed, UserError
from stoop.evidence import manifest as manifests
from stoop.evidence.chain import check_chain, let_go
from stoop.evidence.extract import extract
from stoop.evidence.manifest import SUFFIX, Manifest
from stoop.evidence.reading import BundleError, BundleReader
from stoop.evidence.store import DIRECTORY, Store

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="A bundle's name or number, the beginning of a run's id, or a file.")
]
PartsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[PART]...", help="Parts, or folders of parts. Default: all.")
]

NOTHING = "no evidence was kept yet"


def list_bundles(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    run: Annotated[
        str | None, typer.Option("--run", metavar="ID", help="Only this run (its beginning).", show_default=False)
    ] = None,
) -> int:
    """List the bundles of this node, the oldest first."""
    code = FINE
    told = deliveries(load_config(config).state_dir)
    with _store(config) as store:
        bundles = store.bundles() if store is not None else []
        if store is None or not bundles:
            if not as_json:
                out().print(NOTHING)
            return FINE
        for bundle in bundles:
            try:
                with store.reading(bundle) as reader:
                    found, size = reader.manifest, reader.size
            except FileNotFoundError:
                continue
            except (BundleError, OSError) as error:
                _finding(f"{bundle}: {_why(error)}")
                code = FINDINGS
                continue
            if run is None or found.origin.run.startswith(run):
                _show_line(found, size, as_json, told.get(bundle, []))
    return code


def show(bundle: BundleArgument, config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Show what a bundle says of itself: whom, when, by which rule, its parts, what is missing."""
    with _chosen(config, bundle) as readers:
        for reader in readers:
            if as_json:
                json_line(msgspec.to_builtins(reader.manifest))
            else:
                _show_whole(reader)
    return FINE


def verify(
    bundles: Annotated[
        list[str] | None, typer.Argument(metavar="[BUNDLE]...", help="Which ones. Default: all, and the chain.")
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Read every part, compare its SHA-256, and check that no bundle was removed or changed."""
    wrong = 0
    if bundles:
        for name in bundles:
            with _chosen(config, name) as readers:
                wrong += sum(_verify(reader) for reader in readers)
        return FINDINGS if wrong else FINE
    with _store(config) as store:
        if store is None:
            out().print(NOTHING)
            return FINE
        for finding in check_chain(store):
            _finding(finding)
            wrong += 1
        gone = let_go(store)
        if gone:
            out().print(gone)
        for name in store.bundles():
            with contextlib.suppress(BundleError, FileNotFoundError), store.reading(name) as reader:
                wrong += _verify(reader)
    out().print("the chain is broken" if wrong else "the chain is whole")
    return FINDINGS if wrong else FINE


def extract_parts(
    bundle: BundleArgument,
    parts: PartsArgument = None,
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="DIR", help="A new folder. Default: the bundle's name.", show_default=False),
    ] = None,
    config: ConfigOption = None,
) -> int:
    """Take parts out of a bundle into a new folder, and verify them on the way.

    The manifest comes along. Where a run has several bundles, each has a folder below.
    """
    wanted = _wanted(parts or [])
    wrong = 0
    with _chosen(config, bundle) as readers:
        chosen = [reader for reader in readers if any(wanted(part) for part in reader.manifest.parts)]
        if not chosen:
            raise UserError("no such part", where=bundle, hint="`stoop evidence show` lists them")
        for reader in chosen:
            name = reader.manifest.bundle
            if not manifests.sequence_of(name) and (to is None or len(readers) > 1):
                raise UserError("its name can't be a folder's", hint="say --to DIR")
            # Several are of one run when they could not be one: each into a folder of its own.
            where = name if to is None else to if len(readers) == 1 else os.path.join(to, name)
            if len(readers) > 1 and to is not None:
                _make_folder(to)
            wrong += _extract(reader, where, wanted)
    return FINDINGS if wrong else FINE


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"can't be made: {error.strerror}", where=path) from error


def _extract(reader: BundleReader, where: str, wanted: Callable[[manifests.Part], bool]) -> int:
    """Extract from one and say so. How many findings."""
    try:
        count, wrong = extract(reader, where, wanted)
    except BundleError as error:
        _finding(f"{reader.manifest.bundle}: {error}")
        return 1
    except OSError as error:
        raise UserError(f"can't be extracted: {error.strerror}", where=where) from error
    for finding in wrong:
        _finding(finding)
    out().print(f"{count} parts are in {plain(where)}")
    return len(wrong)


# ---------------------------------------------------------------- which ones


@contextlib.contextmanager
def _store(config: str | None) -> Iterator[Store | None]:
    """The node's store; None when nothing was kept yet."""
    directory = os.path.join(load_config(config).state_dir, DIRECTORY)
    if not os.path.lexists(directory):
        yield None
        return
    store = Store(directory)
    try:
        store.open(make=False)
    except ActFailed as error:
        raise UserError(error.reason, hint="only root may read evidence") from error
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def _chosen(config: str | None, asked: str) -> Iterator[list[BundleReader]]:
    """Readers of the bundles that a word of the command line names: one, or all of a run."""
    with contextlib.ExitStack() as stack:
        try:
            if asked.endswith(SUFFIX) or "/" in asked:
                fd = os.open(asked, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                yield [BundleReader(fd)]
                return
            store = stack.enter_context(_store(config))
            names = _named(store, asked) if store is not None else []
            if store is None or not names:
                raise UserError(f"no bundle is {asked!r}", hint="`stoop evidence list` shows all")
            yield [stack.enter_context(store.reading(name)) for name in names]
        except BundleError as error:
            raise UserError(str(error), where=asked) from error
        except OSError as error:
            raise UserError(f"can't be read: {error.strerror}", where=asked) from error


def _named(store: Store, asked: str) -> list[str]:
    bundles = store.bundles()
    if asked in bundles:
        return [asked]
    if asked.isascii() and asked.isdigit() and len(asked) <= manifests.SEQUENCE_DIGITS:
        found = [name for name in bundles if manifests.sequence_of(name) == int(asked)]
        if found:
            return found
    return [name for name in bundles if _is_of_run(store, name, asked)]


def _is_of_run(store: Store, name: str, run: str) -> bool:
    if not name.rpartition("-")[2].startswith(run[:16]):
        return False
    with contextlib.suppress(BundleError, FileNotFoundError), store.reading(name) as reader:
        return reader.manifest.origin.run.startswith(run)
    return False


def _wanted(asked: list[str]) -> Callable[[manifests.Part], bool]:
    names, folders = set(asked), tuple(f"{name.rstrip('/')}/" for name in asked)
    return lambda part: not asked or part.name in names or part.name.startswith(folders)


# ---------------------------------------------------------------- what is said


def _verify(reader: BundleReader) -> int:
    """Check one and say how it is. How many findings."""
    bundle = reader.manifest.bundle
    try:
        wrong = reader.check()
    except (BundleError, OSError) as error:
        wrong = [_why(error)]
    for finding in wrong:
        _finding(f"{bundle}: {finding}")
    if not wrong:
        out().print(f"{plain(bundle)}: as it was written, {len(reader.manifest.parts)} parts")
    return len(wrong)


def _show_line(found: Manifest, size: int, as_json: bool, sent: list[dict[str, Any]]) -> None:
    origin, captures = found.origin, found.captures
    lacking = sum(each.missing_count for each in captures)
    if as_json:
        told = msgspec.to_builtins(origin) | {"target": found.target, "parts": len(found.parts)}
        acts = [{"act": each.origin.act, "actionner": each.origin.actionner} for each in captures]
        told["deliveries"] = sent
        json_line({"bundle": found.bundle, "bytes": size, "missing": lacking, "captures": acts} | told)
        return
    missing = f" · {lacking} missing" if lacking else ""
    whom = plain(target_name(found.target))
    actionners = ", ".join(plain(each.origin.actionner) for each in captures)
    said = f"{plain(origin.rule)} · {actionners} · {whom} · {len(found.parts)} parts"
    out().print(f"{plain(found.bundle)}  {said} · {_size(size)}{missing}{plain(line_of(sent))}")


def _show_whole(reader: BundleReader) -> None:
    found, origin = reader.manifest, reader.manifest.origin
    rows: list[tuple[str, Any]] = [
        ("bundle", f"{found.bundle} ({_size(reader.size)})"),
        ("node", origin.node),
        ("rule", origin.rule),
        ("run", origin.run),
        ("alert", origin.alert),
        ("place", found.sequence),
        ("before it", found.previous or "nothing: it is the first"),
        ("SHA-256", manifests.digest(reader.raw_manifest)),
    ]
    rows += [("replaces", f"place {link.sequence}, {link.manifest}") for link in found.replaces]
    _show_rows(rows)
    shown: set[str] = set()  # two captures of one act (evidence first, and what the act kept) have one folder
    for capture in found.captures:
        rows = [
            ("action", f"{capture.origin.action} ({capture.origin.actionner})"),
            ("act", capture.origin.act),
            ("target", target_name(capture.target)),
            ("taken", f"{_when(capture.begun_ns)}, in {(capture.ended_ns - capture.begun_ns) / 1e6:.0f} ms"),
        ]
        rows += list(capture.notes.items())
        _show_rows(rows)
        for part in found.parts_of(capture):
            if part.name not in shown:
                out().print(f"  {part.size:>12}  {part.sha256[:16]}  {plain(part.name)}")
                shown.add(part.name)
        for missing in capture.missing:
            out().print(f"  missing: {plain(missing.what)}: {plain(missing.why)}")


def _show_rows(rows: list[tuple[str, Any]]) -> None:
    for name, value in rows:
        out().print(f"{plain(name):<12} {plain(value)}")


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at_ns // 10**9))


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def _why(error: Exception) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def _finding(line: str) -> None:
    err().print(f"stoop: {plain(line)}", style=None)
