"""The one family of comparisons that a report tests: named beforehand, corrected together.

Its members are each masked arm over one rival, by steps to the primary target, under the study's
first decoder and labels; where arms have several encoders, of each encoder, for arms of two
encoders are never compared. Everything else that a report says is description: measured, with an
interval by itself, never called significant.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mim3d.engine.analysis.results import Study
from mim3d.engine.analysis.speedup import ALPHA, PairedRatio, holm, joint_interval
from mim3d.engine.analysis.summary import (
    MIM,
    PRIMARY,
    Comparison,
    GroupSummary,
    method_of,
    pairs_of,
    primary_target,
)
from mim3d.engine.study.encoders import SCRATCH

PAPER_RATIO = 1.40
"""Speed-up over contrastive pretraining of Chen et al., Masked image modeling advances 3D medical
image analysis, WACV 2023."""
Pair = tuple[str, str]


@dataclass(frozen=True)
class Family:
    """Comparisons with p values by Holm; `size` counts also those named that cannot be tested."""

    members: tuple[Comparison, ...]
    p_values: tuple[float | None, ...]
    size: int
    share: float

    def on(self, encoder: str) -> list[Comparison]:
        """The members whose arms have an encoder."""
        return [comparison for comparison in self.members if comparison.encoder == encoder]

    def p_of(self, comparison: Comparison) -> float | None:
        """The corrected p of a member."""
        return self.p_values[self.members.index(comparison)]

    def certain(self, comparison: Comparison) -> bool:
        """Whether a member's ratio differs from 1 with the family's errors at 5 %."""
        p_value = self.p_of(comparison)
        return p_value is not None and p_value < ALPHA

    def ratio_of(self, comparison: Comparison) -> PairedRatio:
        """A member's ratio at the primary target."""
        return comparison.at[self.share]

    @property
    def chosen(self) -> Comparison:
        """The member with the largest ratio, of those certainly faster if any is."""
        faster = [c for c in self.members if self.ratio_of(c).above_one and self.certain(c)]
        return max(faster or self.members, key=lambda c: self.ratio_of(c).ratio or 0.0)

    def excludes(self, comparison: Comparison, ratio: float) -> bool:
        """Whether a member's interval, wide enough for all to hold at once, lies below a ratio.

        The intervals hold together in 95 % of studies, so that of all exclusions no more than 5 %
        are false. The tests of 1 (Holm) have 5 % of their own: no level covers both at once.
        """
        _, high = joint_interval(self.ratio_of(comparison), self.size)
        return high is not None and high < ratio


def read_family(study: Study, *groups: GroupSummary) -> Family:
    """The family of a study's first groups, one an encoder, of the comparisons that were made."""
    share = primary_target(groups[0].targets, primary_share(study)).share
    members = tuple(c for group in groups for c in headline_family(group))
    there = [arm.arm for arm in groups[0].arms]
    size = max(len(planned_family(study, there)), len(members))
    found = [c.at[share].p_value for c in members] + [None] * (size - len(members))
    return Family(members, tuple(holm(found)[: len(members)]), size, share)


def first_groups(groups: Sequence[GroupSummary]) -> list[GroupSummary]:
    """The headline's groups: the first decoder and labels, of each encoder."""
    first = groups[0].group
    return [g for g in groups if replace(g.group, encoder=first.encoder) == first]


def runs_awaited(study: Study, *groups: GroupSummary) -> bool:
    """Whether runs are still to come that the family rests on: of any arm of it, or of scratch.

    Each member's p hangs on the others' (Holm), all on the target. An arm that learned nothing is
    not waited for, nor one without runs where results were left out: those will not come.
    """
    there = [arm.arm for arm in groups[0].arms]
    plan = planned_family(study, there)
    arms = {(encoder, arm) for encoder, pair in plan for arm in (*pair, groups[0].reference)}
    idle = {(group.group.encoder, arm) for group in groups for arm in group.untrained}
    if study.about.get("left_out"):
        arms &= {(group.group.encoder, arm.arm) for group in groups for arm in group.arms}
    first = groups[0].group
    return any(study.awaited(replace(first, encoder=on), arm) for on, arm in arms - idle)


def headline_family(group: GroupSummary) -> list[Comparison]:
    """The comparisons of the family that were made: untrained arms are compared with nobody."""
    made = {(c.first, c.second): c for c in group.comparisons}
    return [made[pair] for pair in family_pairs(list(made), [arm.arm for arm in group.arms])]


def planned_family(study: Study, there: Sequence[str]) -> list[tuple[str, Pair]]:
    """Encoders and pairs of the family as the study's plan names it, whatever became of them.

    `there` are the arms of results that have no plan.
    """
    flops_of = study.about.get("config", {}).get("flops_of", "mae")
    asked = study.about.get("encoder_arms") or {"": study.about.get("arms") or there}
    return [
        (encoder, pair)
        for encoder, arms in asked.items()
        for pair in family_pairs(pairs_of(arms, flops_of), arms)
    ]


def family_pairs(pairs: Sequence[Pair], arms: Sequence[str]) -> list[Pair]:
    """Each masked arm over one rival: SimCLR at equal crops, else at equal FLOPs, else scratch.

    An arm of equal FLOPs joins only where its twin of equal crops is not of the study, or where
    the rival is such an arm too: it answers another question.
    """
    masked = [pair for pair in pairs if method_of(pair[0]) in MIM]
    found = masked or [pair for pair in pairs if method_of(pair[0]) != "simclr"]
    seconds = [second for _, second in found]
    contrastive = [arm for arm in seconds if method_of(arm) == "simclr"]
    order = ["simclr", "simclr-flops", *contrastive, SCRATCH]
    rival = next((arm for arm in order if arm in seconds), None)
    family = [pair for pair in found if pair[1] == rival]
    if rival is None or rival.endswith("-flops"):
        return family
    return [pair for pair in family if twin_of(pair[0]) not in arms]


def twin_of(arm: str) -> str:
    """`mae` of `mae-flops`; empty for others."""
    return arm.removesuffix("-flops") if arm.endswith("-flops") else ""


def primary_share(study: Study) -> float:
    """The target share fixed before the study ran."""
    return float(study.about.get("settings", {}).get("primary", PRIMARY))
