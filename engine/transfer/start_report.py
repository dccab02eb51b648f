"""What became of the weights that a run started from, name by name, as it is told and kept."""

import re
from dataclasses import dataclass, field

ENCODER = re.compile(
    r"encoder\.(blocks|patch_embed|pos_embed|norm|swin|register_\w+|stem|stages)\b(?!.*cross_attn)"
)
"""What decides a ViT's function; heads do not, nor what MONAI's blocks hold and do not use."""


@dataclass
class Start:
    """Where a run's first weights came from, name by name."""

    source: str
    """As given."""
    place: str
    """The file or checkpoint that was read."""
    sha256: str
    layout: str = "mim3d"
    axes: str = "zyx"
    """Order of space in the weights."""
    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """Tensors of the source that have no place here, with the reason."""
    fresh: list[str] = field(default_factory=list)
    """Tensors of this run that keep their initial values."""
    notes: list[str] = field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """Parts of an encoder that only one of the two has: the function is not the source's."""
        fresh = [f"{name} keeps its initial values" for name in self.fresh if ENCODER.match(name)]
        return fresh + [
            f"{name} was left"
            for name in self.left
            if ENCODER.match(name) or name.startswith(("patch_embed", "pos_embed"))
        ]

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        lines = [
            f"starts from {self.place} ({self.layout} names, axes {self.axes}): "
            f"{len(self.taken)} tensors taken, {len(self.resized)} resized, {len(self.left)} left, "
            f"{len(self.fresh)} keep their initial values"
        ]
        for what in ("resized", "left", "fresh"):
            names = getattr(self, what)
            more = f", and {len(names) - 6} more" * (len(names) > 6)
            lines += [f"  {what}: {', '.join(names[:6])}{more}"] * bool(names)
        lines += [f"  {note}" for note in self.notes]
        if self.doubts:
            lines.append(f"  THE ENCODER IS NOT WHOLLY THEIRS ({len(self.doubts)} parts)")
        return lines
