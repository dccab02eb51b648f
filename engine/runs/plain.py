"""Dataclasses from the plain values that JSON keeps of them."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from mim3d.engine.errors import CheckpointError

Kind = TypeVar("Kind")


def rebuilt(kind: type[Kind], plain: Mapping[str, Any], where: str) -> Kind:
    """The dataclass that `plain` is `asdict` of, nested ones too; fields that lack are defaults.

    CheckpointError naming `where` for a field that this version does not know.
    """
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(typing.cast(Any, kind))]
    foreign = sorted(set(plain) - set(names))
    if foreign:
        raise CheckpointError(
            f"{where} has the field {foreign[0]!r}, which this version of mim3d does not know: use "
            "the version that wrote it"
        )
    return kind(**{name: _value(hints[name], given, where) for name, given in plain.items()})


def _value(hint: Any, given: Any, where: str) -> Any:
    """A field's value: a dataclass (or one made of it) or tuple where it is one, else as it is."""
    if isinstance(given, list):
        return tuple(given)
    if not isinstance(given, dict):
        return given
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    kinds = [
        kind
        for option in options
        if dataclasses.is_dataclass(option)
        for kind in (option, *typing.cast(Any, option).__subclasses__())
    ]
    for kind in kinds:
        if set(given) <= {field.name for field in dataclasses.fields(kind)}:
            return rebuilt(typing.cast(Any, kind), given, where)
    return rebuilt(typing.cast(Any, kinds[0]), given, where) if kinds else given


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
