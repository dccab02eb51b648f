"""How data sets lie on disk, in miniature: whose the images are, and which files are labels."""

import json
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mim3d.dataio.sources.discover import discover
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery
from mim3d.dataio.sources.subjects import grouped

SMALL, LARGE = nib.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), (3, 3, 4)


def plant(root: Path, *names: str) -> Discovery:
    """Write small volumes (those after `!` on a grid of their own) and discover them."""
    other = nib.Nifti1Image(np.zeros(LARGE, np.int16), np.eye(4))
    for name in names:
        path = root / name.removeprefix("!")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((other if name.startswith("!") else SMALL).to_bytes())
    return discover(str(root))


def people(found: Discovery) -> set[tuple[str, str]]:
    return {(source.group, source.subject) for source in found.sources}


def times(pattern: str, *fills: tuple) -> list[str]:
    return [pattern.format(*fill) for fill in fills]


# Data set: files, people, labelled volumes.
LAYOUTS = {
    "BraTS 2023": (
        [
            f"B/BraTS-GLI-0000{p}-00{v}/BraTS-GLI-0000{p}-00{v}-{kind}.nii"
            for p in (1, 2)
            for v in (0, 1)
            for kind in ("t1n", "t2f", "seg")
        ],
        2,
        8,
    ),
    "BraTS 2018": (
        [
            f"HGG/Brats18_TCIA0{p}_167_1/Brats18_TCIA0{p}_167_1_{kind}.nii"
            for p in (1, 2)
            for kind in ("t1", "t1ce", "seg")
        ],
        2,
        4,
    ),
    "BraTS 2015": (
        [
            f"{p}/VSD.Brain.XX.O.{kind}/VSD.Brain.XX.O.{kind}.nii"
            for p in (1, 2)
            for kind in ("MR_Flair.70612", "MR_T1.70613", "OT.6560")
        ],
        2,
        4,
    ),
    "ADNI": (
        [
            f"ADNI/00{p}_S_010{p}/MP-RAGE/200{v}-04-18_08_20_30.0/S1{p}{v}/ADNI_00{p}_S_010{p}_MR.nii"
            for p in (1, 2)
            for v in (6, 7)
        ],
        2,
        0,
    ),
    "ADNI by diagnosis": (["AD/002_S_0295_bl.nii", "MCI/002_S_0295_m12.nii"], 1, 0),
    "IXI": (["IXI-T1/IXI002-Guys-0828-T1.nii", "IXI-T2/IXI002-Guys-0828-T2.nii"], 1, 0),
    "OASIS of neurite": (
        times(
            "OASIS_OAS1_000{}_MR1/{}.nii",
            *((p, k) for p in (1, 2) for k in ("aligned_norm", "aligned_seg4")),
        ),
        2,
        2,
    ),
    "OASIS 3": (["OAS30001/OAS30001_MR_d0129.nii", "OAS30001/OAS30001_MR_d0757.nii"], 1, 0),
    "LIDC": (["LIDC-IDRI-0001/01-01-2000-30178/3000566.000000-03192/a.nii"], 1, 0),
    "TCIA": (
        times(
            "P{}7/0{}-21-1999-NA-CT-33/{}.000000-AXIAL-11/a.nii", (1, 2, 3), (1, 4, 2), (2, 1, 1)
        ),
        2,
        0,
    ),
    "HCP": (
        times(
            "10030{}/T1w/{}.nii",
            *((p, k) for p in (1, 2) for k in ("T1w_acpc_dc_restore", "aparc+aseg")),
        ),
        2,
        2,
    ),
    "UK Biobank": (times("1000012/1000012_20252_{}_0/T1/T1.nii", (2,), (3,)), 1, 0),
    "ABIDE": (times("500{}/session_1/{}_1/x.nii", (51, "anat"), (51, "rest"), (52, "anat")), 2, 0),
    "Duke breast": (
        times("Breast_MRI_00{}/{}.nii", (1, "pre"), (1, "post_1"), (2, "post_2")),
        2,
        0,
    ),
    "LUMIERE": (times("Patient-00{}/week-0{}/CT1.nii", (1, "00-1"), (1, 44), (2, "00")), 2, 0),
    "MU-Glioma": (
        times(
            "PatientID_00{0}/Timepoint_{1}/PatientID_00{0}_Timepoint_{1}_brain_t1c.nii",
            (1, 1),
            (1, 2),
            (2, 1),
        ),
        2,
        0,
    ),
    "knees": (times("knee_{}/9{}.nii", ("L", "000099"), ("R", "000099"), ("L", "000100")), 2, 0),
    "hips": (times("{}_{}.nii", ("H1", "LEFT"), ("H1", "RIGHT"), ("H2", "left")), 2, 0),
    "4D CT": (times("case{}_T{}.nii", (1, "00"), (1, "50"), (2, "00")), 2, 0),
    "M&Ms": (
        times(
            "A{0}S9V9/A{0}S9V9_sa_{1}.nii",
            *((p, k) for p in (0, 1) for k in ("ED", "ES", "ED_gt", "ES_gt")),
        ),
        2,
        4,
    ),
    "ACDC": (
        times(
            "training/patient00{0}/patient00{0}_{1}.nii",
            *(
                (p, k)
                for p in (1, 2)
                for k in ("frame01", "frame12", "4d", "frame01_gt", "frame12_gt")
            ),
        ),
        2,
        4,
    ),
    "ISLES 2022": (
        [
            *times(
                "sub-stroke{0}/ses-0001/dwi/sub-stroke{0}_ses-0001_{1}.nii",
                *((p, k) for p in (1, 2) for k in ("dwi", "adc")),
            ),
            *times("!sub-stroke{0}/ses-0001/anat/sub-stroke{0}_ses-0001_FLAIR.nii", (1,), (2,)),
            *times("derivatives/sub-stroke{0}/ses-0001/sub-stroke{0}_ses-0001_msk.nii", (1,), (2,)),
        ],
        2,
        4,
    ),
    "spinal cord toolbox": (
        [
            "sub-001/anat/sub-001_T2w.nii",
            "sub-001/anat/sub-001_T1w.nii",
            "derivatives/labels/sub-001/anat/sub-001_T2w_seg-manual.nii",
            "derivatives/labels/sub-001/anat/sub-001_T2w_label-SC_seg.nii",
            "derivatives/labels/sub-001/anat/sub-001_T1w_lesion-manual.nii",
        ],
        1,
        2,
    ),
    "VerSe": (
        [
            *times("dataset-01training/rawdata/sub-verse00{0}/sub-verse00{0}_ct.nii", (4,), (5,)),
            *times(
                "dataset-01training/derivatives/sub-verse00{0}/sub-verse00{0}_seg-vert_msk.nii",
                (4,),
                (5,),
            ),
        ],
        2,
        2,
    ),
    "fMRIPrep": (
        [
            "sub-01/anat/sub-01_T1w.nii",
            "sub-01/func/sub-01_task-rest_bold.nii",
            "derivatives/fmriprep/sub-01/anat/sub-01_desc-brain_mask.nii",
            "derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_T1w.nii",
            "!derivatives/fmriprep/sub-01/anat/sub-01_space-MNI_desc-preproc_T1w.nii",
            "derivatives/fmriprep/sub-01/anat/sub-01_label-GM_probseg.nii",
            "derivatives/fmriprep/sub-01/func/sub-01_task-rest_desc-brain_mask.nii",
        ],
        1,
        2,
    ),
    "fMRIPrep alone": (
        [
            "sub-01/anat/sub-01_desc-preproc_T1w.nii",
            "!sub-01/anat/sub-01_space-MNI_desc-preproc_T1w.nii",
            "sub-01/anat/sub-01_desc-brain_mask.nii",
            "!sub-01/anat/sub-01_space-MNI_desc-brain_mask.nii",
        ],
        1,
        2,
    ),
    "ATLAS 2": (
        [
            *times(
                "Training/R00{0}/sub-r00{0}s001/ses-1/anat/sub-r00{0}s001_ses-1_space-MNI_T1w.nii",
                (1,),
                (2,),
            ),
            *times(
                "Training/R00{0}/sub-r00{0}s001/ses-1/anat/sub-r00{0}s001_ses-1_space-MNI_label-L_desc-T1lesion_mask.nii",
                (1,),
                (2,),
            ),
        ],
        2,
        2,
    ),
    "FeTA": (times("sub-00{0}/anat/sub-00{0}_rec-mial_{1}.nii", (1, "T2w"), (1, "dseg")), 1, 1),
    "two BIDS data sets": (times("{}/sub-01/anat/sub-01_T1w.nii", ("dsA",), ("dsB",)), 2, 0),
    "MRBrainS 18": (
        times(
            "training/{}/{}.nii",
            *((p, k) for p in (1, 4) for k in ("pre/FLAIR", "pre/T1", "orig/3DT1", "segm")),
        ),
        2,
        6,
    ),
    "MRBrainS 13": (
        times(
            "TrainingData/{}/{}.nii",
            *((p, k) for p in (1, 2) for k in ("T1", "T1_IR", "T2_FLAIR", "LabelsForTraining")),
        ),
        2,
        6,
    ),
    "WMH": (
        times(
            "{}/{}.nii",
            *((p, k) for p in ("Utrecht/0", "GE3T/100") for k in ("pre/FLAIR", "pre/T1", "wmh")),
        ),
        2,
        4,
    ),
    "ISBI 2015": (
        [
            *times(
                "training/training0{0}/preprocessed/training0{0}_0{1}_flair_pp.nii",
                (1, 1),
                (1, 2),
                (2, 1),
            ),
            *times(
                "training/training0{0}/masks/training0{0}_0{1}_mask{2}.nii",
                (1, 1, 1),
                (1, 1, 2),
                (1, 2, 1),
            ),
        ],
        2,
        2,
    ),
    "MSSEG": (
        times(
            "0101{}SACH/{}.nii",
            *(
                (p, k)
                for p in (6, 7)
                for k in (
                    "Preprocessed_Data/FLAIR_preprocessed",
                    "Masks/Consensus",
                    "Masks/Brain_Mask",
                )
            ),
        ),
        2,
        2,
    ),
    "KiTS": (
        times(
            "case_0000{}/{}.nii",
            *(
                (p, k)
                for p in (0, 1)
                for k in ("imaging", "segmentation", "instances/kidney_instance-1_annotation-1")
            ),
        ),
        2,
        2,
    ),
    "AMOS": (
        times("{}/amos_000{}.nii", *((f, p) for f in ("imagesTr", "labelsTr") for p in (1, 4))),
        2,
        2,
    ),
    "TopCoW": (
        times(
            "{}_ct_{}{}.nii",
            *(
                (f"{f}/topcow", p, end)
                for f, end in (("imagesTr", "_0000"), ("cow_seg_labelsTr", ""))
                for p in ("001", "002")
            ),
        ),
        2,
        2,
    ),
    "UCSF-PDGM of more kinds": (
        times(
            "UCSF-PDGM-000{}_nifti/UCSF-PDGM-000{}_{}.nii",
            *(
                (p, p, k)
                for p in (4, 5)
                for k in ("T1", "T1_bias", "DTI_eddy_FA", "tumor_segmentation")
            ),
        ),
        2,
        6,
    ),
    "CHAOS": (
        times("MR/{}/{}.nii", *((p, f"T1DUAL/{k}") for p in (1, 2) for k in ("image", "Ground"))),
        2,
        2,
    ),
    "who drew": (
        ["a/a.nii", "a/a_manual.nii", "b/b.nii", "b/b_expert1.nii", "b/b_expert2.nii"],
        2,
        2,
    ),
    "a word and who drew": (["a.nii", "a_seg_manual.nii", "b.nii", "b_annot.nii"], 2, 2),
    "ATM22": (
        times("{}/ATM_00{}_0000.nii", *((f, p) for f in ("imagesTr", "labelsTr") for p in (1, 2))),
        2,
        2,
    ),
    "ImageCAS": (times("{}.{}.nii", *((p, k) for p in (1, 2) for k in ("img", "label"))), 2, 2),
    "BraTS-MEN-RT": (
        times(
            "BraTS-MEN-RT-000{}-1/BraTS-MEN-RT-000{}-1_{}.nii",
            *((p, p, k) for p in (1, 2) for k in ("t1c", "gtv")),
        ),
        2,
        2,
    ),
    "MU-Glioma-Post": (
        times(
            "PatientID_000{}/Timepoint_{}/PatientID_000{}_Timepoint_{}_{}.nii",
            *(
                (p, t, p, t, k)
                for p in (1, 2)
                for t in (1, 2)
                for k in ("brain_t1c", "brain_t1n", "tumorMask")
            ),
        ),
        2,
        8,
    ),
    "LUNA": (
        [
            "subset0/1.3.6.nii",
            "subset1/1.3.7.nii",
            "seg-lungs-LUNA16/1.3.6.nii",
            "seg-lungs-LUNA16/1.3.7.nii",
        ],
        2,
        2,
    ),
    "PROMISE12": (
        ["Case00.nii", "Case00_segmentation.nii", "Case01.nii", "Case01_segmentation.nii"],
        2,
        2,
    ),
    "SegTHOR": (
        times("Patient_0{0}/{1}.nii", (1, "Patient_01"), (1, "GT"), (2, "Patient_02"), (2, "GT")),
        2,
        2,
    ),
    "UCSF-PDGM": (
        times(
            "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_{}.nii",
            ("T1",),
            ("FLAIR",),
            ("tumor_segmentation",),
            ("brain_parenchyma_segmentation",),
        ),
        1,
        2,
    ),
    "autoPET": (
        times(
            "PETCT_0{}/03-23-2003-NA-PET-1/{}.nii",
            *((p, k) for p in (1, 2) for k in ("CTres", "SUV", "SEG")),
        ),
        2,
        4,
    ),
    "SynthRAD": (
        times("1BA00{}/{}.nii", *((p, k) for p in (1, 2) for k in ("mr", "ct", "mask"))),
        2,
        4,
    ),
    "HECKTOR": (
        ["imagesTr/CHUM-001__CT.nii", "imagesTr/CHUM-001__PT.nii", "labelsTr/CHUM-001.nii"],
        1,
        2,
    ),
    "TotalSegmentator": (
        times(
            "s000{}/{}.nii",
            *(
                (p, k)
                for p in (0, 1)
                for k in ("ct", "segmentations/liver", "segmentations/spleen")
            ),
        ),
        2,
        2,
    ),
    "MM-WHS": (
        times("{}_train_1001_{}.nii", *((m, k) for m in ("ct", "mr") for k in ("image", "label"))),
        2,
        2,
    ),
    "Mindboggle": (
        times(
            "OASIS-TRT-20-{}/{}.nii",
            *((p, k) for p in (1, 2) for k in ("t1weighted_brain", "labels.DKT31.manual")),
        ),
        2,
        2,
    ),
    "masks in a folder of another name": (
        times("{}/P{}.nii", *((f, p) for f in ("ct", "lung_masks") for p in (1, 2))),
        2,
        2,
    ),
    "ten scans of two sites": (
        times("site{}/scan{:02d}.nii", *((s, p) for s in "AB" for p in range(10))),
        20,
        0,
    ),
    "thirteen scans of two sites": (
        times("site{}/scan{:02d}.nii", *((s, p) for s in "AB" for p in range(13))),
        26,
        0,
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_data_sets_are_found_as_they_are(tmp_path, name):
    files, n_people, n_labelled = LAYOUTS[name]
    found = plant(tmp_path, *files)
    assert len(people(found)) == n_people, sorted(people(found))
    assert sum(bool(source.labels) for source in found.sources) == n_labelled
    taken = {path for source in found.sources for path in source.paths}
    result = {skip.path for skip in found.skipped}
    for file in files:
        path = str(tmp_path / file.removeprefix("!"))
        assert path in taken | result or found.notes, f"{file} vanished"
    assert not found.warnings and not found.skipped


def test_masks_go_to_the_images_whose_voxels_they_share(tmp_path):
    files, _, _ = LAYOUTS["ISLES 2022"]
    found = plant(tmp_path, *files)
    for source in found.sources:
        assert bool(source.labels) == ("FLAIR" not in source.id)


def test_a_label_that_may_be_of_two_visits_is_left_out(tmp_path):
    names = ["013/flair_time01_on_middle_space.nii", "013/flair_time02_on_middle_space.nii"]
    found = plant(tmp_path, *names, "013/ground_truth.nii")
    assert [skip.code for skip in found.skipped] == ["ambiguous-label"]
    assert {source.subject for source in found.sources} == {"013"}


def test_a_folder_of_data_sets_is_read_as_each_has_it(tmp_path):
    files = [
        f"Task0{t}/{f}/case_00{c}.nii"
        for t in (1, 2)
        for f in ("imagesTr", "labelsTr")
        for c in (0, 1)
    ]
    files += [f"Dataset003/imagesTr/x_000_000{c}.nii" for c in (0, 1)] + [
        "Dataset003/labelsTr/x_000.nii"
    ]
    files += [
        "ds01/sub-01/anat/sub-01_T1w.nii",
        "IXI-T1/IXI002-Guys-0828-T1.nii",
        "IXI-T2/IXI002-Guys-0828-T2.nii",
    ]
    found = plant(tmp_path, *files)
    assert len(people(found)) == 4 + 1 + 1 + 1
    assert sum(bool(source.labels) for source in found.sources) == 5
    assert [len(s.images) for s in found.sources if s.group == "Dataset003"] == [2]
    assert {s.group for s in found.sources} == {"Task01", "Task02", "Dataset003", "ds01", ""}
    assert len({s.id for s in found.sources}) == len(found.sources) and not found.skipped


@pytest.mark.parametrize("names", ["MS0{}a MS0{}b", "P0{}T1 P0{}T2", "00{}_1 00{}_2"])
def test_names_that_look_like_visits_are_doubted(tmp_path, names):
    files = [f"{name.format(p)}.nii" for name in names.split() for p in (1, 2, 3)]
    people_told = grouped(plant(tmp_path, *files))
    assert people_told.n_subjects == 6 and "of 3 people" in " ".join(people_told.doubts)


@pytest.mark.parametrize(
    "names", ["site{}_00{}", "FLARE2{}_Tr_000{}", "BraTS20_Training_00{1}", "P{}{}"]
)
def test_names_of_people_are_not_doubted(tmp_path, names):
    files = [f"{names.format(s, p)}.nii" for s in (1, 2) for p in range(1, 7)]
    assert not grouped(plant(tmp_path, *dict.fromkeys(files))).doubts


@pytest.mark.parametrize("is_described", [True, False])
def test_files_that_a_data_set_has_no_place_for_are_told(tmp_path, is_described):
    if is_described:
        pair = {"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}
        (tmp_path / "dataset.json").write_text(json.dumps({"training": [pair]}))
    files = ["imagesTr/a.nii", "labelsTr/a.nii", "unlabelled/b.nii", "unlabelled/c.nii"]
    found = plant(tmp_path, *files)
    (result,) = found.skipped
    assert (result.path, result.code) == (str(tmp_path / "unlabelled"), "not-listed")
    assert "2 file(s)" in result.detail and "`--layout folder`" in result.detail
    assert len(discover(str(tmp_path), "folder").sources) == 3


@pytest.mark.parametrize("name", ["T1_pve_0", "c1T1", "wc2T1", "T1_prob", "T1_probability-2"])
def test_probability_maps_among_images_are_told(tmp_path, name):
    found = plant(tmp_path, "p1/T1.nii", "p2/T1.nii", f"p1/{name}.nii")
    assert len(found.sources) == 3
    (result,) = found.warnings
    assert f"p1/{name}.nii: called like a probability map" in result
    assert not discover(str(tmp_path), options=SourceOptions(accept_doubts=True)).warnings


@pytest.mark.parametrize("name", ["c1", "probe_1", "c1_T2", "improbable"])
def test_other_names_are_no_probability_maps(tmp_path, name):
    assert not plant(tmp_path, "p1/T1.nii", f"p1/{name}.nii").warnings


def test_a_raters_labels_of_bids_have_one_name_wherever_another_is_missing(tmp_path):
    image, label = "sub-{0}/anat/sub-{0}_T1w.nii.gz", "sub-{0}/anat/sub-{0}_T1w_dseg.nii.gz"
    both, one = ("01", "03"), ("02",)
    names = [image.format(who) for who in (*both, *one)]
    names += [f"derivatives/r2/{label.format(who)}" for who in (*both, *one)]
    names += [f"derivatives/r1/{label.format(who)}" for who in both]
    found = plant(tmp_path, *names)
    assert [list(s.labels) for s in found.sources if s.subject == "sub-02"] == [["seg_r2"]]
    raters = {
        (name, path.split("/derivatives/")[1][:2])
        for source in found.sources
        for name, path in source.labels.items()
    }
    assert raters == {("seg", "r1"), ("seg_r2", "r2")}


def test_raters_of_bids_that_no_image_has_both_of_are_one_label(tmp_path):
    names = [f"sub-{who}/anat/sub-{who}_T1w.nii.gz" for who in (1, 2)]
    names += [f"derivatives/r{w}/sub-{w}/anat/sub-{w}_T1w_dseg.nii.gz" for w in (1, 2)]
    assert [list(s.labels) for s in plant(tmp_path, *names).sources] == [["seg"], ["seg"]]


def spelled(form: str, name: str) -> str:
    return unicodedata.normalize("NFD" if form == "NFD" else "NFC", name)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_accents_are_one_name_however_they_are_written(tmp_path, forms):
    """A Mac writes them as letters of their own: files, labels, tables and patterns still meet."""
    one, other = (spelled(form, "Jörg") for form in forms)
    found = plant(
        *(tmp_path / "a", f"images/{one}_t1.nii", f"images/{one}_t2.nii"),
        *(f"labels/{other}_t1.nii", "images/Bärbel_t1.nii"),
    )
    assert {source.subject for source in found.sources} == {"Jörg", "Bärbel"}
    assert [len(source.labels) for source in found.sources] == [0, 1, 0]
    assert all(Path(p).is_file() for source in found.sources for p in source.paths)
    table = tmp_path / "who.csv"
    table.write_text(f"file,subject\n{other}_t1.nii,{other}\n{other}_t2.nii,{one}\n")
    found = discover(str(tmp_path / "a"), options=SourceOptions(subjects=str(table)))
    told = [w for w in found.warnings if "name no file" in w or "otherwise" in w]
    assert not told and {s.subject for s in found.sources} == {"Jörg", "Bärbel"}
    pattern = SourceOptions(subject=f"{other}|B")
    subjects = {s.subject for s in discover(str(tmp_path / "a"), options=pattern).sources}
    assert subjects == {"Jörg", "B"}
    listed = tmp_path / "list.csv"
    rows = [f"{tmp_path}/a/images/{other}_t1.nii,x", f"a/images/{other}_t2.nii,{other}"]
    listed.write_text("\n".join(["image,subject", *rows]))
    found = discover(str(listed))
    assert not found.skipped and [s.subject for s in found.sources] == ["x", "Jörg"]
    assert discover(str(tmp_path / "a" / "images" / f"{other}_t2.nii")).sources


def test_two_files_whose_names_differ_in_spelling_alone_are_both_taken(tmp_path):
    names = [f"{spelled(form, 'Jörg')}.nii" for form in ("NFC", "NFD")]
    found = plant(tmp_path, *names)
    assert len({source.images for source in found.sources}) == 2
    assert {source.subject for source in found.sources} == {"Jörg"}


def test_people_whose_names_differ_in_capitals_alone_are_doubted(tmp_path):
    found = plant(tmp_path, "sub-01.nii", "SUB-01.nii", "Anna_t1.nii", "anna_t2.nii")
    doubts = [doubt for doubt in grouped(found).doubts if "in capitals" in doubt]
    assert len(doubts) == 1 and doubts[0].startswith("4 subjects may be 2 people")
    accepting = SourceOptions(accept_doubts=True)
    assert not grouped(discover(str(tmp_path), options=accepting)).doubts
    table = tmp_path / "who.csv"
    table.write_text("file,subject\nsub-01.nii,a\nSUB-01.nii,a\nAnna_t1,b\nanna_t2,b\n")
    people = grouped(discover(str(tmp_path), options=SourceOptions(subjects=str(table))))
    assert (people.n_subjects, people.doubts) == (2, ())
