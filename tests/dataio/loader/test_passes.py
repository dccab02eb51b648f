"""The loader as a guest: passes with a length, in torch's DataLoader, resumed within a pass."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.loader import Loader

CONFIG = LoaderConfig(crop_size=(12, 12, 12), micro_batch=2, snap=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    volumes = [anatomy_like((20, 21, 22), i) for i in range(7)]
    return corpus_of(tmp_path_factory.mktemp("passes") / "c.zarr", volumes)


def samples(batches) -> list[int]:
    return np.concatenate([batch.sample.numpy() for batch in batches]).tolist()


def test_a_pass_ends_and_the_next_goes_on(root):
    with Loader(root, CONFIG, epochs=1) as loader:
        assert len(loader) == 3
        assert samples(loader) == list(range(6))
        assert samples(loader) == list(range(6, 12))
    with Loader(root, CONFIG, epochs=2, rank=1, world=2) as loader:
        assert len(loader) == 3
        assert samples(loader) == [2, 3, 6, 7, 10, 11]
    with Loader(root, LoaderConfig(**{**vars(CONFIG), "micro_batch": 9}), epochs=1) as loader:
        assert len(loader) == len(list(loader)) == 1


def test_without_epochs_there_is_no_end_and_no_length(root):
    with Loader(root, CONFIG) as loader:
        assert loader
        assert iter(loader) is loader
        with pytest.raises(TypeError, match="give epochs=1 for passes"):
            len(loader)
    for epochs in (0, -1, 1.5, "1"):
        with pytest.raises(Mim3dError, match="at least 1, or None"):
            Loader(root, CONFIG, epochs=epochs)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("taken", range(7))
def test_a_state_within_a_pass_finishes_it_in_a_data_loader(root, taken):
    def drawn(loader: Loader):
        return DataLoader(loader, batch_size=None, num_workers=0)

    with Loader(root, CONFIG, epochs=1) as whole:
        guest = drawn(whole)
        assert len(guest) == 3
        expected = [*guest, *guest, *guest]
    with Loader(root, CONFIG, epochs=1) as first:
        guest, found = drawn(first), []
        while len(found) < taken:
            for batch in guest:
                found.append(batch)
                if len(found) == taken:
                    break
        state = first.state_dict()
    with Loader(root, CONFIG, epochs=1) as second:
        second.load_state_dict(state)
        guest = drawn(second)
        rest = list(guest)
        assert len(rest) == 3 - taken % 3  # to the end of the pass under way
        found += [*rest, *guest][: 9 - taken]
        found += list(guest)[: 9 - len(found)]
    assert samples(found) == samples(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.image, theirs.image)


def test_workers_are_refused_with_what_works(root):
    with Loader(root, CONFIG, epochs=1) as loader:
        guest = DataLoader(loader, batch_size=None, num_workers=1, multiprocessing_context="fork")
        with pytest.raises(Exception, match="num_workers=0"):
            next(iter(guest))
        assert samples(DataLoader(loader, batch_size=None, num_workers=0)) == list(range(6))
