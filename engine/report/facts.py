"""What the report says was run: the strip of facts, the configuration, the subjects, warnings."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import GroupSummary
from mim3d.engine.analysis.verdict import Statement, gate_statements
from mim3d.engine.analysis.words import arm_name
from mim3d.engine.study.config import Row

MOST_GATES = 6
FEW_NAMES = 5


def facts(study: Study, groups: Sequence[GroupSummary]) -> list[tuple[str, str]]:
    """The strip below the headline: what was run, in numbers."""
    rows = study.scored
    seeds = sorted({row["seed"] for row in rows})
    arms = list(dict.fromkeys(arm for group in groups for arm in study.arms(group.group)))
    crops = [p["crops"] for p in study.pretraining if p["crops"]]
    last = max(row["step"] for row in rows)
    found = [
        ("corpus", study.about.get("corpus", "")),
        ("arms", ", ".join(map(arm_name, arms))),
        ("seeds", ", ".join(map(str, seeds))),
        ("fine-tuning", f"{last:,} steps × {study.about['batch']} crops"),
    ]
    if crops:
        shown = f"{min(crops):,}" if min(crops) == max(crops) else f"{min(crops):,}–{max(crops):,}"
        found.append(("pretraining", f"{shown} crops per arm"))
    found.append(("machine", str(study.about.get("machine_line", ""))))
    return found


def gates(study: Study) -> list[Statement]:
    """Whether each pretext task was learned; the number alone where there are many."""
    told = gate_statements(study)
    if len(told) <= MOST_GATES:
        return told
    failed = sum(p["trained"] is False for p in study.pretraining)
    text = f"{len(told) - failed} of {len(told)} pretrainings learned their pretext task."
    return [Statement("warning" if failed else "finding", text, "The table below has each.")]


def leaks(study: Study) -> list[str]:
    """Loud words on arms given by path that were pretrained on held-out subjects."""
    return [
        f"{arm_name(p['arm'])} was pretrained on subjects that this study holds out "
        f"({names_in_words(p['leaked'])}): its scores are not of unseen subjects, and no "
        "comparison with it is fair."
        for p in study.pretraining
        if p.get("leaked")
    ]


def leak_limits(study: Study) -> list[str]:
    """What is not known of arms given by path."""
    unknown = [p for p in study.pretraining if is_given(p) and p.get("leaked") is None]
    return [
        f"Whether {arm_name(p['arm'])}, given by path, was pretrained on subjects that this study "
        "holds out is not known."
        for p in unknown
    ]


def is_given(pretraining: Row) -> bool:
    """Whether the study did not pretrain the arm itself."""
    return "given" in pretraining or pretraining.get("method") == "given"


def names_in_words(names: Sequence[str]) -> str:
    """The first few of many names."""
    more = f" and {len(names) - FEW_NAMES} more" if len(names) > FEW_NAMES else ""
    return ", ".join(names[:FEW_NAMES]) + more


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
    told = []
    for (prefix, width), part in groupby(pairs, key=lambda pair: (pair[0][0], pair[0][2])):
        group = list(part)
        if not width:
            told += [name for _, name in group]
            continue
        runs = ranges([number for (_, number, _), _ in group])
        shown = [f"{a:0{width}d}" + (f"–{b:0{width}d}" if b > a else "") for a, b in runs]
        told.append(f"{prefix}{', '.join(shown)}")
    return ", ".join(told)


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
