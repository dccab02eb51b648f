"""What a DALI graph is built from, and which augmentation parameters it takes."""

from dataclasses import dataclass

from mim3d.dataio.augment import Augmentation
from mim3d.dataio.chunk_boxes import Triple

PARAMETERS = ("roi_start", "roi_end", "turn", "matrix", "gain", "bias", "blurred", "sigma")


@dataclass(frozen=True)
class GraphSpec:
    """What the graph is built from; two equal specs build equal graphs.

    `device_id` None runs on the CPU. `strong` asks for augmentation per view inside the graph
    (resized crop, blur, contrast); else flips and intensities were done while reading and only a
    rotation with zoom is left, applied to image and label alike. `label_dtype` is a numpy name,
    or None without labels.
    """

    batch: int
    channels: int
    crop_size: Triple
    views: int
    label_dtype: str | None
    strong: bool
    augmentation: Augmentation
    device_id: int | None
    threads: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """Fields of ViewDraws that the graph takes for every view."""
        kind = self.augmentation
        wanted = {"turn", "matrix"} if kind.rotate else set()
        if self.strong:
            wanted |= {"roi_start", "roi_end", "gain", "bias"}
            wanted |= {"blurred", "sigma"} if kind.blur else set()
        return tuple(name for name in PARAMETERS if name in wanted)
