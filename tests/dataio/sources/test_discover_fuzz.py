"""Hostile descriptions: any JSON, any table: sources or a SourceError, never another exception."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mim3d.dataio.errors import SourceError
from mim3d.dataio.sources.discover import discover

settings.register_profile(
    "files", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = st.sampled_from(
    [
        "image",
        "label",
        "images",
        "training",
        "test",
        "dataset",
        "datasets",
        "subjects",
        "sessions",
        "associated_masks",
        "name",
        "image_path",
        "channel_names",
        "file_ending",
        "modality",
        "a.nii",
        "./b.nii",
        "../c.nii.gz",
        "$HOME/x.nii",
        "x",
    ]
)
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.text(max_size=4) | WORDS
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries({}, optional={"image": JSON, "label": JSON, "subject": JSON})
IMAGE = st.fixed_dictionaries(
    {"image_path": WORDS | JSON}, optional={"name": JSON, "associated_masks": JSON}
)


def survives(file, layout: str) -> None:
    try:
        found = discover(str(file), layout)
    except SourceError as error:
        assert "\n" not in str(error)
        return
    assert found.sources
    assert all(s.images and s.id for s in found.sources)


@settings(settings.get_profile("files"), max_examples=80)
@given(content=JSON | st.fixed_dictionaries({"training": st.lists(ENTRY | JSON, max_size=3)}))
@pytest.mark.parametrize("layout", ["auto", "msd"])
def test_any_datalist(tmp_path, layout, content):
    (tmp_path / "a.nii").touch()
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    survives(tmp_path / "dataset.json", layout)
    survives(tmp_path, layout)


@settings(settings.get_profile("files"), max_examples=80)
@given(
    content=JSON
    | st.fixed_dictionaries(
        {"channel_names": JSON},
        optional={
            "dataset": JSON | st.dictionaries(WORDS, ENTRY | JSON),
            "file_ending": JSON | st.just(".nii"),
        },
    )
)
def test_any_nnunet_description(tmp_path, content):
    (tmp_path / "imagesTr").mkdir(exist_ok=True)
    (tmp_path / "imagesTr" / "c_0000.nii").touch()
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    survives(tmp_path, "nnunet")


@settings(settings.get_profile("files"), max_examples=80)
@given(images=st.lists(IMAGE | JSON, max_size=3) | JSON, subject=JSON)
def test_any_nnssl_collection(tmp_path, images, subject):
    (tmp_path / "a.nii").touch()
    session = {"images": images}
    subjects = {"s1": {"sessions": {"t1": session}}, "s2": subject}
    content = {"datasets": {"d": {"subjects": subjects}}}
    (tmp_path / "pretrain_data.json").write_text(json.dumps(content))
    survives(tmp_path, "nnssl")


@settings(settings.get_profile("files"), max_examples=80)
@given(
    text=st.text("image,label;\t\n\"'\r\0a.ni", max_size=80), head=st.sampled_from(["", "image\n"])
)
def test_any_table(tmp_path, text, head):
    (tmp_path / "a.nii").touch()
    (tmp_path / "t.csv").write_text(head + text, encoding="utf-8")
    survives(tmp_path / "t.csv", "auto")


@settings(settings.get_profile("files"), max_examples=60)
@given(names=st.lists(st.text("ab_-.sub0 [*/", min_size=1, max_size=12), max_size=6))
@pytest.mark.parametrize("layout", ["auto", "folder", "bids", "msd"])
def test_any_file_names(tmp_path_factory, layout, names):
    root = tmp_path_factory.mktemp("names")
    for name in names:
        path = root / (name.strip("/ .") or "x")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".nii.gz").touch()
        except OSError:
            continue
    survives(root, layout)
