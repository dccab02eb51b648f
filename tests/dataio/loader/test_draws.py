"""Batches drawn together are what each is by itself."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim3d.bench.corpora import corpus_of
from mim3d.dataio.corpus.chunk_table import choose_volumes
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.crop_spec import crop_job, make_sampler
from mim3d.dataio.loader.draws import TOGETHER, draws
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.transforms.augment import augmentation, draw_flips, draw_view


@pytest.fixture(scope="module")
def job_and_sampler(tmp_path_factory):
    rng = np.random.default_rng(0)
    volumes = [rng.integers(1, 99, (20 + i, 24, 28), np.int16) for i in range(5)]
    root = corpus_of(tmp_path_factory.mktemp("draws") / "c.zarr", volumes)
    table = Corpus.open(root).table
    config = LoaderConfig(crop_size=(16, 16, 16), micro_batch=2, seed=7, snap=4)
    chosen = choose_volumes(table, None, None)
    return crop_job(table, config, chosen), make_sampler(table, config, chosen)


def assert_equal(one, other) -> None:
    for field in fields(one):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


@given(
    first=st.integers(0, 10**6),
    count=st.integers(1, TOGETHER + 6),
    more=st.integers(0, 500),
    views=st.integers(1, 2),
    kind=st.sampled_from(["none", "mim", "contrastive", "segmentation"]),
    numbers=st.lists(st.integers(0, 300), min_size=1, max_size=6),
)
def test_a_batch_is_drawn_as_by_itself(job_and_sampler, first, count, more, views, kind, numbers):
    job, sampler = job_and_sampler
    job = replace(job, augmentation=augmentation(kind), views=views)
    stride = count + more
    drawn = draws(sampler, job, first, stride, count)
    for number in numbers:
        batch, alone = drawn(number), sampler.samples(first + number * stride, count)
        assert_equal(batch.samples, alone)
        seeds = alone.augment_seed
        np.testing.assert_array_equal(batch.flips, draw_flips(job.augmentation, seeds))
        assert len(batch.views) == views
        for view, got in enumerate(batch.views):
            assert_equal(got, draw_view(job.augmentation, seeds, view, job.crop_size))
