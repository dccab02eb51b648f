"""How scans are predicted and read; imports no torch."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import tyro

from mim3d.dataio.corpus.conversion import GIB, Conversion
from mim3d.dataio.finite import refuse_outside
from mim3d.engine.distributed.config import DeviceKind
from mim3d.engine.errors import ConfigError

OF_SCANS = ("nan_policy", "believe", "units")
"""What of a recipe may be told of scans otherwise."""


@dataclass(frozen=True)
class ScanOptions:
    """Where scans are files: what of a broken or doubtful one is taken, beside the run's recipe."""

    layout: Literal["auto", "folder", "msd", "nnunet", "bids", "nnssl", "csv", "dicom"] = "auto"
    """How files belong together; auto looks."""
    channels: tuple[str, ...] = ()
    """Words of file names whose images of one visit are the channels of one scan, in this order; by
    default CASE_0000, CASE_0001, ..., or the names of the channels that were learned from."""
    nan_policy: Literal["run", "reject", "zero", "keep"] = "run"
    """NaN and infinities: zero takes them as 0, else their scan is set aside; run: as for the
    corpus of the run, as are the two below."""
    believe: Literal["run", "auto", "sform", "qform", "pixdim"] = "run"
    """Which of a header's affines is believed where they differ."""
    units: Literal["run", "header", "mm"] = "run"
    """Unit of voxel sizes: the header's, or mm whatever it says."""
    byte_budget: int = 8 * GIB
    """Largest decoded file, in bytes."""

    def __post_init__(self) -> None:
        refuse_outside(self, "byte_budget", 1, kind=ConfigError)

    @property
    def of_recipe(self) -> dict[str, str]:
        """Those that the run's recipe has too, and that decide the voxels."""
        return {name: getattr(self, name) for name in OF_SCANS}

    @property
    def given(self) -> list[str]:
        """Options that say how files are read, where they are others than by default."""
        fresh = ScanOptions()
        names = (*OF_SCANS, "layout", "channels")
        differ = [name for name in names if getattr(self, name) != getattr(fresh, name)]
        return [f"--{name.replace('_', '-')}" for name in differ]

    def applied_to(self, conversion: Conversion) -> Conversion:
        """The run's recipe with these in the place of its own."""
        kept: dict[str, Any] = {k: v for k, v in self.of_recipe.items() if v != "run"}
        return replace(conversion, byte_budget=self.byte_budget, **kept)


@dataclass(frozen=True)
class PredictConfig:
    """What is made of the scans, and how."""

    probabilities: bool = False
    """Beside the label maps write probabilities/ID.nii.gz: float32, the classes along a fourth
    axis."""
    overlap: float = -1.0
    """Overlap of neighbouring windows, in [0, 1); that of the run's validation by default."""
    mirror: bool = False
    """Mean over the eight reflections of every window: eight times the time, for runs that were
    trained with flips."""
    ids: tuple[str, ...] = ()
    """Only these scans; all by default."""
    device: DeviceKind = "auto"
    """auto, cpu or cuda."""
    scans: Annotated[ScanOptions, tyro.conf.arg(name="")] = field(default_factory=ScanOptions)

    def __post_init__(self) -> None:
        if not (self.overlap == -1.0 or 0.0 <= self.overlap < 1.0):
            raise ConfigError(f"overlap {self.overlap} must be in [0, 1)")


@dataclass(frozen=True)
class EmbedConfig:
    """What is kept of the scans."""

    what: Literal["pooled", "tokens"] = "pooled"
    """pooled: one vector a volume, all of them in pooled.npz too; tokens: every token of every
    window, with where the windows begin."""
    ids: tuple[str, ...] = ()
    """Only these scans; all by default."""
    device: DeviceKind = "auto"
    """auto, cpu or cuda."""
    scans: Annotated[ScanOptions, tyro.conf.arg(name="")] = field(default_factory=ScanOptions)
