"""How a struct of settings says what each of them is, for the reference and for whoever reads it. Pure."""

from __future__ import annotations

from msgspec import Meta

SECOND_NS = 10**9


def without_unit(name: str) -> str:
    """A setting's key: what is kept in nanoseconds is written with a unit of its own."""
    return name.removesuffix("_ns")


def meta(description: str, kind: str = "", default: str = "") -> Meta:
    """What the reference says of a setting, its kind (`config_values.KINDS`), and a computed default in words."""
    extra = {key: value for key, value in (("kind", kind), ("default", default)) if value}
    return Meta(description=description, extra=extra)
