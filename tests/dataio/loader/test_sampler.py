"""The sampler as a pure function: epochs, world sizes, resume, weights, foreground, padding."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.sampler import Nodes, Sampler, volume_weights
from mim3d.dataio.reader.label_points import Points

CROP = (32, 32, 32)


def sampler_of(n=10, shape=(100, 80, 61), seed=0, **options):
    shapes = np.tile(np.array(shape), (n, 1))
    return Sampler(seed, np.arange(n) * 3, shapes, options.pop("crop", CROP), **options)


@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), epochs=st.integers(1, 4))
def test_every_epoch_visits_every_volume_once(n, seed, epochs):
    drawn = sampler_of(n, seed=seed).samples(0, n * epochs).volume.reshape(epochs, n)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == [3 * i for i in range(n)]


def test_epochs_are_shuffled_anew():
    drawn = sampler_of(50).samples(0, 100).volume
    assert drawn[:50].tolist() != drawn[50:].tolist()


@given(
    world=st.sampled_from([1, 2, 3, 4, 6, 12]),
    step=st.integers(0, 1000),
    weighting=st.booleans(),
)
def test_global_batches_do_not_depend_on_the_world_size(world, step, weighting):
    weights = np.arange(1.0, 11.0) if weighting else None
    whole = sampler_of(weights=weights).samples(step * 12, 12)
    share = 12 // world
    parts = [
        sampler_of(weights=weights).samples(step * 12 + rank * share, share)
        for rank in range(world)
    ]
    for name in ("sample", "volume", "start", "augment_seed"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_a_sample_does_not_depend_on_what_was_drawn_before():
    fresh, used = sampler_of(), sampler_of()
    used.samples(0, 500)
    np.testing.assert_array_equal(used.samples(7, 3).start, fresh.samples(7, 3).start)


@given(extent=st.integers(32, 90), snap=st.sampled_from([1, 5, 16, 32]))
def test_starts_are_snapped_inside_and_reach_the_last_voxel(extent, snap):
    drawn = sampler_of(1, (extent, 32, 40), snap=snap).samples(0, 600).start
    room = extent - 32
    reachable = set(range(0, room + 1, snap)) | {room}
    assert set(drawn[:, 0].tolist()) == reachable
    assert (drawn[:, 1] == 0).all()


def test_a_volume_smaller_than_the_crop_lies_in_its_middle():
    drawn = sampler_of(1, (20, 31, 32)).samples(0, 4).start
    assert (drawn == [-6, -1, 0]).all()


def test_weighted_epochs_give_each_volume_its_share_rounded_up_or_down():
    weights = np.array([1.0, 2.0, 3.0, 14.0])
    drawn = sampler_of(4, weights=weights).samples(0, 4 * 200).volume // 3
    for epoch in drawn.reshape(200, 4):
        counts = np.bincount(epoch, minlength=4)
        expected = 4 * weights / weights.sum()
        assert (np.abs(counts - expected) < 1).all()
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, weights / weights.sum(), atol=0.04)


def test_weights_come_from_the_table():
    rows = np.zeros(2, [("shape", "<u4", 3), ("foreground_box", "<u4", (2, 3))])
    rows["shape"] = [[10, 10, 10], [20, 10, 10]]
    rows["foreground_box"] = [[[1, 1, 1], [4, 4, 4]], [[0, 0, 0], [0, 0, 0]]]
    assert volume_weights("uniform", rows) is None
    np.testing.assert_array_equal(volume_weights("voxels", rows), [1000, 2000])
    np.testing.assert_array_equal(volume_weights("foreground", rows), [27, 1])
    with pytest.raises(Mim3dError, match="weighting='age'"):
        volume_weights("age", rows)


@given(snap=st.sampled_from([1, 16, 40]), seed=st.integers(0, 50))
def test_foreground_crops_contain_a_point_of_an_evenly_chosen_class(snap, seed):
    zyx = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3], [90, 70, 50]])
    points = Points(np.array([1, 1, 1, 2]), zyx)
    sampler = sampler_of(1, seed=seed, snap=snap, foreground_fraction=1.0, points=lambda _: points)
    start = sampler.samples(0, 64).start
    offset = zyx - start[:, None]
    inside = np.all((offset >= 0) & (offset < 32), axis=2)
    assert np.any(inside, axis=-1).all()
    assert 10 < inside[:, 3].sum() < 54
    assert (start >= 0).all()
    assert (start + 32 <= [100, 80, 61]).all()


def test_the_foreground_share_is_what_was_asked_for():
    zyx = np.array([[90, 70, 50]])
    points = Points(np.array([1]), zyx)
    options = {"snap": 1, "foreground_fraction": 0.3, "points": lambda _: points}
    start = sampler_of(1, **options).samples(0, 2000).start
    centred = (start == [68, 48, 29]).all(axis=1).mean()
    assert 0.25 < centred < 0.35


def test_a_volume_without_foreground_gets_an_ordinary_crop():
    points = Points(np.zeros(0, int), np.zeros((0, 3), int))
    plain = sampler_of(1).samples(0, 8).start
    asked = sampler_of(1, foreground_fraction=1.0, points=lambda _: points).samples(0, 8).start
    np.testing.assert_array_equal(plain, asked)


def test_replacements_are_deterministic_and_differ():
    a = [sampler_of().replacement(5, attempt) for attempt in range(1, 9)]
    b = [sampler_of().replacement(5, attempt) for attempt in range(1, 9)]
    assert [x.volume[0] for x in a] == [x.volume[0] for x in b]
    assert len({(int(x.volume[0]), *x.start[0].tolist()) for x in a}) > 4
    assert all(x.sample[0] == 5 for x in a)


def test_impossible_samplers_say_why():
    with pytest.raises(Mim3dError, match="no volume"):
        sampler_of(0)
    with pytest.raises(Mim3dError, match="weights"):
        sampler_of(2, weights=np.array([0.0, 0.0])).samples(0, 1)


clusters = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(0, 4))


@given(n=st.integers(1, 60), cluster=clusters, seed=st.integers(0, 2**40))
def test_with_nodes_every_epoch_visits_every_volume_once(n, cluster, seed):
    count, share, quarters = cluster
    nodes = Nodes(count, count * share, quarters / 4)
    drawn = sampler_of(n, seed=seed, nodes=nodes).samples(0, 4 * n).volume.reshape(4, n)
    for epoch in drawn:
        assert sorted(epoch.tolist()) == [3 * i for i in range(n)]


@given(cluster=clusters, step=st.integers(0, 200), data=st.data())
def test_with_nodes_global_batches_do_not_depend_on_the_world_size(cluster, step, data):
    count, share, quarters = cluster
    batch = count * share
    nodes = Nodes(count, batch, quarters / 4)
    whole = sampler_of(37, nodes=nodes).samples(step * batch, batch)
    world = data.draw(st.sampled_from([w for w in range(1, batch + 1) if batch % w == 0]))
    part = batch // world
    ranks = [
        sampler_of(37, nodes=nodes).samples(step * batch + r * part, part) for r in range(world)
    ]
    joined = np.concatenate([each.volume for each in ranks])
    np.testing.assert_array_equal(joined, whole.volume)
    np.testing.assert_array_equal(np.concatenate([each.start for each in ranks]), whole.start)


@pytest.mark.parametrize("rotation", [0.0, 0.25, 1.0])
def test_a_node_keeps_its_split_but_for_what_rotates(rotation):
    n, nodes = 400, Nodes(4, 16, rotation)
    sampler = sampler_of(n, nodes=nodes)
    drawn = sampler.samples(0, 9 * n)
    for k in range(4):
        mine = nodes.of(drawn.sample) == k
        of_epoch = [set(drawn.volume[mine & (drawn.sample // n == e)].tolist()) for e in range(9)]
        for one, other in itertools.pairwise(of_epoch):
            assert len(one) == 100
            assert len(one & other) == round(100 * (1 - rotation))
        seen = set.union(*of_epoch)
        assert len(seen) == (100 if rotation == 0 else min(400, 100 + 8 * 100 * rotation))


def test_nodes_that_do_not_fit_are_refused():
    with pytest.raises(Mim3dError, match="nodes=3 does not divide the global batch of 8"):
        Nodes(3, 8)
    with pytest.raises(Mim3dError, match=r"node_rotation=1\.5"):
        Nodes(2, 8, 1.5)
    with pytest.raises(Mim3dError, match="uniform"):
        sampler_of(4, nodes=Nodes(2, 4), weights=np.ones(4))


@given(
    n=st.integers(1, 9), first=st.integers(0, 10**6), seed=st.integers(0, 99), heavy=st.booleans()
)
def test_many_epochs_at_once_are_those_one_by_one(n, first, seed, heavy):
    weights = np.arange(1.0, n + 1) if heavy else None
    sampler = sampler_of(n, seed=seed, weights=weights)
    whole = sampler.samples(first, 40)
    for i in range(0, 40, 3):
        assert whole.volume[i] == sampler.samples(first + i, 1).volume[0]
