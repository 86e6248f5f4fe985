"""Raw parameter values → the Struct that a spec declares, typed as Talon types them (Go's mapstructure, not weak).

Names match in any case; unknown names are left alone; null counts as not given; a text takes only texts, a boolean only
booleans, an integer also floats (cut towards zero); lists and maps hold texts, null among them is the empty text.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import msgspec
from msgspec import inspect

from stoop.errors import StoopError
from stoop.spec import (
    ParameterFault,
    Parameters,
    Spec,
)

_INT64_MIN = -(2**63)
_REFUSED = object()


class ParametersWrong(StoopError):
    """The parameters don't fit the spec; `faults` lists all that is wrong."""

    def __init__(self, name: str, faults: list[ParameterFault]) -> None:
        self.faults = tuple(faults)
        super().__init__(f"{name}: " + "; ".join(fault.message for fault in faults))


def typed_parameters(spec: Spec, raw: dict[str, Any]) -> Any:
    """The spec's Struct from raw values. Raises ParametersWrong with every fault of types, values and own checks."""
    params, faults = check_parameters(spec, raw)
    if params is None or faults:
        raise ParametersWrong(spec.name, faults)
    return params


def check_parameters(spec: Spec, raw: dict[str, Any]) -> tuple[Parameters | None, list[ParameterFault]]:
    """The same, with the faults returned: wrong types first, then what is missing, then wrong values."""
    given, faults = _typed(spec, raw)
    mistyped = {fault.parameter for fault in faults}
    absent = [field for field in _fields(spec.parameters) if field.required and field.name not in given]
    missing = [field.name for field in absent if field.name not in mistyped]
    faults += [ParameterFault("param-required", name, f"{name} is required") for name in missing]
    # What is absent gets its empty value, so that the other parameters' values are checked all the same.
    whole = given | {field.name: _empty(field.type) for field in absent}
    params = _converted(spec, whole, faults)
    if params is not None and spec.check is not None:
        told = {fault.parameter for fault in faults}
        # Where a type is wrong, a check that misses a parameter may miss that very one.
        faults += [
            fault
            for fault in spec.check(params)
            if fault.parameter not in told and (not mistyped or fault.parameter in given)
        ]
    return (None if faults else params), faults


def is_given(raw: dict[str, Any], name: str) -> bool:
    """Whether a parameter has a value, in whatever case its name is written."""
    return any(_folded(key) == name and value is not None for key, value in raw.items())


def _converted(spec: Spec, given: dict[str, Any], faults: list[ParameterFault]) -> Parameters | None:
    """The Struct; each value that breaks a declared constraint is told and left out. None when it can't be left out."""
    required = {field.name for field in _fields(spec.parameters) if field.required}
    while True:
        try:
            return msgspec.convert(given, spec.parameters)
        except msgspec.ValidationError as error:
            fault = _constraint_fault(error)
            if fault.parameter not in {known.parameter for known in faults}:
                faults.append(fault)
            if given.pop(fault.parameter, None) is None or fault.parameter in required:
                return None


def find_unknown(spec: Spec, raw: dict[str, Any]) -> list[str]:
    """Names that the spec does not declare, in order. They are ignored."""
    known = {field.name for field in _fields(spec.parameters)}
    return [name for name in raw if _folded(name) not in known]


def parameter_names(spec: Spec) -> tuple[str, ...]:
    """The names that the spec declares, in order."""
    return tuple(field.name for field in _fields(spec.parameters))


@functools.lru_cache(maxsize=256)
def _fields(parameters: type[Parameters]) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(parameters)
    assert isinstance(described, inspect.StructType)
    return described.fields


def _folded(name: Any) -> str:
    """The name as Go's EqualFold compares it with an ASCII one."""
    text = str(name)
    folded = text.casefold()
    return folded if len(folded) == len(text) else text


def _typed(spec: Spec, raw: dict[str, Any]) -> tuple[dict[str, Any], list[ParameterFault]]:
    by_name: dict[str, Any] = {}
    for name, value in raw.items():
        by_name.setdefault(_folded(name), value)
    given: dict[str, Any] = {}
    faults: list[ParameterFault] = []
    for field in _fields(spec.parameters):
        value = raw.get(field.name, by_name.get(field.name))
        if value is None:
            continue
        typed = _coerced(field.type, value)
        if typed is _REFUSED:
            faults.append(_type_fault(field, value))
        else:
            given[field.name] = typed
    return given, faults


def _type_fault(field: inspect.Field, value: Any) -> ParameterFault:
    wanted = _wanted(field.type)
    advice = ", put quotes round it" if wanted == "a text" and isinstance(value, bool | int | float) else ""
    return ParameterFault("param-type", field.name, f"{field.name} must be {wanted}, not {_name(value)}{advice}")


def _name(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a float", str: "a text", list: "a list", dict: "a map"}
    return f"{names.get(type(value), 'a time')} ({str(value)[:40]!r})"


def _plain(kind: inspect.Type) -> inspect.Type:
    """The type without its metadata, and of a union the part that is not None."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        rest = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
        return _plain(rest[0]) if len(rest) == 1 else kind
    return kind


def _wanted(kind: inspect.Type) -> str:
    match _plain(kind):
        case inspect.BoolType():
            return "true or false (without quotes)"
        case inspect.IntType():
            return "a whole number (without quotes)"
        case inspect.FloatType():
            return "a number (without quotes)"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list of texts"
        case inspect.DictType():
            return "a map from texts to texts (put quotes round numbers, true and false)"
        case inspect.LiteralType(values=values) if all(isinstance(value, str) for value in values):
            return " or ".join(str(value) for value in values)
    return "a text"


def _empty(kind: inspect.Type) -> Any:
    match _plain(kind):
        case inspect.BoolType():
            return False
        case inspect.IntType():
            return 0
        case inspect.FloatType():
            return 0.0
        case inspect.ListType() | inspect.VarTupleType():
            return []
        case inspect.DictType():
            return {}
    return ""


def _coerced(kind: inspect.Type, value: Any) -> Any:
    match _plain(kind):
        case inspect.BoolType():
            return value if isinstance(value, bool) else _REFUSED
        case inspect.IntType():
            return _integer(value)
        case inspect.FloatType():
            return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _REFUSED
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return _items(item, value)
        case inspect.DictType(value_type=item):
            return _entries(item, value)
    return value if isinstance(value, str) else _REFUSED


def _integer(value: Any) -> Any:
    """As Go on amd64: an unsigned number keeps its bits, a float is cut, and one that no int64 holds is the lowest."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _REFUSED
    if isinstance(value, int):
        return value if value < 2**63 else value - 2**64
    cut = math.trunc(value) if math.isfinite(value) else _INT64_MIN
    return cut if _INT64_MIN <= cut < 2**63 else _INT64_MIN


def _items(kind: inspect.Type, value: Any) -> Any:
    if not isinstance(value, list):
        return _REFUSED
    items = [_empty(kind) if item is None else _coerced(kind, item) for item in value]
    return _REFUSED if any(item is _REFUSED for item in items) else items


def _entries(kind: inspect.Type, value: Any) -> Any:
    if not isinstance(value, dict) or not all(key is None or isinstance(key, str) for key in value):
        return _REFUSED
    entries = {key or "": _empty(kind) if item is None else _coerced(kind, item) for key, item in value.items()}
    return _REFUSED if any(item is _REFUSED for item in entries.values()) else entries


def _constraint_fault(error: msgspec.ValidationError) -> ParameterFault:
    """A value outside what the type's metadata allows. msgspec ends with the path: ` - at `$.name``."""
    message, _, path = str(error).partition(" - at `$.")
    name = path.rstrip("`").partition("[")[0]
    return ParameterFault("param-value", name, f"{name}: {message[:1].lower()}{message[1:]}")
