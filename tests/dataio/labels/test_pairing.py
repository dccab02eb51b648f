"""Labels beside and across from images: the exact stem owns one, and nothing is guessed."""

import pytest

from mim3d.dataio.labels.pairing import pair_labels


def paired(*names: str) -> dict[str, dict[str, str]]:
    """Labels of each image; everything must have been paired."""
    pairing = pair_labels(sorted(names))
    assert not pairing.skipped and not pairing.doubtful
    return dict(pairing.labels)


def test_visits_keep_their_own_labels():
    cases = ("P1", "P1_2", "P1-3")
    got = paired(*(f"{c}{end}.nii.gz" for c in cases for end in ("", "_seg")))
    assert got == {f"{c}.nii.gz": {"seg": f"{c}_seg.nii.gz"} for c in cases}


@pytest.mark.parametrize("others", [("P1_2", "P1-3"), ("P1_2",), ("P1_v2_t1",), ("P1_a", "P1_b")])
def test_a_label_that_may_be_anothers_is_left_out_with_its_candidates(others):
    pairing = pair_labels([*(f"{o}.nii" for o in others), "P1_seg.nii"])
    assert not pairing.labels
    code, why = pairing.skipped["P1_seg.nii"]
    assert code == "ambiguous-label" and all(f"{o}.nii" in why for o in others)


def test_kinds_of_one_case_share_its_label_unless_they_have_their_own():
    names = ("b_t1.nii", "b_flair.nii", "b_0000.nii", "b_seg.nii", "b_t1_seg.nii")
    assert paired(*names) == {
        "b_t1.nii": {"seg": "b_t1_seg.nii"},
        "b_flair.nii": {"seg": "b_seg.nii"},
        "b_0000.nii": {"seg": "b_seg.nii"},
    }


def test_the_only_image_that_fits_has_the_label():
    assert paired("P1_brain.nii", "P1_seg.nii") == {"P1_brain.nii": {"seg": "P1_seg.nii"}}


def test_several_labels_of_one_image_have_several_names():
    got = paired("P1.nii", "P1_seg.nii", "P1_mask.nii", "P1_lesion.nii")
    assert got == {"P1.nii": {w: f"P1_{w}.nii" for w in ("seg", "mask", "lesion")}}


def test_of_two_labels_with_one_name_neither_is_taken():
    pairing = pair_labels(["P1.nii", "P1-seg.nii", "P1_seg.nii"])
    assert not pairing.labels
    assert {code for code, _ in pairing.skipped.values()} == {"ambiguous-label"}
    assert "P1-seg.nii" in pairing.skipped["P1_seg.nii"][1]


def test_labels_below_images_go_by_name_first():
    names = ["img1.nii", "img2.nii", "labels/img1.nii", "labels/img2.nii"]
    assert paired(*names) == {f"img{i}.nii": {"seg": f"labels/img{i}.nii"} for i in (1, 2)}
    pairing = pair_labels([*names, "img3.nii", "labels/img4.nii"])
    assert "img3.nii" not in pairing.labels
    assert pairing.skipped["labels/img4.nii"][0] == "label-without-image"


def test_organs_below_one_subject_are_all_its_labels():
    got = paired("s1/ct.nii", "s1/segmentations/liver.nii", "s1/segmentations/spleen.nii")
    assert set(got["s1/ct.nii"]) == {"liver", "spleen"}


def test_organs_below_several_subjects_are_nobodys():
    pairing = pair_labels(["p1.nii", "p2.nii", "labels/liver.nii"])
    assert not pairing.labels and pairing.skipped["labels/liver.nii"][0] == "ambiguous-label"


def test_our_own_export():
    names = [f"images/{i}.nii.gz" for i in "ab"]
    names += [f"labels/{kind}/{i}.nii.gz" for kind in ("seg", "masks") for i in "ab"]
    want = {k: f"labels/{k}/a.nii.gz" for k in ("seg", "masks")}
    assert paired(*names)["images/a.nii.gz"] == want


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("volume-{}.nii", "segmentation-{}.nii"),
        ("img/img000{}.nii", "label/label000{}.nii"),
        ("imagesTr/x_{}_0000.nii", "labelsTr/x_{}.nii"),
        ("imagesTr/site/x{}.nii", "labelsTr/site/x{}.nii"),
        ("images/x{}.nii", "masks/x{}_mask.nii"),
        ("images/x{}_image.nii", "labels/x{}_label.nii"),
        ("p{}/imaging.nii", "p{}/segmentation.nii"),
        ("p{}_frame01.nii", "p{}_frame01_gt.nii"),
    ],
)
def test_well_known_names(image, label):
    got = paired(*(name.format(i) for i in (0, 1) for name in (image, label)))
    assert got == {image.format(i): {"seg": label.format(i)} for i in (0, 1)}


def test_several_organs_across_from_one_image():
    got = paired("images/x.nii", "labels/x_liver.nii", "labels/x_spleen.nii")
    assert set(got["images/x.nii"]) == {"liver", "spleen"}
    pairing = pair_labels(["images/x.nii", "labels/x_2.nii"])
    assert not pairing.labels and pairing.skipped["labels/x_2.nii"][0] == "ambiguous-label"


def test_masks_of_a_folder_of_modalities_are_its_subjects():
    got = paired("p/t1.nii", "p/flair.nii", "p/brain_mask.nii")
    assert got["p/t1.nii"] == got["p/flair.nii"] == {"brain_mask": "p/brain_mask.nii"}


def test_a_label_without_image_among_labels_is_left_out():
    pairing = pair_labels(["a.nii", "a_seg.nii", "q_seg.nii"])
    assert pairing.skipped["q_seg.nii"][0] == "label-without-image"


def test_a_dataset_called_segmentation_holds_images():
    assert paired("segmentation/P1/t1.nii", "segmentation/P1/seg.nii")
    got = paired("segmentation/images/a.nii", "segmentation/labels/a.nii")
    assert list(got) == ["segmentation/images/a.nii"]


@pytest.mark.parametrize("name", ["brain_mask.nii", "labelsTr/a.nii", "segmentation-0.nii"])
def test_what_sounds_like_a_label_and_is_taken_for_an_image_is_doubtful(name):
    pairing = pair_labels([name])
    assert (pairing.doubtful, pairing.skipped) == ([name], {})


@pytest.mark.parametrize(
    ("image", "label", "key"),
    [
        ("case1.nii", "case1_vessels.nii", "vessels"),
        ("a/case1_t1.nii", "a/case1_liver.nii", "liver"),
        ("p1/ct.nii", "p1/ct_airway.nii", "airway"),
        ("p1/t1.nii", "p1/tumor.nii", "tumor"),
        ("p1/image.nii", "p1/hepaticvein.nii", "hepaticvein"),
        ("p1/T1.nii", "p1/T1_first_all_fast_firstseg.nii", "T1_first_all_fast_firstseg"),
    ],
)
def test_a_file_called_after_an_organ_is_a_label_where_its_image_lies_beside(image, label, key):
    assert paired(image, label) == {image: {key: label}}


@pytest.mark.parametrize(
    "names",
    [
        ("liver_1.nii", "liver_2.nii"),
        ("a/spleen_10.nii", "a/spleen_12.nii"),
        ("p1/liver.nii", "p2/liver.nii"),
        ("case1_prostate.nii", "case2_prostate.nii"),
        ("hippocampus_001.nii", "hippocampus_003.nii"),
    ],
)
def test_images_called_after_an_organ_stay_images(names):
    pairing = pair_labels(list(names))
    assert not pairing.labels and not pairing.skipped and not pairing.doubtful


def test_labels_of_pipelines_in_folders_of_their_own_below_a_visit():
    visit = [f"P-001/week-000/{kind}.nii" for kind in ("CT1", "T1", "FLAIR")]
    labels = [
        "P-001/week-000/HD-GLIO-AUTO-segmentation/native/segmentation_CT1_origspace.nii",
        "P-001/week-000/DeepBraTumIA-segmentation/atlas/segmentation/seg_mask.nii",
    ]
    pairing = pair_labels([*visit, *labels])
    assert not pairing.doubtful and not pairing.skipped
    assert [sorted(pairing.labels[image].values()) for image in visit] == [sorted(labels)] * 3


def names(*files: str) -> dict[str, dict[str, str]]:
    """Names of each image's labels."""
    return {image: {v: k for k, v in found.items()} for image, found in paired(*files).items()}


@pytest.mark.parametrize(
    ("both", "one"),
    [
        (("c0_seg.nii", "c0_mask.nii"), "c1_mask.nii"),
        (("c0_seg.nii", "c0_mask.nii"), "c1_Mask.nii"),
        (("c0_seg.nii", "c0_mask.nii"), "c1_masks.nii"),
        (("c0_gt.nii", "c0_labels.nii"), "c1_labels.nii"),
        (("c0_seg.nii", "c0_seg_manual.nii"), "c1_seg_manual.nii"),
    ],
)
def test_a_word_that_names_a_label_beside_another_names_it_everywhere(both, one):
    word = both[1][3:-4]
    want = {"c0.nii": {both[0]: "seg", both[1]: word}, "c1.nii": {one: word}}
    assert names("c0.nii", *both, "c1.nii", one) == want
    alone = names("c0.nii", both[0], "c1.nii", one)
    assert alone == {"c0.nii": {both[0]: "seg"}, "c1.nii": {one: "seg"}}


def test_a_word_means_the_same_for_every_patient_and_visit():
    got = names(
        *("p0/ct.nii", "p0/seg.nii", "p0/mask.nii", "p1/ct.nii", "p1/mask.nii"),
        *("p2/v1/t1.nii", "p2/v1/flair.nii", "p2/v1/mask.nii"),
    )
    assert got["p0/ct.nii"] == {"p0/seg.nii": "seg", "p0/mask.nii": "mask"}
    assert got["p1/ct.nii"] == {"p1/mask.nii": "mask"}
    assert got["p2/v1/t1.nii"] == got["p2/v1/flair.nii"] == {"p2/v1/mask.nii": "mask"}


def test_words_that_no_image_has_together_stay_one_name():
    got = names(
        *(
            f"c{i}{end}.nii"
            for i, word in enumerate(("seg", "gt", "mask"))
            for end in ("", f"_{word}")
        )
    )
    assert [list(found.values()) for found in got.values()] == [["seg"]] * 3


def test_a_third_word_is_told_from_the_second_where_the_first_is_missing():
    got = names(
        *("c0.nii", "c0_seg.nii", "c0_gt.nii", "c1.nii", "c1_gt.nii", "c1_mask.nii"),
        *("c2.nii", "c2_mask.nii"),
    )
    assert got["c1.nii"] == {"c1_gt.nii": "gt", "c1_mask.nii": "mask"}
    assert got["c2.nii"] == {"c2_mask.nii": "mask"}


@pytest.mark.parametrize(
    ("folders", "called"),
    [
        (("labels_a", "labels_b"), ("labels_a", "labels_b")),
        (("labels", "masks"), ("seg", "masks")),
        (("labels", "labels_old"), ("seg", "labels_old")),
        (("labelsTr", "masksTr"), ("seg", "masksTr")),
        (("lung-masks", "liver-masks"), ("lung-masks", "liver-masks")),
    ],
)
def test_labels_of_one_image_in_two_folders_are_called_after_these_everywhere(folders, called):
    images = [f"images{'Tr' * folders[0].endswith('Tr')}/c{i}.nii" for i in range(3)]
    files = [f"{folders[0]}/c0.nii", f"{folders[1]}/c0.nii"]
    alone = [f"{folders[1]}/c1.nii", f"{folders[0]}/c2.nii"]
    got = names(*images, *files, *alone)
    assert got[images[0]] == dict(zip(files, called, strict=True))
    assert got[images[1]] == {alone[0]: called[1]} and got[images[2]] == {alone[1]: called[0]}
    without = names(*images, files[0], *alone)
    assert [list(found.values()) for found in without.values()] == [["seg"]] * 3


def test_a_label_beside_its_image_and_one_in_a_folder_are_two():
    got = names(
        *("images/c0.nii", "images/c0_seg.nii", "labels/c0.nii"),
        *("images/c1.nii", "labels/c1.nii"),
    )
    assert got["images/c0.nii"] == {"images/c0_seg.nii": "seg", "labels/c0.nii": "labels"}
    assert got["images/c1.nii"] == {"labels/c1.nii": "labels"}


def test_folders_that_only_case_tells_apart_name_nothing():
    pairing = pair_labels(["images/c0.nii", "seg/c0.nii", "Seg/c0.nii"])
    assert not pairing.labels
    assert {code for code, _ in pairing.skipped.values()} == {"ambiguous-label"}
