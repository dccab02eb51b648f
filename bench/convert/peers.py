"""Other ways to the same end that a user may pick, for `mim3d bench convert --peers`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim3d.dataio.chunks.codec import INDEX_CODECS, ChunkCodec


def prepare_script(files: Sequence[str], folder: Path, side: int) -> Callable[[], Any]:
    """What one writes in ten minutes: nibabel, zarr-python, the same shards, chunks and codecs."""
    import nibabel as nib
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    def run() -> None:
        root = zarr.open_group(folder / "script.zarr", mode="w")
        for file in files:
            image = nib.as_closest_canonical(nib.load(file))
            voxels = np.ascontiguousarray(np.asanyarray(image.dataobj).T)
            # The settings our corpora have, so that both compress the same chunks alike.
            settings = ChunkCodec("lz4", voxels.dtype.name, (side,) * 3).metadata[1]
            compressor = BloscCodec(**settings["configuration"])
            array = root.create_array(
                Path(file).name,
                shape=voxels.shape,
                dtype=voxels.dtype,
                chunks=(side,) * 3,
                shards=tuple(-(-n // side) * side for n in voxels.shape),
                compressors=[compressor, Crc32cCodec()],
            )
            array[...] = voxels
            array.attrs["affine"] = image.affine.tolist()

    return run


def load_zyx(file: str) -> np.ndarray:
    """Voxels in z, y, x order as nibabel gives them, contiguous."""
    from nibabel.nifti1 import load

    return np.ascontiguousarray(np.asanyarray(load(file).dataobj).T)


def prepare_zarrs(files: Sequence[str], folder: Path, side: int) -> Callable[[], Any]:
    """The script on zarrs' Rust pipeline in place of zarr-python's own."""
    import zarr

    run = prepare_script(files, folder, side)

    def faster() -> None:
        pipeline = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}
        with zarr.config.set(pipeline):
            run()

    return faster


def prepare_tensorstore(files: Sequence[str], folder: Path, side: int) -> Callable[[], Any]:
    """nibabel and tensorstore, the same sharded layout."""
    import tensorstore as ts

    chunk = (side,) * 3

    def spec(file: str, voxels: np.ndarray) -> dict[str, Any]:
        shard = [-(-n // c) * c for n, c in zip(voxels.shape, chunk, strict=True)]
        sharding = {
            "chunk_shape": list(chunk),
            "codecs": ChunkCodec("lz4", voxels.dtype.name, chunk).metadata,
            "index_codecs": INDEX_CODECS,
        }
        return {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / "ts.zarr" / Path(file).name)},
            "metadata": {
                "shape": list(voxels.shape),
                "data_type": voxels.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard}},
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            },
            "create": True,
        }

    def run() -> None:
        context = ts.Context({"data_copy_concurrency": {"limit": 1}})
        for file in files:
            voxels = load_zyx(file)
            store = ts.open(spec(file, voxels), context=context).result()
            store.write(voxels).result()

    return run


def prepare_blosc2(files: Sequence[str], folder: Path, side: int) -> Callable[[], Any]:
    """nibabel and blosc2 as nnU-Net and nnssl store: float32, zstd-8, 1 thread, own chunks."""
    import blosc2

    parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=8, nthreads=1)

    def run() -> None:
        blosc2.set_nthreads(1)
        for file in files:
            voxels = load_zyx(file)[None].astype(np.float32)
            blosc2.asarray(
                voxels,  # pyright: ignore[reportArgumentType]
                urlpath=str(folder / (Path(file).name + ".b2nd")),
                chunks=(1, *(min(n, 160) for n in voxels.shape[1:])),
                blocks=(1, *(min(n, 40) for n in voxels.shape[1:])),
                cparams=parameters,
            )

    return run


def prepare_niizarr(files: Sequence[str], folder: Path, side: int) -> Callable[[], Any]:
    """nifti-zarr's own converter, one level, its default codec and chunks."""
    import niizarr

    def run() -> None:
        for file in files:
            out = str(folder / (Path(file).name + ".nii.zarr"))
            niizarr.nii2zarr(file, out, no_time=True, nb_levels=1)

    return run


PEERS = {
    "zarrs": prepare_zarrs,
    "tensorstore": prepare_tensorstore,
    "blosc2-zstd8": prepare_blosc2,
    "nifti-zarr": prepare_niizarr,
}
