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
    difference,
    ends_in_words,
    interval_in_words,
    on_encoder,
    ratio_in_words,
    seed_list,
)
from mim3d.engine.study.encoders import SCRATCH


def secondary_statements(study: Study, groups: Sequence[GroupSummary]) -> list[Statement]:
    """Speed over scratch, final scores of masked arms, and pretraining cost, first groups."""
    lost = [s for g in groups for arm in g.arms if (s := lost_statement(study, g, arm)) is not None]
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
    finals = [described_final(study, group, comparison) for comparison in masked]
    return [*speeds, *finals, *cost_statements(study, group)]


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


def lost_statement(study: Study, group: GroupSummary, arm: ArmSummary) -> Statement | None:
    """Which runs of an arm are not there, and what that does to its figures."""
    parts = []
    awaited = [seed for seed in arm.missing if seed in study.awaited(group.group, arm.arm)]
    failed = [seed for seed in arm.missing if seed not in awaited]
    if arm.diverged:
        parts.append(
            f"{seed_list(arm.diverged)} diverged, which counts as never reaching a target and is "
            "left out of scores and areas"
        )
    if failed:
        parts.append(f"{seed_list(failed)} failed, which no figure counts")
    if awaited:
        parts.append(f"{seed_list(awaited)} not run so far, which no figure counts")
    if not parts:
        return None
    text = f"Not all runs of {arm_name(arm.arm)} are there ({group.group.title})."
    return Statement("warning", text, f"{capital('; '.join(parts))}.")


def described_final(study: Study, group: GroupSummary, comparison: Comparison) -> Statement:
    """Mean difference of the final scores of two arms over their seeds, as measured."""
    first, second = pair_names(study, group, comparison)
    found, metric = comparison.final, study.about.get("metric", "Dice")
    if found.mean is None:
        return Statement("neutral", f"Final {metric} of {first} and {second}: {found.why}.")
    gap = f"Final {metric} of {first} less that of {second}: {difference(found.mean, None)}."
    if found.low is None or found.high is None:
        return Statement("neutral", gap, f"{capital(found.why)}.")
    seeds = seeds_in_words(found.pairs, comparison.planned)
    interval = f"95 % interval {ends_in_words(found.low, found.high)}"
    return Statement("neutral", gap, f"{interval}; {seeds}.")


def cost_statements(study: Study, group: GroupSummary) -> list[Statement]:
    """What pretraining does to the ratios over scratch when its own cost is counted."""
    speeds = []
    for comparison in group.comparisons:
        whole = comparison.ledgers["with pretraining", "flops"]
        if comparison.second == SCRATCH and whole.ratio is not None:
            speeds.append(whole_cost(study, group, comparison))
    if not speeds:
        return []
    goal = f"to {100 * primary_target(group.targets, primary_share(study)).share:g} %"
    on = on_encoder(group.group.encoder)
    text = f"With the FLOPs of pretraining counted, for one task alone, {goal} over scratch{on}:"
    return [Statement("neutral", text, ", ".join(speeds) + ".")]


def whole_cost(study: Study, group: GroupSummary, comparison: Comparison) -> str:
    """`MAE 0.63× (95 % interval 0.52 to 0.74; 5 seeds)`, the interval where there is one."""
    whole = comparison.ledgers["with pretraining", "flops"]
    first, _ = pair_names(study, group, comparison)
    seeds = seeds_in_words(whole.pairs, comparison.planned)
    if whole.low is None and whole.high is None:
        return f"{first} {ratio_in_words(whole)} ({seeds})"
    return f"{first} {ratio_in_words(whole)} ({interval_in_words(whole)}; {seeds})"
