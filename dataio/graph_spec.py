"""What a DALI graph is built from, and which augmentation parameters it takes."""

from dataclasses import dataclass

from mim3d.dataio.augment import Augmentation
from mim3d.dataio.chunk_boxes import Triple

BOXES = ("resized", "roi_start", "roi_end")
TURNS = ("turn_z", "turn_y", "turn_x", "matrix")
BLURS = ("blurred", "sigma")
CONTRASTS = ("gain", "bias")


@dataclass(frozen=True)
class GraphSpec:
    """What the graph is built from; two equal specs build equal graphs.

    `device_id` None runs on the CPU. With `augmentation.per_view` the graph flips and changes
    intensities; else that was done while reading and only zoom and rotation are left, applied to
    image and label alike. `label_dtype` is a numpy name, or None without labels. With
    `device_input` image and label arrive as tensors on the GPU.
    """

    batch: int
    channels: int
    crop_size: Triple
    views: int
    label_dtype: str | None
    augmentation: Augmentation
    device_id: int | None
    threads: int
    device_input: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether nothing is left to do: no operator, and crops are read where they are wanted."""
        return not self.parameters and (self.device_id is None or self.device_input)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Fields of ViewDraws that the graph takes for every view."""
        kind = self.augmentation
        return (
            *(BOXES[1:] if kind.per_view else BOXES if kind.rescale else ()),
            *(TURNS if kind.rotate else ()),
            *(BLURS if kind.blur else ()),
            *(CONTRASTS if kind.per_view else ()),
        )
