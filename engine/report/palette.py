"""The colours of a report: inks of the page and one for every arm, given to each chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

INKS = {"ink": "#1c2430", "muted": "#6b7583", "grid": "#dfe4ea", "page": "#ffffff"}
ARMS = {
    "scratch": "#6b7583",
    "simclr": "#c8561b",
    "mae": "#1f62c4",
    "simmim": "#1b8a5a",
    "other1": "#8a4bbf",
    "other2": "#b03a6f",
    "other3": "#0f7f8c",
    "other4": "#8a6d00",
    "other5": "#5a54d6",
    "other6": "#6b4a2f",
}
N_OTHERS = sum(name.startswith("other") for name in ARMS)
LIGHT = {**INKS, **ARMS}
STAND_IN = {name: f"#0a0b{index + 16:02x}" for index, name in enumerate(LIGHT)}
"""What an SVG is drawn with, each to be replaced by `var(--name)`."""


@dataclass(frozen=True)
class Palette:
    """Colours by name; `others` has the colour name of each arm of no known method."""

    colours: Mapping[str, str]
    others: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        """The colour of that name."""
        return self.colours[name]

    def arm(self, arm: str) -> str:
        """An arm's colour: that of its method, else of its own."""
        return self.colours[method_colour(arm) or self.others.get(arm, "other1")]


def colours_of_others(arms: Sequence[str]) -> dict[str, str]:
    """A colour name for each arm of no known method, in their order."""
    others = [arm for arm in arms if method_colour(arm) is None]
    return {arm: f"other{1 + turn % N_OTHERS}" for turn, arm in enumerate(others)}


def method_colour(arm: str) -> str | None:
    """Colour name of an arm's method, None where its name tells none."""
    method = arm.split("-", 1)[0]
    return method if method in ARMS and not method.startswith("other") else None
