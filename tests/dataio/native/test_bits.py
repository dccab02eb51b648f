"""Bit planes to bytes, by each set of instructions: the header is compiled here by itself."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

HEADERS = Path(__file__).resolve().parents[3] / "dataio" / "native"
SOURCE = """
#include "bits.h"
int choose(const char *most) {
    return choose_instructions(most) && !strcmp(instruction_names[instructions], most);
}
void join(const uint8_t *rows, size_t pitch, size_t n, uint8_t *to) {
    join_bits(rows, pitch, n, to);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("bits")
    (folder / "bits.c").write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-O2", "-w", f"-I{HEADERS}", str(folder / "bits.c")]
    subprocess.run([*command, "-o", str(folder / "bits.so")], check=True)
    return ctypes.CDLL(str(folder / "bits.so"))


@pytest.mark.parametrize("way", ["plain", "avx2", "avx512"])
@given(n=st.integers(0, 200), more=st.integers(0, 40), seed=st.integers(0, 1000))
def test_bits_of_eight_rows_become_bytes(library, way, n, more, seed):
    if not library.choose(way.encode()):
        pytest.skip(f"this processor has no {way}")
    pitch = n + more
    rows = np.random.default_rng(seed).integers(0, 256, (8, pitch), np.uint8)
    got = np.full(8 * n + 64, 0xA5, np.uint8)
    sizes = ctypes.c_size_t(pitch), ctypes.c_size_t(n)
    library.join(ctypes.c_void_p(rows.ctypes.data), *sizes, ctypes.c_void_p(got.ctypes.data))
    bits = np.unpackbits(rows[:, :n], axis=1, bitorder="little")  # (bit, voxel)
    wanted = np.packbits(bits, axis=0, bitorder="little")[0]
    np.testing.assert_array_equal(got[: 8 * n], wanted)
    assert (got[8 * n :] == 0xA5).all()
