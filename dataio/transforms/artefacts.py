"""Which artefacts of MRI a crop may get, each by its own chance, and how strong they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.transforms.placement import Range

NAMES = ("bias-field", "ghosting", "gibbs", "low-resolution", "gamma")
"""In the order in which they are made: coil, acquisition, reconstruction, display."""


@dataclass(frozen=True)
class Artefacts:
    """Chances of artefacts, and the ranges their strengths are drawn from.

    `bias_field`: chance of a coil's field, its coefficients within +-`coefficient`. `ghosting`:
    chance of `ghosts` repetitions along one axis, as strong as `ghost_strength`. `gibbs`: chance of
    k-space cut off, by `truncation` (MONAI's alpha). `low_resolution`: chance of slices along one
    axis that are thicker by `downsampling`. `gamma`: chance of a power exp(`log_gamma`), drawn for
    each channel. Ranges not named otherwise are TorchIO 1.2's defaults.
    """

    bias_field: float = 0.0
    coefficient: float = 0.5
    ghosting: float = 0.0
    ghosts: tuple[int, int] = (4, 10)
    ghost_strength: Range = (0.5, 1.0)
    gibbs: float = 0.0
    truncation: Range = (0.3, 0.7)
    low_resolution: float = 0.0
    downsampling: Range = (1.5, 5.0)
    gamma: float = 0.0
    log_gamma: Range = (-0.3, 0.3)

    def __post_init__(self) -> None:
        for name in NAMES:
            chance = getattr(self, name.replace("-", "_"))
            if not 0 <= chance <= 1:
                raise Mim3dError(f"artefact {name}={chance} is no probability: give one in [0, 1]")
        bounds = {
            "ghosts": (1, 1 << 20), "ghost_strength": (0.0, 1.0), "truncation": (0.0, 1.0),
            "downsampling": (1.0, 100.0), "log_gamma": (-5.0, 5.0),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise Mim3dError(
                    f"artefact {name}={low, high} must lie in [{least:g}, {most:g}], low <= high"
                )
        if not 0 <= self.coefficient <= 5:
            raise Mim3dError(f"artefact coefficient={self.coefficient} must lie in [0, 5]")

    @property
    def possible(self) -> bool:
        """Whether a crop may get one."""
        return any(getattr(self, name.replace("-", "_")) for name in NAMES)


NO_ARTEFACTS = Artefacts()


def parsed_artefacts(words: Sequence[str]) -> Artefacts:
    """Artefacts of NAME=CHANCE words, such as bias-field=0.3; a Mim3dError names what is wrong."""
    chances: dict[str, float] = {}
    for word in words:
        name, _, given = word.partition("=")
        try:
            chance = float(given)
        except ValueError:
            chance = -1.0
        if name not in NAMES or not 0 <= chance <= 1:
            raise Mim3dError(
                f"artefacts={word!r}: write NAME=CHANCE with a chance in [0, 1] and a name of "
                f"{', '.join(NAMES)}, such as gamma=0.3"
            )
        if name in chances:
            raise Mim3dError(f"artefacts={word!r}: {name} stands there twice; give one chance")
        chances[name] = chance
    return replace(
        NO_ARTEFACTS, **{name.replace("-", "_"): chance for name, chance in chances.items()}
    )
