import pytest

from mim3d.engine.pretrain.held_out import judge_pretext


def rows(losses, **floors):
    return [{"step": i, "loss": loss, **floors} for i, loss in enumerate(losses)]


def test_the_last_fifth_decides():
    verdict = judge_pretext(rows([1.0] * 8 + [0.5, 0.3], patch_mean=1.0, nearest_patch=2.0))
    assert verdict["loss"] == pytest.approx(0.4)
    assert verdict["patch_mean"] == 1.0
    assert verdict["nearest_patch"] == 2.0
    assert verdict["loss_over_floor"] == pytest.approx(0.4)
    assert verdict["learned"]


@pytest.mark.parametrize(
    ("loss", "learned"), [(3.4, False), (3.3, False), (3.2, True), (3.7, False)]
)
def test_chance_must_be_beaten_clearly(loss, learned):
    assert judge_pretext(rows([loss] * 10, chance=3.43))["learned"] is learned


def test_nothing_logged_is_nothing_learned():
    assert judge_pretext([]) == {"loss": None, "learned": False}
    assert not judge_pretext(rows([float("nan")] * 3, chance=3.4))["learned"]


def test_a_floor_that_is_null_in_some_rows_is_that_of_the_others() -> None:
    """metrics.jsonl has null for what was not finite."""
    told = rows([0.5] * 10, patch_mean=1.0)
    told[-1]["patch_mean"] = None
    assert judge_pretext(told)["floor"] == 1.0
