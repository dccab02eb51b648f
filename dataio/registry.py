"""Named parts that others may add to: looked up by name, from a plugin where mim3d has none.

A part may be given as "module:attribute", which is imported when first used, so that a command
line can list what it will not run.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Generic, TypeVar, cast

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.plugins import load_known

Part = TypeVar("Part")
OURS = "mim3d"
INTERACTIVE = "__main__"
"""A notebook's cell, run again, registers again."""


class NameClashError(Mim3dError):
    """Two parts want one name, or a name is none."""


class UnknownNameError(Mim3dError):
    """No part of that name, neither of mim3d nor of a plugin that is loaded."""


class Registry(Mapping[str, Part], Generic[Part]):
    """Parts of one kind by name, in the order in which they came.

    `kind` is what messages call a part, such as "pretext method"; `parts` are mim3d's own.
    """

    def __init__(self, kind: str, parts: Mapping[str, Part] | None = None) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = dict(parts or {})
        self._makers: dict[str, str] = dict.fromkeys(self._parts, OURS)
        self._loadings: dict[str, object] = {}

    def add(self, name: str, part: Part) -> None:
        """Take a part in; a NameClashError where another module has the name."""
        if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
            raise NameClashError(
                f"{name!r} is no name for a {self.kind}: take letters, digits, - and _, beginning "
                "with a letter"
            )
        by, loading = calling_module()
        before = self._makers.get(name)
        again = by == before and (by == INTERACTIVE or loading is not self._loadings[name])
        if before is not None and not again:
            raise NameClashError(
                f"{by} registers the {self.kind} {name!r}, a name that {before} has taken: "
                f"choose another in {by}"
            )
        self._parts[name], self._makers[name], self._loadings[name] = part, by, loading

    def find(self, name: str, field: str = "") -> Part:
        """The part of that name; plugins that are installed are loaded where no other has it.

        An UnknownNameError begins with `field`, the setting that gave the name, and lists the
        known ones.
        """
        if name not in self._parts:
            load_known()
        if name in self._parts:
            return self._parts[name]
        said = f"{field}={name!r} is none of" if field else f"no {self.kind} {name!r}; one of"
        raise UnknownNameError(
            f"{said}: {', '.join(self._parts)}; one of your own comes with --plugin FILE"
        )

    def maker_of(self, name: str) -> str:
        """The module that registered a part; mim3d for those it has itself."""
        return self._makers[name]

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def calling_module() -> tuple[str, object]:
    """The nearest module on the stack that is not mim3d's: its name, and what it was loaded by.

    The latter is another object where a module is loaded again, after a failure for instance.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", INTERACTIVE))
        if name.partition(".")[0] != OURS:
            return name, frame.f_globals.get("__spec__")
        frame = frame.f_back
    return OURS, None


Reference = str | Callable[..., Any]
"""A callable, or where to import it from: "module:attribute"."""


def resolved(reference: Reference) -> Callable[..., Any]:
    """What a reference stands for."""
    if not isinstance(reference, str):
        return reference
    module, _, attribute = reference.partition(":")
    return cast(Callable[..., Any], getattr(importlib.import_module(module), attribute))
