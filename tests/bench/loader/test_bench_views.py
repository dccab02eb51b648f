"""The bench of views runs, with its peers, and its ratios are those of its rounds."""

import pytest

from mim3d.bench.loader.views import main

SMALL = ["--crop", "16", "--batch", "2", "--batches", "1", "--rounds", "2"]


def test_ours_alone(capsys: pytest.CaptureFixture[str]) -> None:
    figures = main(SMALL).figures
    assert figures["ratios"] == {}
    assert "pairs of views of 16^3 a CPU-second" in capsys.readouterr().out


@pytest.mark.slow
def test_peers_take_turns() -> None:
    figures = main([*SMALL, "--peers"]).figures
    rates = figures["per_cpu_s"]
    assert set(rates) == {"ours", "DALI on a CPU", "MONAI"}
    for name in ("DALI on a CPU", "MONAI"):
        rounds = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        assert figures["ratios"][f"ours over {name}"]["rounds"] == pytest.approx(tuple(rounds))
