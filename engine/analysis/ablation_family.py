"""What an ablation tests: areas under validation curves, paired by seed, corrected together.

The area (mean of the smoothed validation curve over the steps, step 0 included) is the outcome, for
it needs no target. All comparisons that the plan names are one family (Holm). Everything else that
a report says of an ablation is description.
"""

from dataclasses import dataclass, replace

from mim3d.engine.analysis.ablation import Ablation, Setting
from mim3d.engine.analysis.ablation_plan import Planned, planned_comparisons
from mim3d.engine.analysis.naming import shares_pretraining
from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.analysis.speedup import ALPHA, PairedDifference, holm, paired_difference


@dataclass(frozen=True)
class SettingComparison:
    """A setting's area less its rival's; `p_value` is corrected for the family.

    `planned` is how many seeds both were to have; `shared` says that seeds of one of them start
    from one pretraining.
    """

    setting: Setting
    rival: Setting
    area: PairedDifference
    planned: int
    shared: bool
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        """Whether they differ with the family's errors at 5 %."""
        return self.p_value is not None and self.p_value < ALPHA


@dataclass(frozen=True)
class AblationFamily:
    """The comparisons that could be made; `size` counts all that the plan names."""

    members: tuple[SettingComparison, ...]
    size: int
    awaited: bool = False
    """Whether runs of any comparison are still to come."""

    def of(self, setting: Setting) -> SettingComparison | None:
        """A setting's comparison; None of a rival and of what could not be compared."""
        return next((member for member in self.members if member.setting is setting), None)

    def is_rival(self, setting: Setting) -> bool:
        """Whether others are held against a setting."""
        return any(member.rival is setting for member in self.members)


def read_ablation_family(study: Study, ablation: Ablation) -> AblationFamily:
    """Every comparison that the plan names and the results allow.

    A setting that did not learn its pretext task, or whose rival did not, is not compared; it
    counts in the number that the p values are corrected for.
    """
    there = {(s.arm, s.group.group): s for s in ablation.settings}
    plan = planned_comparisons(study, [s.group.group for s in ablation.settings])
    found = [comparison_of(study, there, planned) for planned in plan]
    made = [f for f in found if f is not None and f.setting.learned and f.rival.learned]
    awaited = any(study.awaited(*side) for planned in plan for side in planned.sides)
    p_values = [member.area.p_value for member in made] + [None] * (len(plan) - len(made))
    corrected = holm(p_values)[: len(made)]
    members = (replace(m, p_value=p) for m, p in zip(made, corrected, strict=True))
    return AblationFamily(tuple(members), len(plan), awaited)


def comparison_of(
    study: Study, there: dict[tuple[str, Group], Setting], planned: Planned
) -> SettingComparison | None:
    """A comparison of the plan as far as its runs are there; None where either has none."""
    setting = there.get((planned.arm, planned.group))
    rival = there.get((planned.rival_arm, planned.rival_group))
    if setting is None or rival is None:
        return None
    seeds = {*study.planned(planned.group), *study.planned(planned.rival_group)}
    shared = any(shares_pretraining(study, side.group, side.arm) for side in (setting, rival))
    area = paired_difference(setting.summary.area, rival.summary.area)
    return SettingComparison(setting, rival, area, len(seeds), shared)
