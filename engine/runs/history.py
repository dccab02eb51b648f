"""What changed between the sittings of a run, and what may: a record kept in its configuration."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mim3d.engine.runs.files import differences, json_sha256

Record = dict[str, Any]
NO_SETTING = "corpus"
"""What a record tells of that is no field of a configuration."""


def stands_in(name: str, fields: Sequence[str]) -> bool:
    """Whether a field `part.field` is one of these, or a part of one."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def setting_records(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], fields: Sequence[str], step: int
) -> list[Record]:
    """A record for each of the fields that is another one from `step` on.

    Only parts that are stored are compared: runs of earlier versions lack some.
    """
    parts = {field.partition(".")[0] for field in fields}
    before = {part: stored[part] for part in parts if part in stored}
    now = {part: wanted[part] for part in before if part in wanted}
    return [
        {"at_step": step, "changed": name, "before": old, "now": new}
        for name, old, new in sorted(differences(before, now), key=lambda found: found[0])
        if stands_in(name, fields)
    ]


def with_records(history: Sequence[Record], found: Sequence[Record]) -> list[Record]:
    """The history with those that are not in it yet: a sitting may begin twice at one step."""
    return [*history, *(record for record in found if record not in history)]


def change_line(record: Record) -> str:
    """A record as a line."""
    return (
        f"from step {record['at_step']} on {record['changed']} is {record['now']}, it was "
        f"{record['before']} (kept in the run's history)"
    )


def earlier_hashes(
    history: Sequence[Record],
    plain: Mapping[str, Any],
    identity_of: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[str, ...]:
    """Hashes of the identities that a run had before its settings changed, the newest first.

    `plain` is today's configuration; a setting back at a time it becomes what it was.
    """
    before: dict[str, Any] = copy.deepcopy(dict(plain))
    found: list[str] = []
    for record in reversed(history):
        if record["changed"] != NO_SETTING:
            put(before, record["changed"], record["before"])
            found.append(json_sha256(identity_of(copy.deepcopy(before))))
    return tuple(dict.fromkeys(found))


def put(plain: dict[str, Any], name: str, value: Any) -> None:
    """Set a field `part.field`; None, which stands for a field that was not there, removes it."""
    *parts, leaf = name.split(".")
    for part in parts:
        plain = plain[part]
    if value is None:
        plain.pop(leaf, None)
    else:
        plain[leaf] = value
