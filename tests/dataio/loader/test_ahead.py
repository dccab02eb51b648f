"""Batches made on a device ahead of their step: in the right order, of the right bits, to any end.

The device is `RaceDevice`: what a GPU might do wrong is a fault there, and so is a host that waits.
"""

import gc
import threading
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from race_device import COMPUTE, SIDE, RaceDevice, RaceError, a_device

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.device.staged import Staged
from mim3d.dataio.errors import ChunkError
from mim3d.dataio.loader.batch import Batch
from mim3d.dataio.loader.crop_source import CropSource
from mim3d.dataio.loader.loader import Loader, LoaderConfig
from mim3d.dataio.loader.staged_source import StagedSource
from mim3d.dataio.loader.upload_source import UploadSource
from mim3d.dataio.reader.corpus import Corpus

CROP = (16, 12, 32)
SHAPES = [(40, 33, 45), (30, 30, 36), (12, 40, 40), (50, 20, 16), (33, 34, 35)]
PATHS: dict[str, dict[str, Any]] = {
    "voxels": {"cache": "device", "device_keeps": "voxels"},
    "chunks": {"cache": "device", "device_keeps": "chunks"},
    "few chunks": {"cache": "device", "device_keeps": "chunks", "cache_bytes": 60_000},
    "host": {"cache": "host"},
    "none": {"cache": "none"},
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"snap": 1},
    "bfloat16": {"dtype": "bfloat16", "augment": "mim"},
    "float16": {"dtype": "float16", "augment": "mim"},
    "clipped": {"augment": "mim", "normalise": "clip-zscore"},
    "labelled": {"label": "seg", "augment": "mim", "foreground_fraction": 0.5},
    "ignoring": {"ignore": ("padding", "air", "label:seg"), "augment": "mim"},
    "ignoring, clipped": {"ignore": ("air",), "augment": "mim", "normalise": "clip-zscore"},
}
MOVES = {
    "turned": {"augment": "spatial", "label": "seg", "crop_size": (12, 12, 12)},
    "turned, ignoring": {"augment": "spatial", "ignore": ("label:seg",), "snap": 1},
    "turned, ignoring air": {"augment": "spatial", "ignore": ("air", "label:seg"), "snap": 1},
}
WAYS = [
    *((path, kind) for path in PATHS for kind in KINDS),
    *((path, kind) for path in ("voxels", "chunks", "host") for kind in MOVES),
]
Parts = list[list[np.ndarray]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("ahead"), "int16")


def corpus(folder: Path, *dtypes: str) -> Path:
    kinds = (dtypes * len(SHAPES))[: len(SHAPES)]
    volumes = [anatomy_like(s, i, d) for i, (s, d) in enumerate(zip(SHAPES, kinds, strict=True))]
    labels = [(volume > 0.5 * volume.max()).astype(np.uint8) for volume in volumes]
    return corpus_of(folder / "c.zarr", volumes, labels)


def config(path: str, kind: str = "plain", **more: Any) -> LoaderConfig:
    given = {"crop_size": CROP, "micro_batch": 3, "threads": 2, "snap": 4}
    return LoaderConfig(**{**given, **PATHS[path], **(KINDS | MOVES)[kind], **more})


def taken(loader: Loader, device: RaceDevice) -> Batch:
    """The next batch, read by a step as soon as it is there; nothing of it may wait."""
    with device.hot():
        batch = next(loader)
        batch.image.float().sum()
        if batch.label is not None:
            batch.label.sum()
    return batch


def let_reads_end(loader: Loader) -> None:
    wait_for_reads(loader._source)


def wait_for_reads(source: CropSource) -> None:
    for _, work in list(source._pending.values()):
        work.wait()


def parts(batch: Batch) -> list[np.ndarray]:
    """Copies of a batch's bytes, and which samples they are."""
    beside = [each for each in (batch.label, batch.weight) if each is not None]
    tensors = [batch.image, *beside, batch.sample]
    return [tensor.contiguous().view(torch.uint8).numpy().copy() for tensor in tensors]


def on_device(loader: Loader, device: RaceDevice, n: int) -> Parts:
    found = []
    for _ in range(n):
        batch = taken(loader, device)
        device.synchronize()
        found.append(parts(batch))
    return found


@cache
def on_cpu(root: Path, kind: str, n: int, **more: Any) -> Parts:
    with Loader(root, config("none", kind, **more)) as loader:
        return [parts(next(loader)) for _ in range(n)]


def check_same(found: Parts, wanted: Parts) -> None:
    for here, there in zip(found, wanted, strict=True):
        for a, b in zip(here, there, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("path", "kind"), WAYS)
def test_every_way_to_a_device_has_the_cpus_bits_and_waits_for_nothing(root, path, kind):
    wanted = on_cpu(root, kind, 6)
    with a_device() as device, Loader(root, config(path, kind)) as loader:
        check_same(on_device(loader, device, 6), wanted)


@pytest.mark.parametrize(
    ("dtypes", "kind", "raw"),
    [
        (("uint8",), "clipped", "uint8"),
        (("uint8",), "bfloat16", "uint8"),
        (("int16",), "clipped", "int16"),
        (("int16",), "bfloat16", None),
        (("float32",), "clipped", None),
        (("int16", "uint8"), "clipped", None),
    ],
)
def test_crops_cross_the_bus_in_the_shorter_form(tmp_path, dtypes, kind, raw):
    """As stored where that is shorter and all volumes are alike, else as they are wanted."""
    root = corpus(tmp_path, *dtypes)
    wanted = on_cpu(root, kind, 4)
    with a_device() as device, Loader(root, config("none", kind)) as loader:
        assert isinstance(loader._source, UploadSource)
        assert loader._source.raw == raw
        check_same(on_device(loader, device, 4), wanted)


@pytest.mark.parametrize("path", PATHS)
def test_the_next_batch_is_queued_before_this_one_is_worked_on(root, path):
    with a_device() as device, Loader(root, config(path)) as loader:
        taken(loader, device)
        for number in range(1, 5):
            let_reads_end(loader)
            device.log.clear()
            taken(loader, device)
            lanes = [lane for lane, _ in device.log]
            waits = [at for at, what in enumerate(device.log) if what == (COMPUTE, "wait for side")]
            assert len(waits) == 1, number
            assert SIDE in lanes[: waits[0]]
            assert SIDE not in lanes[waits[0] :]


@pytest.mark.parametrize("path", PATHS)
def test_the_host_is_never_more_than_two_batches_ahead_of_the_device(root, path):
    """It waits for a step that two later ones stand behind: the device never stands still."""
    with a_device() as device, Loader(root, config(path)) as loader:
        done = []
        for _ in range(6):
            taken(loader, device)
            done.append(device.seen(COMPUTE))
        steps = [mine for mine, _ in done]
        assert [known for _, known in done] == [0, 0, 0, *steps[:3]]


def test_a_batch_that_is_still_read_keeps_no_other_waiting(root, monkeypatch):
    """It is begun in its own turn."""
    gate = threading.Event()
    plain = UploadSource._load

    def slow(source: Any, batch: Any, i: int, requests: Any) -> None:
        if int(batch.samples.sample[0]) >= 3:
            assert gate.wait(300), "the first batch waited for the second"
        plain(source, batch, i, requests)

    monkeypatch.setattr(UploadSource, "_load", slow)
    wanted = on_cpu(root, "plain", 3)
    with a_device() as device, Loader(root, config("none")) as loader:
        first = on_device(loader, device, 1)
        gate.set()
        check_same(first + on_device(loader, device, 2), wanted)


@pytest.mark.parametrize("path", ["voxels", "chunks", "none"])
@pytest.mark.parametrize("left_out", ["wait", "hold"])
def test_each_part_of_the_order_is_needed(root, path, left_out, monkeypatch):
    """Without it the device finds a race: the tests above can fail."""
    monkeypatch.setattr(RaceDevice, left_out, lambda _device, _what: None)
    with a_device() as device, Loader(root, config(path)) as loader, pytest.raises(RaceError):
        for _ in range(4):
            taken(loader, device)


@pytest.mark.parametrize("path", ["voxels", "chunks"])
@pytest.mark.parametrize("whose", ["side", "compute"])
def test_what_is_kept_is_the_side_lanes_memory(root, path, whose, monkeypatch):
    """Another lane's would be used again at once when the loader goes, with work still queued.

    So the second batch must have been begun, whose chunks are the last to be kept.
    """
    plain = StagedSource._is_read

    def read_by_then(source: StagedSource, number: int) -> bool:
        wait_for_reads(source)
        return plain(source, number)

    monkeypatch.setattr(StagedSource, "_is_read", read_by_then)
    with a_device() as device:
        if whose == "compute":
            device.side = nullcontext  # type: ignore[method-assign]
        loader = Loader(root, config(path))
        vars(device).pop("side", None)
        taken(loader, device)
        source = loader._source
        assert isinstance(source, StagedSource)
        assert list(source._begun) == [1]
        del source
        loader.close()
        del loader
        gc.collect()
        with nullcontext() if whose == "side" else pytest.raises(RaceError, match="let go of"):
            device.record()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seen", [0, 1, 3])
def test_it_may_be_closed_or_set_back_at_any_moment(root, path, seen):
    """With a batch begun and others read; the bits after a return are those of the place."""
    wanted = on_cpu(root, "labelled", 5)
    others = set(threading.enumerate())  # of which any may end meanwhile
    with a_device() as device:
        with Loader(root, config(path, "labelled")) as loader:
            for _ in range(seen):
                taken(loader, device)
            let_reads_end(loader)
            place = loader.state_dict()
            if seen:
                taken(loader, device)
                let_reads_end(loader)
                loader.load_state_dict(place)
            check_same(on_device(loader, device, 2), wanted[seen : seen + 2])
            let_reads_end(loader)
        device.record()
        with Loader(root, config(path, "labelled")) as other:
            other.load_state_dict(place)
            check_same(on_device(other, device, 2), wanted[seen : seen + 2])
    assert not set(threading.enumerate()) - others


@pytest.mark.parametrize("path", PATHS)
def test_a_damaged_chunk_is_told_in_its_own_turn(tmp_path, path, spoil):
    root = corpus(tmp_path, "int16")
    spoil(root, 2)
    with a_device() as device, Loader(root, config(path, micro_batch=1)) as loader:
        due = loader.sampler.samples(0, 5).volume.tolist().index(2)
        for _ in range(due):
            taken(loader, device)
            let_reads_end(loader)
        for _ in range(2):  # again, for nothing was skipped
            with pytest.raises(ChunkError, match="volume v0002"):
                next(loader)


@pytest.mark.parametrize("path", PATHS)
def test_ctrl_c_while_a_batch_is_begun_loses_none(root, path, monkeypatch):
    wanted = on_cpu(root, "plain", 4)
    with a_device() as device, Loader(root, config(path)) as loader:
        found = on_device(loader, device, 1)
        kind: Any = type(loader._source)
        plain, calls = kind._begin, iter([True])

        def interrupted(source: Any, batch: Any) -> Staged:
            made = plain(source, batch)
            if next(calls, False):
                raise KeyboardInterrupt
            return made

        monkeypatch.setattr(kind, "_begin", interrupted)
        let_reads_end(loader)
        with pytest.raises(KeyboardInterrupt):
            next(loader)
        check_same(found + on_device(loader, device, 3), wanted)


def test_passes_end_and_go_on(root):
    with a_device(), Loader(root, config("voxels", micro_batch=2), epochs=1) as loader:
        for expected in (range(4), range(4, 8)):
            assert [int(i) for batch in loader for i in batch.sample] == list(expected)


def test_what_is_replaced_is_what_the_cpu_replaces(tmp_path):
    root = corpus(tmp_path, "int16")
    table = Corpus.open(root).table
    file = root / table.shard_path(int(table.volumes["image"][1]))
    file.write_bytes(file.read_bytes()[:40] + bytes(len(file.read_bytes()) - 40))
    wanted = on_cpu(root, "labelled", 5, on_error="replace")
    for path in PATHS:
        with a_device() as device, Loader(root, config(path, "labelled", on_error="replace")) as it:
            check_same(on_device(it, device, 5), wanted)
            assert it.metrics()["replaced"] > 0


def test_a_loader_on_a_cpu_is_not_ahead(root):
    with Loader(root, config("none")) as loader:
        assert not isinstance(loader._source, StagedSource)
    with Loader(root, config("voxels")) as loader:
        next(loader)
        let_reads_end(loader)
        next(loader)
        assert isinstance(loader._source, StagedSource)
        assert not loader._source._begun


def test_stages_are_timed(root):
    with a_device() as device:
        for path, stages in (("voxels", ("copy", "inflate", "assemble")), ("none", ("copy",))):
            with Loader(root, config(path)) as loader:
                taken(loader, device)
                metrics = loader.metrics()
                assert min(metrics[f"device_{stage}_s"] for stage in stages) > 0
