"""How a statement names an arm: the method only where as many encoders as seeds stand for it."""

from mim3d.engine.analysis.results import Study, is_of
from mim3d.engine.analysis.summary import Comparison, GroupSummary
from mim3d.engine.analysis.words import arm_name, on_encoder
from mim3d.engine.study.encoders import SCRATCH


def encoder_name(study: Study, group: GroupSummary, arm: str) -> str:
    """`MAE` where every seed has its own pretraining, `this MAE encoder` where seeds share one.

    Runs that share an encoder vary by fine-tuning alone: what they show is of that encoder.
    """
    name = arm_name(arm)
    return f"this {name} encoder" if shares_pretraining(study, group, arm) else name


def pair_names(study: Study, group: GroupSummary, comparison: Comparison) -> tuple[str, str]:
    """How both arms of a comparison are named; the second with the encoder that both have."""
    first, second = (
        encoder_name(study, group, arm) for arm in (comparison.first, comparison.second)
    )
    return first, second + on_encoder(comparison.encoder)


def shares_pretraining(study: Study, group: GroupSummary, arm: str) -> bool:
    """Whether fewer pretrainings than seeds stand behind an arm's scored runs."""
    seeds = next((found.seeds for found in group.arms if found.arm == arm), ())
    if arm == SCRATCH or not seeds:
        return False
    own = {p["seed"] for p in study.pretraining if p["arm"] == arm and is_of(p, group.group)}
    return not set(seeds) <= own


def one_pretraining(study: Study, group: GroupSummary, comparison: Comparison) -> str:
    """What a comparison of encoders that all seeds share cannot show."""
    pair = comparison.first, comparison.second
    shared = [arm_name(arm) for arm in pair if shares_pretraining(study, group, arm)]
    if not shared:
        return ""
    return (
        f" All seeds start from one pretraining of {' and of '.join(shared)}: another may stand "
        "otherwise, and the interval does not count it."
    )


def interim(awaited: bool) -> str:
    """That a study is not finished, where runs that are compared are still to come."""
    if not awaited:
        return ""
    return (
        " Runs are still to come, so every figure is interim: no interval or p is corrected for "
        "looking more than once."
    )


def so_far(awaited: bool) -> str:
    """` so far` where runs that are compared are still to come, for the sentence alone."""
    return " so far" if awaited else ""


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]
