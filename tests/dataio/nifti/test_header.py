import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti.file import read_header, read_nifti, read_source_bytes
from mim3d.dataio.nifti.header import HeaderTrust, parse_header

BUDGET = 1 << 30


def header(kind=nib.Nifti1Header, shape=(4, 5, 6), endianness="<"):
    made = kind(endianness=endianness)
    made.set_data_shape(shape)
    made.set_data_dtype(np.int16)
    made.set_sform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    made["vox_offset"] = made.sizeof_hdr + 4
    return made


def rejected(made, paired=False) -> str:
    with pytest.raises(SourceError) as caught:
        parse_header(made.binaryblock, "a.nii", paired=paired)
    assert "a.nii" in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_versions_and_byte_orders(kind, endianness):
    found = parse_header(header(kind, endianness=endianness).binaryblock, "a.nii", paired=False)
    assert found.shape == (4, 5, 6)
    assert found.dtype == np.dtype(endianness + "i2")
    assert np.array_equal(found.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert found.n_frames == 1


FIELDS = {
    "bad-dims": [("dim", [0] * 8), ("dim", [3, 0, 5, 6, 1, 1, 1, 1]),
                 ("dim", [3, -4, 5, 6, 1, 1, 1, 1]), ("dim", [9, 4, 5, 6, 1, 1, 1, 1])],
    "5d": [("dim", [5, 4, 5, 6, 1, 3, 1, 1])],
    "bad-datatype": [("datatype", 3), ("datatype", 0)],
    "rgb": [("datatype", 128), ("datatype", 2304)],
    "complex": [("datatype", 32), ("datatype", 1792)],
    "bad-vox-offset": [("vox_offset", 10), ("vox_offset", np.nan), ("vox_offset", -1)],
    "bad-affine": [("srow_x", [np.nan, 0, 0, 0]), ("srow_y", [0, np.inf, 0, 0])],
    "singular-affine": [("srow_z", [0, 0, 0, 0]), ("srow_z", [2, 0, 0, 5])],
    "wrong-magic": [("magic", b"ni1")],
    "not-nifti": [("magic", b"xxx"), ("sizeof_hdr", 100)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "field", "value"),
    [(code, *case) for code, cases in FIELDS.items() for case in cases],
)
def test_bad_fields(code, field, value):
    made = header()
    made[field] = value
    assert rejected(made) == code


def test_bad_scaling():
    made = header()
    made["scl_slope"], made["scl_inter"] = 2.0, np.nan
    assert rejected(made) == "bad-scaling"
    made["scl_slope"] = np.nan
    found = parse_header(made.binaryblock, "a.nii", paired=False)
    assert (found.slope, found.intercept) == (1.0, 0.0)


def test_short_file():
    with pytest.raises(SourceError, match="not even"):
        parse_header(header().binaryblock[:100], "a.nii", paired=False)


def test_sform_wins_over_qform_and_pixdim_is_last():
    made = header()
    made.set_qform(np.diag([7.0, 7.0, 7.0, 1.0]), 1)
    assert parse_header(made.binaryblock, "a.nii", paired=False).affine[0, 0] == 2.0
    made["sform_code"] = 0
    found = parse_header(made.binaryblock, "a.nii", paired=False)
    assert (found.affine_from, found.affine[0, 0]) == ("qform", 7.0)
    made["qform_code"] = 0
    found = parse_header(made.binaryblock, "a.nii", paired=False)
    assert (found.affine_from, found.affine_code) == ("pixdim", 0)
    assert np.allclose(found.affine, np.asarray(made.get_best_affine()))


def parsed(made, **trust):
    return parse_header(made.binaryblock, "a.nii", paired=False, trust=HeaderTrust(**trust))


@pytest.mark.parametrize("bits", [0, 8, 64])
def test_bitpix_is_mended_and_told(bits):
    made = header()
    made["bitpix"] = bits
    assert parsed(made).dtype == np.int16
    assert f"bitpix is {bits}, read as the 16 of int16" in parsed(made).notes


@pytest.mark.parametrize("qfac", [0, 2, np.nan])
def test_qfac_and_sizes_are_mended_as_nibabel_does(qfac):
    made = header()
    made["sform_code"] = 0
    made.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 1)
    made["pixdim"][0], made["pixdim"][2] = qfac, -3
    found = parsed(made)
    assert np.array_equal(found.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert "qfac" in found.notes[0] and "pixdim[2] is -3, read as 3" in found.notes
    made["pixdim"][3] = 0
    assert np.array_equal(parsed(made).affine, np.diag([2.0, 3.0, 1.0, 1.0]))


def test_forms_of_two_spacings_are_told_with_both_and_one_is_believed():
    made = header()
    made.set_qform(np.diag([1.3, 1.3, 10.0, 1.0]), 1)
    made.set_sform(np.eye(4), 1)
    wanted = {"auto": (1, 1, 1), "sform": (1, 1, 1), "qform": (1.3, 1.3, 10)}
    wanted["pixdim"] = (1.3, 1.3, 10)
    for believe, spacing in wanted.items():
        found = parsed(made, believe=believe)
        assert np.allclose(np.linalg.norm(found.affine[:3, :3], axis=0), spacing)
        result = found.doubt if believe == "auto" else found.notes[0]
        assert "1 x 1 x 1 mm" in result and "1.3 x 1.3 x 10 mm" in result
        assert bool(found.doubt) == (believe == "auto")


def test_sizes_alone_keep_the_directions_of_the_sform():
    made = header()
    turned = np.array([[0, -2, 0, 5], [3, 0, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    made.set_sform(turned, 2)
    made["pixdim"][1:4] = 1.5, 2.5, 3.5
    affine = parsed(made, believe="pixdim").affine
    assert np.allclose(affine[:3, :3], turned[:3, :3] / (3, 2, 4) * (1.5, 2.5, 3.5))
    assert np.array_equal(affine[:3, 3], turned[:3, 3])


@pytest.mark.parametrize(
    ("sform", "expected"),
    [
        ((-2.0, 3, 4, 1), "handedness (LAS against RAS)"),
        ((-2.0, -3, 4, 1), "directions (LPS against"),
    ],
)
def test_forms_of_two_directions_are_told(sform, expected):
    made = header()
    made.set_qform(np.diag([2.0, 3, 4, 1]), 1)
    made.set_sform(np.diag(sform), 1)
    assert expected in parsed(made).doubt
    assert (
        parsed(made, believe="qform").affine[0, 0] == 2 and not parsed(made, believe="qform").doubt
    )


def test_a_rotation_between_the_forms_is_nobodys_doubt():
    made = header()
    made.set_qform(np.diag([2.0, 3, 4, 1]), 1)
    c, s = np.cos(0.2), np.sin(0.2)
    turned = np.array([[c, -s, 0, 9], [s, c, 0, 8], [0, 0, 1, 7], [0, 0, 0, 1]])
    made.set_sform(turned @ np.diag([2.0, 3, 4, 1]), 4)
    assert not parsed(made).doubt and not parsed(made).notes


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("mm", 1), ("micron", 1e-3)])
def test_units_become_mm(unit, factor):
    made = header()
    made.set_sform(np.diag([0.02, 0.03, 0.04, 1.0]), 1)
    made["pixdim"][1:4] = 0.02, 0.03, 0.04
    made.set_xyzt_units(unit)
    found = parsed(made)
    assert np.allclose(np.diag(found.affine), [0.02 * factor, 0.03 * factor, 0.04 * factor, 1])
    assert any("stored in mm" in note for note in found.notes) == (factor != 1)
    assert np.allclose(np.diag(parsed(made, units="mm").affine), [0.02, 0.03, 0.04, 1])


def test_voxels_of_a_metre_are_doubted():
    made = header()
    made["pixdim"][1:4] = 2, 3, 4
    made.set_xyzt_units("meter")
    assert "--units mm" in parsed(made).doubt
    assert not parsed(made, units="mm").doubt


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 347), st.integers(0, 255))
def test_any_damaged_byte_is_parsed_or_refused_in_words(position, value):
    block = bytearray(header().binaryblock)
    block[position] = value
    try:
        found = parse_header(bytes(block), "a.nii", paired=False)
    except SourceError as error:
        assert error.code and error.detail
    else:
        assert min(found.shape) >= 1 and np.isfinite(found.affine).all()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=700))
def test_any_bytes(block):
    with pytest.raises(SourceError):
        parse_header(block, "a.nii", paired=False)


def save(path: Path, voxels: np.ndarray, **fields) -> Path:
    image = nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def test_voxels_lie_as_in_the_file(tmp_path):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    found = read_nifti(str(save(tmp_path / "a.nii.gz", voxels)), BUDGET)
    assert np.array_equal(found.voxels[0].transpose(2, 1, 0), voxels)
    assert found.nbytes == (tmp_path / "a.nii.gz").stat().st_size


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_pairs_by_either_name(tmp_path, zipped):
    voxels = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    image = nib.Nifti1Pair(voxels, np.eye(4))
    nib.save(image, tmp_path / "a.img")
    for name in ("a.hdr", "a.img"):
        if zipped:
            content = (tmp_path / name).read_bytes()
            (tmp_path / (name + zipped)).write_bytes(gzip.compress(content))
    found = [read_nifti(str(tmp_path / (name + zipped)), BUDGET) for name in ("a.hdr", "a.img")]
    assert np.array_equal(found[0].voxels[0].transpose(2, 1, 0), voxels)
    assert found[0].hash == found[1].hash


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("empty.nii.gz", b"", "empty"),
        ("text.nii", b"this is no image" * 50, "not-nifti"),
        ("short.nii", header().binaryblock + bytes(4 + 239), "truncated"),
    ],
)
def test_files_that_are_not_images(tmp_path, name, content, code):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        read_nifti(str(tmp_path / name), BUDGET)
    assert caught.value.code == code and name in str(caught.value)


def test_places_that_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    for name, code in [
        ("pipe.nii", "not-a-file"),
        ("loop.nii", "unreadable"),
        ("none.nii", "missing"),
        ("", "not-a-file"),
    ]:
        with pytest.raises(SourceError) as caught:
            read_source_bytes(str(tmp_path / name), BUDGET)
        assert caught.value.code == code


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize(
    ("tail", "taken"), [(0, True), (39, True), (40, False), (500_000, False), (5_000_000, False)]
)
def test_little_may_follow_the_voxels(tmp_path, zipped, tail, taken):
    """Less than the smallest plane, 4 x 5 voxels, and in larger files at most 1 KiB."""
    file = tmp_path / f"a.nii{zipped}"
    save(tmp_path / "a.nii", np.ones((4, 5, 6), np.int16))
    content = (tmp_path / "a.nii").read_bytes() + os.urandom(tail)
    file.write_bytes(gzip.compress(content) if zipped else content)
    if taken:
        assert read_nifti(str(file), BUDGET).header.shape == (4, 5, 6)
        return
    with pytest.raises(SourceError, match="declares") as caught:
        read_nifti(str(file), BUDGET)
    assert caught.value.code == "too-long"


def test_the_tail_of_a_large_file_is_no_plane(tmp_path):
    save(tmp_path / "a.nii", np.ones((40, 50, 60), np.int16))
    content = (tmp_path / "a.nii").read_bytes()
    for tail, taken in ((1024, True), (1025, False)):
        (tmp_path / "a.nii").write_bytes(content + bytes(tail))
        if taken:
            read_nifti(str(tmp_path / "a.nii"), BUDGET)
        else:
            with pytest.raises(SourceError, match="1025 bytes follow"):
                read_nifti(str(tmp_path / "a.nii"), BUDGET)


def test_a_flipped_bit_of_the_dimensions_is_found_in_a_bare_file(tmp_path):
    """Nothing but the file's size tells: bit 0 of dim[0] makes 2 of 3 dimensions."""
    file = save(tmp_path / "a.nii", np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5))
    content = file.read_bytes()
    unused = set(range(8 * 48, 8 * 56))  # dim[4] and on, beyond the three that count
    for bit in set(range(8 * 40, 8 * 56)) - unused:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            found = read_nifti(str(file), BUDGET)
        except SourceError:
            continue
        assert (found.header.shape, found.header.n_frames) == ((7, 6, 5), 1), bit


def test_budget(tmp_path):
    file = str(save(tmp_path / "a.nii.gz", np.zeros((40, 40, 40), np.float32)))
    with pytest.raises(SourceError, match="byte-budget"):
        read_nifti(file, 1000)


@pytest.mark.parametrize(
    ("content", "code", "remedy"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "lfs-pointer",
            "git lfs pull",
        ),
        (b"/annex/objects/MD5E-s9--0.nii.gz\n", "annex-pointer", "datalad get"),
        (b"  <!DOCTYPE html><html>login</html>", "web-page", "download it again"),
        (b"BZh91AY&SY", "bzip2", "bunzip2"),
        (b"PK\x03\x04", "zip", "unpack it"),
        (b"\x28\xb5\x2f\xfd", "zstd", "zstd -d"),
    ],
)
def test_what_stands_under_a_nifti_name_is_told_with_its_remedy(tmp_path, content, code, remedy):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(content + bytes(600))
    for read in (read_nifti, read_header):
        with pytest.raises(SourceError, match=remedy) as caught:
            read(str(file), BUDGET)
        assert caught.value.code == code
