"""Shared fixtures; OpenMP is held to one thread because contention makes two slower than one."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

# Timings are never asserted: a busy machine must not fail a property. CI tries the same examples
# every time, so that a change is blamed for what it broke; people's machines find new ones.
hypothesis.settings.register_profile(
    "mim3d", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True
)
hypothesis.settings.load_profile("mim3d")

REAL_DATA = Path(
    os.environ.get("MIM3D_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes; tests that need it skip, saying so, where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real volumes at {REAL_DATA} (set MIM3D_REAL_DATA)")
    return REAL_DATA


def pytest_sessionstart() -> None:
    """Tests that send Ctrl-C need Python's own handling of it; a shell's `&` has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip, saying so, on a machine without one."""
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # the keywords hold the names of folders too
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
