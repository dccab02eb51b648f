"""What a report says beside its headline: measured, with an interval by itself, never tested."""

from collections.abc import Sequence

from mim3d.engine.analysis.family import first_groups, headline_family, primary_share
from mim3d.engine.analysis.naming import capital, pair_names
from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.summary import (
    MIM,
    ArmSummary,
    Comparison,
    GroupSummary,
    method_of,
    primary_target,
)
from mim3d.engine.analysis.verdict import Statement, seeds_in_words
from mim3d.engine.analysis.words import (
    arm_name,
    interval_in_words,
    on_encoder,
    ratio_in_words,
    seed_list,
)
from mim3d.engine.study.encoders import SCRATCH


def secondary_statements(study: Study, groups: Sequence[GroupSummary]) -> list[Statement]:
    """Speed over scratch, final scores of masked arms, and pretraining cost, first groups."""
    lost = [s for g in groups for arm in g.arms if (s := lost_statement(g, arm)) is not None]
    return [*lost, *(s for group in first_groups(groups) for s in described_group(study, group))]


def described_group(study: Study, group: GroupSummary) -> list[Statement]:
    """The same of one group."""
    family = headline_family(group)
    speeds = [
        described_speed(study, group, comparison)
        for comparison in group.comparisons
        if comparison not in family
    ]
    masked = [c for c in group.comparisons if method_of(c.first) in MIM]
    finals = [described_final(comparison) for comparison in masked]
    return [*speeds, *finals, *cost_statements(group)]


def described_speed(study: Study, group: GroupSummary, comparison: Comparison) -> Statement:
    """The ratio of two arms at the primary target, as measured."""
    share = primary_target(group.targets, primary_share(study)).share
    found = comparison.at[share]
    first, second = pair_names(study, group, comparison)
    goal = f"{100 * share:g} % of {arm_name(group.reference)}'s best score"
    if found.ratio is None:
        text = f"{capital(first)} over {second}: no ratio."
        return Statement("neutral", text, f"{capital(found.why)}.")
    text = f"{capital(first)} over {second}: {ratio_in_words(found)} to {goal}."
    seeds = seeds_in_words(found.pairs, comparison.planned)
    if found.low is None and found.high is None:
        return Statement("neutral", text, f"{capital(found.why)}.")
    return Statement("neutral", text, f"{capital(interval_in_words(found))}; {seeds}.")


def lost_statement(group: GroupSummary, arm: ArmSummary) -> Statement | None:
    """Which runs of an arm are not there, and what that does to its figures."""
    parts = []
    if arm.diverged:
        parts.append(
            f"{seed_list(arm.diverged)} diverged, which counts as never reaching a target and is "
            "left out of scores and areas"
        )
    if arm.missing:
        parts.append(f"{seed_list(arm.missing)} not run or failed, which no figure counts")
    if not parts:
        return None
    text = f"Not all runs of {arm_name(arm.arm)} are there ({group.group.title})."
    return Statement("warning", text, f"{'; '.join(parts).capitalize()}.")


def described_final(comparison: Comparison) -> Statement:
    """Difference of the final scores of two arms, as measured."""
    first = arm_name(comparison.first)
    second = arm_name(comparison.second) + on_encoder(comparison.encoder)
    found = comparison.final
    if found.mean is None:
        return Statement("neutral", f"Final score of {first} and {second}: {found.why}.")
    gap = f"{first} ended {found.mean:+.3f} against {second}"
    if found.pairs < comparison.planned:
        gap += f" over {found.pairs} of {comparison.planned} seeds"
    if found.low is None or found.high is None:
        return Statement("neutral", f"{gap}.", f"{capital(found.why)}.")
    return Statement("neutral", f"{gap}.", f"95 % interval {found.low:+.3f} to {found.high:+.3f}.")


def cost_statements(group: GroupSummary) -> list[Statement]:
    """What pretraining does to the ratios over scratch when its own cost is counted."""
    speeds = []
    for comparison in group.comparisons:
        whole = comparison.ledgers["with pretraining", "flops"]
        if comparison.second == SCRATCH and whole.ratio is not None:
            speeds.append(f"{arm_name(comparison.first)} {ratio_in_words(whole)}")
    if not speeds:
        return []
    on = on_encoder(group.group.encoder)
    text = f"With the FLOPs of pretraining counted, for one task alone, over scratch{on}:"
    return [Statement("neutral", text, ", ".join(speeds) + ".")]
