"""Which parts of a run are a plugin's, kept with the run, so that nobody goes on with others."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim3d.dataio.plugins import load_known, origin_of
from mim3d.dataio.reader.normalisation import MODES
from mim3d.dataio.registry import OURS, Registry
from mim3d.dataio.transforms.augment import AUGMENTATIONS
from mim3d.engine.errors import CheckpointError
from mim3d.engine.models.registry import ENCODERS, METHODS
from mim3d.engine.runs.files import as_address

REGISTRIES: Mapping[str, Registry[Any]] = {
    each.kind: each for each in (METHODS, ENCODERS, AUGMENTATIONS, MODES)
}


def own_parts(
    encoder: str, augment: str, normalise: str, method: str | None = None
) -> list[dict[str, Any]]:
    """A record of each part that a plugin registered: kind, name, module, file and its sha256."""
    used = {
        METHODS.kind: method,
        ENCODERS.kind: encoder,
        AUGMENTATIONS.kind: augment,
        MODES.kind: normalise.partition(":")[0],
    }
    return [
        {"kind": kind, "name": name, **origin_of(REGISTRIES[kind].maker_of(name))}
        for kind, name in used.items()
        if name in REGISTRIES[kind] and REGISTRIES[kind].maker_of(name) != OURS
    ]


def stored_parts(out: Path) -> list[dict[str, Any]]:
    """The records in a run's folder; none where there is no run, or one that cannot be read."""
    try:
        stored = json.loads((out / "config.json").read_text())
        parts = stored.get("plugins", [])
        return [{"file": None, "sha256": None, **part} for part in parts if part["name"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # told where the run is opened


def refuse_missing(parts: list[dict[str, Any]], who: str) -> None:
    """A CheckpointError where a part that `who` was made with is in no plugin that is loaded."""
    for part in parts:
        known = REGISTRIES.get(part["kind"], {})
        if part["name"] not in known:
            load_known()
        if part["name"] not in known:
            raise CheckpointError(
                f"{who} has the {part['kind']} {part['name']!r} of a plugin, {part['module']}, "
                f"which is not loaded: {remedy(part)}"
            )


def remedy(part: Mapping[str, Any]) -> str:
    """What loads a plugin again, from where it was."""
    file = part["file"]
    if file is None or "site-packages" in file:
        return f"add --plugin {part['module']}, with the package that has it installed"
    if Path(file).is_file():
        return f"add --plugin {file}"
    return f"it was {file}, which is gone: add --plugin with where it is now"


def changed_parts(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """A line for each plugin whose code is not what it was when the run was last gone on with."""
    then = {(part["kind"], part["name"]): part for part in before}
    return [
        f"the {part['kind']} {part['name']!r} was defined by other code before: "
        f"{part['file'] or part['module']} has changed since the run's last sitting"
        for part in now
        if (old := then.get((part["kind"], part["name"]))) and old["sha256"] != part["sha256"]
    ]


def refuse_missing_plugins(out: Sequence[str]) -> None:
    """A CheckpointError where the run to go on with was begun with a plugin that is not loaded.

    `out` are the words of its option. Before all else: without the plugin neither the recipe nor
    its options can be read.
    """
    if len(out) == 1 and not as_address(out[0]):
        refuse_missing(stored_parts(Path(out[0])), f"the run in {out[0]}")
