"""A loader's state: what it may go to, and what it is refused by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.loader import Loader, LoaderConfig

CROP = (12, 12, 12)


def config_of(**options: Any) -> LoaderConfig:
    return LoaderConfig(**{"crop_size": CROP, "micro_batch": 4, **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    shapes = [(16, 16, 16), (16, 18, 16), (20, 16, 16), (16, 16, 30)]
    volumes = [anatomy_like(shape, i) for i, shape in enumerate(shapes)]
    folder = tmp_path_factory.mktemp("state")
    return corpus_of(folder / "c.zarr", volumes, subjects=["a", "b", "c", "d"])


def state_of(root: Path, subjects=None, **options: Any) -> dict[str, int]:
    with Loader(root, config_of(**options), subjects=subjects) as loader:
        next(loader)
        return loader.state_dict()


def goes(root: Path, state: dict[str, int], subjects=None, **options: Any) -> bool:
    with Loader(root, config_of(**options), subjects=subjects) as loader:
        loader.load_state_dict(state)
        return loader.state_dict()["sample"] == state["sample"]


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ({"subjects": ["a", "b"]}, {"subjects": ["c", "d"]}),
        ({}, {"weighting": "voxels"}),
        ({"nodes": 2}, {"nodes": 2, "micro_batch": 6}),
        ({"nodes": 2}, {"nodes": 2, "node_rotation": 0.5}),
    ],
)
def test_a_state_of_another_order_is_refused(root, saved, loaded):
    with pytest.raises(Mim3dError, match="another order of samples"):
        goes(root, state_of(root, **saved), **loaded)


def test_another_corpus_with_as_many_volumes_is_refused(root, tmp_path):
    volumes = [anatomy_like((16, 16, 16), i) for i in range(4)]
    grown = corpus_of(tmp_path / "c.zarr", [*volumes, volumes[0]], subjects=list("abcde"))
    with pytest.raises(Mim3dError, match="another order of samples"):
        goes(grown, state_of(root), subjects=["b", "c", "d", "e"])


@pytest.mark.parametrize(
    "changed",
    [
        {"micro_batch": 2}, {"threads": 2, "prefetch": 5}, {"cache": "host"}, {"augment": "mim"},
        {"dtype": "bfloat16"}, {"normalise": "none"},
    ],
)  # fmt: skip
def test_what_does_not_decide_the_order_may_change(root, changed):
    assert goes(root, state_of(root), **changed)


def test_a_state_from_before_there_was_an_order_still_goes(root):
    state = state_of(root)
    del state["order"], state["nodes"]
    assert goes(root, state)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({}, "no whole number 'format'"),
        (None, "no whole number 'format'"),
        ({"sample": 3.5}, "no whole number 'sample'"),
        ({"sample": "7"}, "no whole number 'sample'"),
        ({"sample": -4}, "sample=-4"),
        ({"format": 9}, "format=9, this loader 1"),
    ],
)
def test_what_is_no_state_is_told(root, state, expected):
    whole = {**state_of(root), **state} if state else state
    with Loader(root, config_of()) as loader, pytest.raises(Mim3dError, match=expected):
        loader.load_state_dict(whole)  # type: ignore[arg-type]


def test_a_state_is_plain_integers_whatever_the_seed_is(root):
    state = state_of(root, seed=np.int64(5))
    assert {type(value) for value in state.values()} == {int}
    assert goes(root, state, seed=5)
