"""Classes that are told apart by their side alone: `left parotid` and `right parotid`."""

import re
from collections.abc import Iterable

LEFT = {"left", "l", "lh", "lt", "lft", "sin", "sinister", "sinistra", "links", "gauche"}
RIGHT = {"right", "r", "rh", "rt", "rgt", "dex", "dexter", "dextra", "rechts", "droit", "droite"}
WORD = re.compile(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+(?![^\W\d_A-Z])|\d+")
"""Words of a name: `lungLeft`, `lung_L`, `LUNG-L` and `leftlung` have two each."""


def pairs_of_sides(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs (left, right) of names that are one but for the word of their side, in their order."""
    words = {name: words_of_sides(name) for name in names}
    by_words = {found: name for name, found in words.items() if "right" in found}
    pairs = []
    for name, found in words.items():
        mirrored = tuple(sorted("right" if word == "left" else word for word in found))
        if "left" in found and "right" not in found and mirrored in by_words:
            pairs.append((name, by_words[mirrored]))
    return pairs


def words_of_sides(name: str) -> tuple[str, ...]:
    """The words of a name in small letters, in the alphabet's order; sides are left and right.

    The order of words is no part of it: `left lung` goes with `lung_right`.
    """
    spelt_out = re.sub("left|right", lambda side: f" {side[0].lower()} ", name, flags=re.IGNORECASE)
    found = [word.lower() for word in WORD.findall(spelt_out)]
    return tuple(sorted("left" if w in LEFT else "right" if w in RIGHT else w for w in found))
