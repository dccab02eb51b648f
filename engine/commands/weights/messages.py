"""How results over scans are said: what was done, what was left out, what is in doubt."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mim3d.dataio.errors import Rejection

LISTED = 20


def tell_done(n_done: int, n_kept: int, destination: Path) -> None:
    """How many scans are done, and since when."""
    before = f", {n_kept} were there already" if n_kept else ""
    print(f"{n_done} scans done{before}; {destination}")


def tell_failed(failed: Sequence[Rejection], file: Path) -> None:
    """The scans that could not be done, each with the reason."""
    if failed:
        print(f"{len(failed)} scans could not be done, all in {file}:")
        listed([f"{each.path}: {each.detail}" for each in failed])


def tell_doubts(doubts: Sequence[str]) -> None:
    """What a person should look at."""
    listed([f"warning: {doubt}" for doubt in dict.fromkeys(doubts)], indent="")


def listed(lines: Sequence[str], indent: str = "  ") -> None:
    """The first lines, and how many more there are."""
    for line in lines[:LISTED]:
        print(f"{indent}{line}")
    if len(lines) > LISTED:
        print(f"{indent}... and {len(lines) - LISTED} more")


def class_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Lines of a figure per class; a class without one has a dash."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    width = max(map(len, [*names, "class"]))
    lines = ["  ".join([f"{'class':<{width}}", *(f"{title:>10}" for title in columns)])]
    for name in names:
        cells = [f"{number(column.get(name, math.nan)):>10}" for column in columns.values()]
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Four digits, a dash for none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
