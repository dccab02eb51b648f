"""Corpora of known voxels, made through NIfTI files and the converter: for benches and tests."""

import itertools
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image

from mim3d.dataio.convert.run import convert
from mim3d.dataio.corpus.conversion import Conversion
from mim3d.dataio.sources.source import Source

VOLUMES = 64
"""Of a bench's corpus: with fewer, crops of one batch lie in the same volumes and share chunks."""


def corpus_of(
    root: Path,
    volumes: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    *,
    conversion: Conversion | None = None,
    subjects: Sequence[str] | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
    workers: int = 1,
) -> Path:
    """Convert (z, y, x) or (c, z, y, x) arrays to a corpus at `root`; ids are v0000, v0001 ...

    Stored voxels equal the arrays; `subjects` default to one per volume, s0000 ...
    """
    folder = root.parent / f"{root.name}-nifti"
    folder.mkdir(parents=True)
    sources = []
    for i, voxels in enumerate(volumes):
        channels = voxels if voxels.ndim == 4 else voxels[None]
        images = tuple(
            _save(folder / f"v{i:04d}-{c}.nii", channel, slope, intercept)
            for c, channel in enumerate(channels)
        )
        label: Mapping[str, str] = {}
        if labels is not None:
            label = {"seg": _save(folder / f"v{i:04d}-seg.nii", labels[i])}
        subject = f"s{i:04d}" if subjects is None else subjects[i]
        sources.append(Source(f"v{i:04d}", images, label, subject=subject))
    report = convert(sources, root, conversion, workers=workers)
    if report.n_quarantined:
        raise RuntimeError(f"the converter refused generated volumes: {report.rejections}")
    return root


def bench_corpus(root: Path, volumes: Sequence[np.ndarray], workers: int) -> Path:
    """The corpus of a bench: its NIfTI files, which are large, are removed afterwards."""
    corpus_of(root, volumes, workers=workers)
    shutil.rmtree(root.parent / f"{root.name}-nifti")
    return root


def many_volumes(shape: tuple[int, int, int], n: int = VOLUMES) -> list[np.ndarray]:
    """`n` volumes that differ in every chunk: a few generated ones and their mirror images.

    Mirror images are views, so 64 volumes take the memory of eight.
    """
    mirrors = list(itertools.product((1, -1), repeat=3))
    generated = [anatomy_like(shape, seed) for seed in range(-(-n // len(mirrors)))]
    return [volume[::z, ::y, ::x] for z, y, x in mirrors for volume in generated][:n]


def anatomy_like(shape: tuple[int, int, int], seed: int, dtype: str = "int16") -> np.ndarray:
    """Smooth structures, air around them and scanner noise: compresses about as MR volumes do."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    body = radius < 0.9 + 0.1 * rng.random()
    waves = np.sin(9 * x + 4 * rng.random()) * np.cos(7 * y)[:, None] + np.sin(5 * z)[:, None, None]
    noise = rng.standard_normal(shape, np.float32)
    voxels = np.where(body, 600 + 150 * waves + 12 * noise, np.abs(6 * noise))
    return voxels.astype(dtype)


def _save(file: Path, voxels: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> str:
    Nifti1Image(np.ascontiguousarray(voxels.T), np.eye(4)).to_filename(file)
    if (slope, intercept) != (1.0, 0.0):
        _set_scaling(file, slope, intercept)
    return str(file)


def _set_scaling(file: Path, slope: float, intercept: float) -> None:
    """Write scl_slope and scl_inter (bytes 112 to 120) of a little-endian NIfTI-1 file."""
    data = bytearray(file.read_bytes())
    data[112:120] = np.array([slope, intercept], "<f4").tobytes()
    file.write_bytes(bytes(data))
