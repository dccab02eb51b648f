"""Where kernels are tested: here, by the reference or interpreted, and on a GPU."""

import pytest

from mim3d.kernels.backend import INTERPRETED

BACKENDS = [
    ("triton", "cpu") if INTERPRETED else ("reference", "cpu"),
    pytest.param(("triton", "cuda"), marks=pytest.mark.gpu),
]


@pytest.fixture(params=BACKENDS, ids="-".join)
def where(request: pytest.FixtureRequest) -> tuple[str, str]:
    """(backend, device)."""
    return request.param
