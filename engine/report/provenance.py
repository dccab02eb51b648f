"""What the study cannot show, and what was run: machine, versions, subjects, configuration."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from mim3d.engine.report.limits import limits
from mim3d.engine.report.section import Block, Content, Facts, Lines, Section


def provenance_sections(content: Content) -> list[Section]:
    """Limits, then what was run."""
    about = content.study.about
    machine = tuple((name, str(value)) for name, value in about.get("machine", {}).items())
    blocks: list[Block] = [Facts(machine, "configuration", "Machine and versions")]
    if splits := about.get("splits"):
        pairs = tuple(
            (f"{name.replace('_', ' ')}: {len(names)}", subjects_in_words(names))
            for name, names in splits.items()
        )
        blocks.append(Facts(pairs, "splits", "Subjects of each split"))
    whole = tuple(flat(about.get("config", {})))
    blocks.append(Facts(whole, "configuration", "The whole configuration"))
    lines = (*limits(content.study, content.groups), *about.get("notes", []))
    return [Section("Limits", (Lines(lines),)), Section("What was run", tuple(blocks))]


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """A configuration as lines `pretrain.mae.mask_ratio`, `0.6`; what is not set is left out."""
    if isinstance(value, dict):
        parts = [flat(item, f"{name}.{key}" if name else key) for key, item in value.items()]
        return [line for part in parts for line in part]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        parts = [flat(item, f"{name}.{index}") for index, item in enumerate(value)]
        return [line for part in parts for line in part]
    if value is None or value in ("", []):
        return []
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(name, shown)]


def subjects_in_words(names: Iterable[str]) -> str:
    """`hippocampus_001, 003–007`: neighbouring numbers as a range, a prefix once."""
    pairs = [(numbered(name), name) for name in sorted(names)]
    parts = []
    for (prefix, width), part in groupby(pairs, key=lambda pair: (pair[0][0], pair[0][2])):
        group = list(part)
        if not width:
            parts += [name for _, name in group]
            continue
        runs = ranges([number for (_, number, _), _ in group])
        shown = [f"{a:0{width}d}" + (f"–{b:0{width}d}" if b > a else "") for a, b in runs]
        parts.append(f"{prefix}{', '.join(shown)}")
    return ", ".join(parts)


def numbered(name: str) -> tuple[str, int, int]:
    """Prefix, number and its digits of `hippocampus_033`; no digits where it does not end so."""
    found = re.fullmatch(r"(.*?)(\d+)", name)
    return (found[1], int(found[2]), len(found[2])) if found else (name, 0, 0)


def ranges(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of neighbouring numbers, in rising order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
