"""One crop to be read: from where, what is done to it on the way, and what pads it."""

from typing import NamedTuple

from mim3d.dataio.chunk_boxes import Triple
from mim3d.dataio.chunk_decode import Affine
from mim3d.dataio.crop_job import CropJob

Flip = tuple[bool, bool, bool]


class Request(NamedTuple):
    """One crop: a row of `arrays`, its first voxel, flips, intensities, and the stored padding."""

    row: int
    start: Triple
    flip: Flip
    affine: Affine | None
    fill: float


def image_request(
    job: CropJob, volume: int, start: Triple, flip: Flip, gain: float, bias: float
) -> Request:
    """The image's crop: flips, normalisation, gain and bias all at once."""
    return Request(
        int(job.image_rows[volume]),
        start,
        flip,
        job.intensities.affine(volume, gain, bias),
        float(job.intensities.fill[volume]),
    )


def label_request(job: CropJob, volume: int, start: Triple, flip: Flip) -> Request:
    """The crop of the volume's label; padding is background."""
    assert job.label_rows is not None
    return Request(int(job.label_rows[volume]), start, flip, None, 0.0)
