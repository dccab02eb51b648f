"""The Zarr metadata around the arrays: OME-Zarr 0.5 groups and the NIfTI header array."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from mim3d.dataio.geometry import Grid

OME_VERSION = "0.5"
SPACE = ("z", "y", "x")
NIFTI_MAX = 32767


def json_bytes(document: dict[str, Any]) -> bytes:
    """A zarr.json document, the same bytes for the same content.

    Without indentation json's C encoder does it: five times faster, which small volumes feel.
    """
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def group(attributes: dict[str, Any]) -> bytes:
    """zarr.json of a group."""
    return json_bytes({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def multiscale(
    name: str, grid: Grid, channels: int, path: str = "0", halvings: int = 0
) -> dict[str, Any]:
    """An OME multiscale image, its array at `path`; coarser scales, each half the one before, at
    1, 2, ...

    The translation is the world position of the first voxel; OME 0.5 has no rotation, so for an
    oblique volume only the NIfTI header tells the whole affine.
    """
    first = grid.affine[:3, 3].tolist()[::-1]
    axes: list[dict[str, str]] = [
        {"name": axis, "type": "space", "unit": "millimeter"} for axis in SPACE
    ]
    axes = [{"name": "c", "type": "channel"}, *axes] if channels > 1 else axes
    levels = []
    for level in range(halvings + 1):
        side = 1 << level
        scale = [mm * side for mm in grid.spacing_mm]
        # The middle of the first voxel moves with its size.
        shift = [at + mm * (side - 1) / 2 for at, mm in zip(first, grid.spacing_mm, strict=True)]
        if channels > 1:
            scale, shift = [1.0, *scale], [0.0, *shift]
        transforms = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": shift},
        ]
        at_path = str(level) if level else path
        levels.append({"path": at_path, "coordinateTransformations": transforms})
    return {"name": name, "axes": axes, "datasets": levels}


def image_group(
    name: str,
    grid: Grid,
    channels: int,
    extra: dict[str, Any],
    labels: Mapping[str, str],
    halvings: int = 0,
) -> bytes:
    """zarr.json of an image and of `labels` beside it (path of each by name), which are further
    multiscale images: OME-Zarr's readers take the first. `extra` stands under the key mim3d."""
    scales = [multiscale(name, grid, channels, halvings=halvings)]
    scales += [multiscale(label, grid, 1, path) for label, path in labels.items()]
    return group({"ome": {"version": OME_VERSION, "multiscales": scales}, "mim3d": extra})


def labels_group(names: list[str]) -> bytes:
    """zarr.json of the `labels` group of an image."""
    return group({"ome": {"version": OME_VERSION, "labels": names}})


def label_group(name: str, grid: Grid, classes: list[int], extra: dict[str, Any]) -> bytes:
    """zarr.json of one label image; `extra` stands under the key mim3d."""
    described = {
        "properties": [{"label-value": number} for number in classes],
        "source": {"image": "../../"},
    }
    ome = {
        "version": OME_VERSION,
        "multiscales": [multiscale(name, grid, 1)],
        "image-label": described,
    }
    return group({"ome": ome, "mim3d": extra})


def nifti_header(
    grid: Grid, channels: int, dtype: str, slope: float, intercept: float, code: int
) -> bytes:
    """The NIfTI header (348 bytes, 540 beyond 32767 voxels) of the stored array in its own grid.

    No text of the source's header is carried over: it may name a person.
    """
    shape = grid.shape[::-1] if channels == 1 else (*grid.shape[::-1], 1, channels)
    import nibabel as nib  # takes long to load

    kind = nib.Nifti1Header if max(shape) <= NIFTI_MAX else nib.Nifti2Header
    header = kind()
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(dtype))
    header.set_sform(grid.affine, code=code or 2)
    header["pixdim"][1:4] = grid.spacing_mm[::-1]
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["vox_offset"] = kind.sizeof_hdr + 4
    header.set_xyzt_units("mm", "sec")
    return header.binaryblock


def consolidated(group: bytes, inside: Mapping[str, bytes], header: bytes) -> bytes:
    """A group's zarr.json with the metadata of all below it, by path, and the NIfTI header.

    The header is an array of which the fill value is all there is, so that it takes no file:
    nifti-zarr's readers go through zarr-python, which reads it so.
    """
    nodes = {path: json.loads(text) for path, text in inside.items()} | {
        "nifti": header_array(header)
    }
    found = {"kind": "inline", "must_understand": False, "metadata": dict(sorted(nodes.items()))}
    return json_bytes(json.loads(group) | {"consolidated_metadata": found})


def header_array(header: bytes) -> dict[str, Any]:
    """zarr.json of the array that holds the header as one element of so many bytes."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1],
        "data_type": {"name": "raw_bytes", "configuration": {"length_bytes": len(header)}},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": base64.b64encode(header).decode(),
        "codecs": [{"name": "bytes"}],
        "attributes": {},
        "storage_transformers": [],
    }


def pack_points(points: dict[int, np.ndarray]) -> dict[str, str]:
    """Points as JSON holds them: base64 of little-endian uint32 (n, 3) by class."""
    return {
        str(number): base64.b64encode(zyx.astype("<u4").tobytes()).decode()
        for number, zyx in points.items()
    }


def unpack_points(packed: dict[str, str]) -> dict[int, np.ndarray]:
    """Inverse of `pack_points`."""
    return {
        int(number): np.frombuffer(base64.b64decode(text), "<u4").reshape(-1, 3)
        for number, text in packed.items()
    }
