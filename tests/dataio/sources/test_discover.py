"""Every input layout: found or told, with labels, channels, subjects and what was left out."""

import json
import os
from pathlib import Path

import pytest

from mim3d.dataio.errors import SourceError
from mim3d.dataio.labels.pairing import pair_labels
from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import glob_pattern
from mim3d.dataio.subjects.inferred import infer_subjects


def plant(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def write_json(root: Path, name: str, content: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root


def by_id(found: Discovery) -> dict[str, Source]:
    assert len({s.id for s in found.sources}) == len(found.sources)
    return {s.id: s for s in found.sources}


def codes(found: Discovery) -> list[str]:
    return [s.code for s in found.skipped]


# folder


def test_folder_pairs_labels_and_names_subjects(tmp_path):
    root = plant(
        tmp_path,
        *("p1/ct.nii.gz", "p1/ct_seg.nii.gz", "p2/ct.nii.gz", "p2/segmentations/liver.nii.gz"),
        *("b_t1.nii.gz", "b_flair.nii.gz", "b_seg.nii.gz", "pair.hdr", "pair.img"),
        *("s/T1.nii", "s/lesion.nii", "README.md", ".git/x.nii", "._b_t1.nii.gz"),
    )
    found = discover(str(root))
    sources = by_id(found)
    assert found.layout == "folder"
    assert set(sources) == {"p1_ct", "p2_ct", "b_t1", "b_flair", "pair", "s_T1"}
    assert sources["p1_ct"].labels == {"seg": str(root / "p1/ct_seg.nii.gz")}
    assert sources["p2_ct"].labels == {"liver": str(root / "p2/segmentations/liver.nii.gz")}
    assert sources["b_t1"].labels == sources["b_flair"].labels
    assert sources["s_T1"].labels == {"lesion": str(root / "s/lesion.nii")}
    assert sources["b_t1"].subject == sources["b_flair"].subject == "b"
    assert (sources["p1_ct"].subject, sources["s_T1"].subject) == ("p1", "s")
    assert sources["pair"].images == (str(root / "pair.hdr"),)
    assert not found.skipped


def test_images_and_labels_in_twin_folders(tmp_path):
    root = plant(tmp_path, *(f"images/c{i}.nii.gz" for i in range(3)), "labels/c0.nii.gz")
    plant(root, "labels/c1.nii.gz", "labels/stray.nii.gz")
    found = discover(str(root))
    sources = by_id(found)
    assert set(sources) == {"images_c0", "images_c1", "images_c2"}
    assert sources["images_c1"].labels == {"seg": str(root / "labels/c1.nii.gz")}
    assert not sources["images_c2"].labels
    assert [s.subject for s in found.sources] == ["c0", "c1", "c2"]
    assert codes(found) == ["label-without-image"]


def test_a_folder_of_many_is_a_collection_not_a_subject(tmp_path):
    root = plant(tmp_path, *(f"ad/{i:02d}.nii" for i in range(20)), "cn/00.nii", "cn/01.nii")
    subjects = {s.id: s.subject for s in discover(str(root)).sources}
    assert subjects["ad_03"] == "ad/03"
    assert (subjects["cn_00"], subjects["cn_01"]) == ("cn/00", "cn/01")


def test_a_mask_in_a_collection_belongs_to_nobody(tmp_path):
    root = plant(tmp_path, *(f"c{i:02d}.nii" for i in range(20)), "mask.nii")
    found = discover(str(root))
    assert len(found.sources) == 20
    assert not any(s.labels for s in found.sources)
    assert codes(found) == ["ambiguous-label"]


def test_pairing_is_linear_in_the_number_of_files():
    cases = [f"site/c{i:06d}" for i in range(30_000)]
    names = [f"{c}_{word}.nii.gz" for c in cases for word in ("t1", "seg")]
    names += [f"labelsTr/{i:06d}.nii" for i in range(30_000)]
    names += [f"imagesTr/{i:06d}_0000.nii" for i in range(30_000)]
    pairing = pair_labels(names)
    assert pairing.labels["site/c000007_t1.nii.gz"] == {"seg": "site/c000007_seg.nii.gz"}
    assert pairing.labels["imagesTr/000007_0000.nii"] == {"seg": "labelsTr/000007.nii"}
    assert len(pairing.labels) == 60_000
    assert len(infer_subjects(names)) == len(names)


def test_a_label_word_alone_is_an_image(tmp_path):
    found = discover(str(plant(tmp_path, "brain_mask.nii.gz")))
    assert [s.id for s in found.sources] == ["brain_mask"]
    assert "brain_mask.nii.gz: called like a label" in found.warnings[0]


def test_a_folder_of_labels_alone_is_doubtful(tmp_path):
    found = discover(str(plant(tmp_path / "labelsTr", "a.nii", "b.nii")))
    assert "labelsTr/a.nii and 1 more" in found.warnings[0]


def test_two_labels_of_one_name_in_tables(tmp_path):
    root = plant(tmp_path, "a.nii", "m.nii", "n.nii", "x/m.nii")
    (root / "t.csv").write_text("image,label,label:seg\na.nii,m.nii,n.nii\n")
    labels = ["n.nii", "m.nii", "x/m.nii"]
    write_json(root, "list.json", {"training": [{"image": "a.nii", "label": labels}]})
    for file, kept in (("t.csv", 1), ("list.json", 2)):
        found = discover(str(root / file))
        assert len(found.sources[0].labels) == kept and codes(found) == ["ambiguous-label"]


def test_folder_tells_what_is_not_nifti(tmp_path):
    root = plant(tmp_path, "a.nii", "scan/1.dcm", "scan/2.dcm", "lone.hdr", "b.img", "vol.mnc")
    found = discover(str(root))
    assert sorted(codes(found)) == ["missing-hdr", "missing-img", "not-nifti", "not-nifti"]
    dicom = next(s for s in found.skipped if "dcm" in s.detail)
    assert "2 file(s)" in dicom.detail
    assert "dcm2niix" in dicom.detail


def test_link_loops_and_broken_links_end(tmp_path):
    root = plant(tmp_path, "a/x.nii", "b/y.nii")
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "self").symlink_to(root / "b", target_is_directory=True)
    (root / "gone.nii").symlink_to(root / "nowhere.nii")
    found = discover(str(root))
    assert {s.id for s in found.sources} == {"a_x", "b_y"}
    assert sorted(codes(found)) == ["broken-link", "link-loop", "link-loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_is_told(tmp_path):
    root = plant(tmp_path, "ok.nii", "secret/x.nii")
    (root / "secret").chmod(0)
    found = discover(str(root))
    (root / "secret").chmod(0o755)
    assert codes(found) == ["unreadable"]


def test_glob_and_single_file(tmp_path):
    root = plant(tmp_path, "a/1.nii.gz", "a/deep/2.nii.gz", "b/3.nii.gz", "b/3_seg.nii.gz")
    assert {s.id for s in discover(f"{root}/**/[23]*.nii.gz").sources} == {"a_deep_2", "b_3"}
    assert {s.id for s in discover(f"{root}/a/*.nii.gz").sources} == {"1"}
    assert discover(f"{root}/b/3.nii.gz").sources[0].images == (f"{root}/b/3.nii.gz",)
    with pytest.raises(SourceError, match="no NIfTI"):
        discover(f"{root}/c*/*.nii.gz")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("**/*.nii", "x.nii", True),
        ("**/*.nii", "a/b/x.nii", True),
        ("*.nii", "a/x.nii", False),
        ("a?[!0-9].nii", "abc.nii", True),
        ("a?[!0-9].nii", "ab1.nii", False),
        ("x+(1).nii", "x+(1).nii", True),
    ],
)
def test_glob_pattern(pattern, name, fits):
    assert bool(glob_pattern(pattern).fullmatch(name)) == fits


# nothing, or not what it should be


@pytest.mark.parametrize("layout", ["auto", "folder", "msd", "nnunet", "bids", "nnssl", "csv"])
def test_empty_and_missing_folders_are_source_errors(tmp_path, layout):
    with pytest.raises(SourceError, match=str(tmp_path)):
        discover(str(tmp_path), layout)
    with pytest.raises(SourceError, match="is not there"):
        discover(str(tmp_path / "none"), layout)


def test_a_file_that_is_no_input(tmp_path):
    with pytest.raises(SourceError, match="is not NIfTI"):
        discover(str(plant(tmp_path, "thesis.docx") / "thesis.docx"))
    with pytest.raises(ValueError, match="layout"):
        discover(str(tmp_path), "minc")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"training": 5}', "3", "\xff"])
@pytest.mark.parametrize("name", ["dataset.json", "pretrain_data.json", "list.json"])
def test_damaged_descriptions_are_source_errors(tmp_path, text, name):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=name):
        discover(str(tmp_path / name))


# MSD and MONAI


def test_msd_with_missing_files_and_test_images(tmp_path):
    root = plant(tmp_path, *(f"imagesTr/h_{i}.nii.gz" for i in range(3)), "labelsTr/h_0.nii.gz")
    plant(root, "imagesTs/h_9.nii.gz")
    pairs = [
        {"image": f"./imagesTr/h_{i}.nii.gz", "label": f"./labelsTr/h_{i}.nii.gz"}
        for i in (0, 1, 7)
    ]
    content = {"training": [*pairs, 5], "test": ["./imagesTs/h_9.nii.gz"], "modality": {"0": "MRI"}}
    found = discover(str(write_json(root, "dataset.json", content)))
    sources = by_id(found)
    assert found.layout == "msd"
    assert set(sources) == {"h_0", "h_1", "h_9"}
    assert sources["h_0"].labels == {"seg": str(root / "labelsTr/h_0.nii.gz")}
    assert not sources["h_1"].labels
    assert (sources["h_0"].split, sources["h_9"].split) == ("train", "test")
    unlisted = "not-listed"  # h_2, which no list names
    assert sorted(codes(found)) == ["bad-entry", "missing-image", "missing-label", unlisted]


def test_monai_datalist_with_channels_and_class_labels(tmp_path):
    root = plant(tmp_path, "a_t1.nii", "a_t2.nii", "m.nii", "b.nii")
    content = {
        "training": [{"image": ["a_t1.nii", "a_t2.nii"], "label": "m.nii", "subject": "A"}],
        "validation": [{"image": "b.nii", "label": 1}],
    }
    write_json(root, "list.json", content)
    sources = by_id(discover(str(root / "list.json")))
    assert sources["a_t1"].images == (str(root / "a_t1.nii"), str(root / "a_t2.nii"))
    assert (sources["a_t1"].subject, sources["b"].split) == ("A", "val")
    assert not sources["b"].labels


def test_msd_folders_without_their_json(tmp_path):
    root = plant(tmp_path, "imagesTr/a.nii.gz", "imagesTr/b.nii.gz", "labelsTr/a.nii.gz")
    found = discover(str(root))
    assert (found.layout, codes(found)) == ("msd", ["missing-label"])
    assert by_id(found)["a"].labels


def test_real_hippocampus(real_data):
    found = discover(str(real_data / "msd_task04_hippocampus"))
    assert (found.layout, len(found.sources), len(found.skipped)) == ("msd", 260, 0)
    assert all(s.labels for s in found.sources)


# nnU-Net


def test_nnunet_channels(tmp_path):
    root = plant(tmp_path, *(f"imagesTr/c{i}_{k:04d}.nii.gz" for i in range(2) for k in range(2)))
    plant(root, "imagesTr/c2_0000.nii.gz", "labelsTr/c0.nii.gz", "imagesTs/t_0000.nii.gz")
    plant(root, "imagesTs/t_0001.nii.gz", "imagesTr/oddname.nii.gz")
    content = {"channel_names": {"0": "T1", "1": "T2"}, "file_ending": ".nii.gz", "numTraining": 3}
    found = discover(str(write_json(root, "dataset.json", content)))
    sources = by_id(found)
    assert found.layout == "nnunet"
    assert set(sources) == {"c0", "c1", "t"}
    assert sources["c1"].images == tuple(
        str(root / f"imagesTr/c1_{k:04d}.nii.gz") for k in range(2)
    )
    assert sources["t"].split == "test"
    assert sorted(codes(found)) == ["bad-name", "missing-channel", "missing-label"]


def test_nnunet_version_1_lists_cases_without_channels(tmp_path):
    root = plant(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz")
    pairs = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    content = {"modality": {"0": "T1", "1": "T2"}, "training": pairs}
    found = discover(str(write_json(root, "dataset.json", content)))
    assert (found.layout, found.skipped) == ("nnunet", ())
    assert len(by_id(found)["a"].images) == 2


def test_nnunet_listed_cases_and_foreign_endings(tmp_path):
    root = plant(tmp_path, "x/one.nii.gz", "x/seg.nii.gz")
    cases = {"k": {"images": ["x/one.nii.gz"], "label": "x/seg.nii.gz"}, "gone": {"images": ["y"]}}
    content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "dataset": cases}
    found = discover(str(write_json(root, "dataset.json", content)))
    assert by_id(found)["k"].labels == {"seg": str(root / "x/seg.nii.gz")}
    assert codes(found) == ["missing-channel"]
    write_json(root, "dataset.json", {"channel_names": {"0": "RGB"}, "file_ending": ".png"})
    with pytest.raises(SourceError, match=r"\.png"):
        discover(str(root))


# BIDS


def test_bids_sessions_and_derivatives(tmp_path):
    der = "derivatives/manual/sub-01/ses-1/anat"
    root = plant(
        tmp_path,
        *("dataset_description.json", "participants.tsv"),
        "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        "sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz",
        "sub-02/anat/sub-02_acq-mprage_T1w.nii.gz",
        "sub-02/anat/wrong.nii.gz",
        f"{der}/sub-01_ses-1_space-T1w_dseg.nii.gz",
        f"{der}/sub-01_ses-1_FLAIR_label-lesion_mask.nii.gz",
        f"{der}/sub-01_ses-1_desc-brain_mask.nii.gz",
        f"{der}/sub-01_ses-1_space-MNI152_dseg.nii.gz",
        f"{der}/sub-01_ses-1_desc-preproc_T1w.nii.gz",
        "derivatives/fs/sub-02/anat/sub-02_acq-mprage_dseg.nii.gz",
    )
    found = discover(str(root))
    sources = by_id(found)
    assert found.layout == "bids"
    assert set(sources) == {
        *("sub-01_ses-1_T1w", "sub-01_ses-1_FLAIR", "sub-01_ses-2_T1w", "sub-02_acq-mprage_T1w")
    }
    assert set(sources["sub-01_ses-1_T1w"].labels) == {"seg"}
    assert set(sources["sub-01_ses-1_FLAIR"].labels) == {"lesion"}
    assert not sources["sub-01_ses-2_T1w"].labels
    assert sources["sub-01_ses-2_T1w"].subject == "sub-01"
    assert set(sources["sub-02_acq-mprage_T1w"].labels) == {"seg"}
    assert sorted(codes(found)) == ["ambiguous-label", "bad-name", "label-without-image"]


# nnssl


def collection(images: list[dict]) -> dict:
    subject = {"subject_id": "sub-01", "sessions": {"ses-1": {"images": images}}}
    dataset = {"dataset_index": "ds1", "subjects": {"sub-01": subject}}
    return {"collection_index": 745, "collection_name": "X", "datasets": {"ds1": dataset}}


def test_nnssl_collection(tmp_path, monkeypatch):
    monkeypatch.delenv("nnssl_raw", raising=False)
    monkeypatch.delenv("E132Projekte", raising=False)
    root = plant(tmp_path / "Dataset745_X", "a.nii.gz", "anon.nii.gz", "b.nii.gz")
    masks = {"anonymization_mask": "$nnssl_raw/Dataset745_X/anon.nii.gz", "anatomy_mask": None}
    images = [
        {"name": "a.nii.gz", "image_path": "$nnssl_raw/Dataset745_X/a.nii.gz", "modality": "T1w",
         "associated_masks": masks},
        {"name": "b.nii.gz", "image_path": str(root / "b.nii.gz"), "modality": "T2w"},
        {"name": "c.nii.gz", "image_path": "$E132Projekte/c.nii.gz", "modality": "T2w"},
        {"name": "d.png", "image_path": "d.png", "modality": "T2w"},
        {"name": "e.nii.gz", "image_path": "e.nii.gz", "modality": "T2w"},
        {"name": "f"},
    ]  # fmt: skip
    found = discover(str(write_json(root, "pretrain_data.json", collection(images))))
    sources = by_id(found)
    assert found.layout == "nnssl"
    assert set(sources) == {"ds1_sub-01_ses-1_a", "ds1_sub-01_ses-1_b"}
    anonymised = Path(sources["ds1_sub-01_ses-1_a"].labels["anonymization_mask"])
    assert anonymised.resolve() == (root / "anon.nii.gz").resolve()
    assert {s.subject for s in found.sources} == {"ds1_sub-01"}
    assert codes(found) == ["unset-variable", "not-nifti", "missing-image", "bad-entry"]


# CSV


def test_csv_columns(tmp_path):
    root = plant(tmp_path, "a.nii", "b.nii", "m.nii", "v.nii")
    (root / "cohort.csv").write_text(
        "\ufeffImage_Path;Label;Label:vessel;Patient_ID;Site;Split\n"
        "a.nii;m.nii;v.nii;P1;x;train\n"
        "b.nii;gone.nii;;P1;y;test\n"
        ";m.nii;;P2;;\n"
        "gone.nii;;;P3;;\n"
        "\n",
        encoding="utf-8",
    )
    found = discover(str(root / "cohort.csv"))
    sources = by_id(found)
    assert set(sources) == {"a", "b"}
    assert sources["a"].labels == {"seg": str(root / "m.nii"), "vessel": str(root / "v.nii")}
    assert (sources["a"].subject, sources["a"].group, sources["b"].split) == ("P1", "x", "test")
    assert codes(found) == ["missing-label", "no-image", "missing-image"]
    assert "line 4" in found.skipped[1].path
    assert discover(str(root), "csv").sources == found.sources


def test_csv_channels_and_missing_column(tmp_path):
    root = plant(tmp_path, "a1.nii", "a2.nii")
    (root / "t.csv").write_text("id,image_0,image_1\nA,a1.nii,a2.nii\n")
    only = discover(str(root / "t.csv")).sources[0]
    assert (only.id, len(only.images)) == ("A", 2)
    (root / "t.csv").write_text("id,scan\nA,a1.nii\n")
    with pytest.raises(SourceError, match="id, scan"):
        discover(str(root / "t.csv"))


def test_csv_columns_of_other_names_are_used_or_named(tmp_path):
    root = plant(tmp_path, "a.nii", "a2.nii", "m.nii", "x.nii", "p.nii")
    head = "image,lesion_mask,mask,t2,other,age,weight"
    (root / "t.csv").write_text(f"{head}\na.nii,m.nii,p.nii,a2.nii,x.nii,61,70\n")
    found = discover(str(root / "t.csv"))
    sources = by_id(found)
    assert set(sources) == {"a", "a2_t2"}
    assert set(sources["a"].labels) == set(sources["a2_t2"].labels) == {"seg", "lesion_mask"}
    assert sources["a2_t2"].images == (str(root / "a2.nii"),)
    assert "column other" in found.warnings[0] and "label:NAME" in found.warnings[0]
    assert any("columns age, weight not used" in note for note in found.notes)
    result = SourceOptions(channels=("t1", "t2"))
    (root / "t.csv").write_text("subject,t1,t2,seg\nP,a.nii,a2.nii,m.nii\n")
    one = discover(str(root / "t.csv"), options=result).sources
    assert [(len(s.images), s.subject, s.channel_names) for s in one] == [(2, "P", ("t1", "t2"))]


def test_a_list_begins_at_the_base_that_is_told(tmp_path):
    root = plant(tmp_path / "data", "x/a.nii", "x/m.nii")
    (tmp_path / "t.csv").write_text("image,label\nx/a.nii,x/m.nii\n")
    write_json(tmp_path, "list.json", {"training": [{"image": "x/a.nii", "label": "x/m.nii"}]})
    for name in ("t.csv", "list.json"):
        with pytest.raises(SourceError, match="not there"):
            discover(str(tmp_path / name))
        found = discover(str(tmp_path / name), options=SourceOptions(base=str(root)))
        assert found.sources[0].paths == (str(root / "x/a.nii"), str(root / "x/m.nii"))
    with pytest.raises(SourceError, match="goes with a datalist"):
        discover(str(root), options=SourceOptions(base=str(root)))


# several files as one volume


def test_images_of_a_visit_become_channels(tmp_path):
    kinds = ("t1n", "t1c", "t2w", "t2f", "seg")
    cases = ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000")
    root = plant(tmp_path, *(f"{c}/{c}-{kind}.nii.gz" for c in cases for kind in kinds))
    (root / cases[2] / f"{cases[2]}-t2f.nii.gz").unlink()
    found = discover(str(root), options=SourceOptions(channels=kinds[:4]))
    sources = by_id(found)
    assert [[*map(str, s.images)] for s in sources.values()] == [
        [str(root / c / f"{c}-{kind}.nii.gz") for kind in kinds[:4]] for c in cases[:2]
    ]
    assert {s.subject for s in found.sources} == {"BraTS-GLI-00001"}
    assert all(s.labels and s.channel_names == kinds[:4] for s in found.sources)
    assert codes(found) == ["missing-channel"] and "has no t2f" in found.skipped[0].detail


def test_channels_in_bids_and_by_folders(tmp_path):
    base = "sub-01/ses-1/anat/sub-01_ses-1_"
    root = plant(tmp_path / "b", *(base + f"{kind}.nii" for kind in ("T1w", "FLAIR", "T2w")))
    found = discover(str(root), options=SourceOptions(channels=("T1w", "FLAIR")))
    assert [len(s.images) for s in found.sources] == [2]
    assert found.notes == ("1 image of other kinds left out by --channels",)
    root = plant(tmp_path / "i", *(f"IXI-{k}/IXI002-Guys-0828-{k}.nii" for k in ("T1", "T2")))
    found = discover(str(root), options=SourceOptions(channels=("t1", "t2")))
    assert [s.id for s in found.sources] and len(found.sources[0].images) == 2
    with pytest.raises(SourceError, match="no name tells"):
        discover(str(root), options=SourceOptions(channels=("swi",)))
    plant(root, "IXI-T1/IXI002-Guys-0828-T1-brain.nii")
    with pytest.raises(SourceError, match="all t1 of one visit"):
        discover(str(root), options=SourceOptions(channels=("t1", "t2")))
