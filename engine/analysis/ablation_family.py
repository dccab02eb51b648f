"""What an ablation tests: areas under validation curves, paired by seed, corrected together.

The area (mean validation score over the steps) is the outcome, for it needs no target. Each setting
is held against one rival: SimCLR at the same setting where the study has it, else scratch; where
neither is there, the setting of its arm that is listed first. All comparisons that the plan names
are one family (Holm). Everything else that a report says of an ablation is description.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

from mim3d.engine.analysis.ablation import Ablation, Setting, what_matters
from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.analysis.speedup import ALPHA, PairedDifference, holm, paired_difference
from mim3d.engine.analysis.summary import MIM, method_of
from mim3d.engine.study.encoders import SCRATCH


@dataclass(frozen=True)
class SettingComparison:
    """A setting's area less its rival's; `p_value` is corrected for the family."""

    setting: Setting
    rival: Setting
    area: PairedDifference
    p_value: float | None = None

    @property
    def certain(self) -> bool:
        """Whether they differ with the family's errors at 5 %."""
        return self.p_value is not None and self.p_value < ALPHA


@dataclass(frozen=True)
class AblationFamily:
    """The comparisons that could be made; `size` counts all that the plan names."""

    members: tuple[SettingComparison, ...]
    size: int

    def of(self, setting: Setting) -> SettingComparison | None:
        """A setting's comparison; None of a rival and of what could not be compared."""
        return next((member for member in self.members if member.setting is setting), None)


def read_ablation_family(study: Study, ablation: Ablation) -> AblationFamily:
    """Every comparison that the plan names and the results allow.

    A setting that did not learn its pretext task, or whose rival did not, is not compared; it
    counts in the number that the p values are corrected for.
    """
    first = ablation.settings[0].group.group
    ours = [s for s in ablation.settings if one_question(s.group.group, first, ablation.varied)]
    made = [
        SettingComparison(s, rival, paired_difference(s.summary.area, rival.summary.area))
        for s, rival in rivals(ours)
        if s.learned and rival.learned
    ]
    size = max(planned(study, ablation), len(made))
    found = [member.area.p_value for member in made]
    corrected = holm(found + [None] * (size - len(made)))
    members = (replace(m, p_value=p) for m, p in zip(made, corrected, strict=False))
    return AblationFamily(tuple(members), size)


def one_question(group: Group, first: Group, varied: Sequence[str]) -> bool:
    """Whether a group belongs to the family: the first decoder and labels, if not varied."""
    same_head = "head" in varied or group.head == first.head
    return same_head and ("labels" in varied or group.labels == first.labels)


def rivals(settings: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    """Every setting that has a rival, with it."""
    by_arm = {s.arm: [t for t in settings if t.arm == s.arm] for s in settings}
    control = control_of(list(by_arm))
    for arm, own in by_arm.items():
        if arm in (control, SCRATCH):
            continue
        if is_held_against(arm, control):
            matched = [(s, match) for s in own if (match := matching(s, by_arm[control]))]
            if matched:
                yield from matched
                continue
        yield from ((s, own[0]) for s in own[1:])


def control_of(arms: Sequence[str]) -> str:
    """SimCLR where it is an arm, else scratch, else nobody."""
    return next((arm for arm in ("simclr", SCRATCH) if arm in arms), "")


def is_held_against(arm: str, control: str) -> bool:
    """Whether an arm is compared with the control: masked ones with SimCLR, all with scratch."""
    if not control or arm == control:
        return False
    return control == SCRATCH or method_of(arm) in MIM


def matching(setting: Setting, controls: Sequence[Setting]) -> Setting | None:
    """The control at the same values of what matters to it; None where there is no single one."""

    def same(control: Setting) -> bool:
        return all(setting.values.get(name) == value for name, value in control.values.items())

    found = [control for control in controls if same(control)]
    return found[0] if len(found) == 1 else None


def planned(study: Study, ablation: Ablation) -> int:
    """Comparisons that the study's plan names, whatever became of its runs.

    Settings that another arm alone has may be counted too, which corrects by more.
    """
    config = study.about.get("config", {})
    arms: Sequence[str] = study.about.get("arms") or ablation.arms
    given = {"labels": config.get("labels"), "head": config.get("heads")}
    times = prod(len(given[name] or [0]) for name in given if name in ablation.varied)
    control = control_of(arms)
    return sum(
        number_planned(arm, control, times * settings_planned(study, arm, ablation.varied))
        for arm in arms
    )


def settings_planned(study: Study, arm: str, varied: Sequence[str]) -> int:
    """How many settings the study's variants are to an arm; 1 where nothing varies for it."""
    names = sorted(what_matters(study, arm).intersection(varied))
    variants = study.about.get("variants", {})
    return len({tuple(v.get(n) for n in names) for name, v in variants.items() if name}) or 1


def number_planned(arm: str, control: str, settings: int) -> int:
    """Comparisons of an arm of so many settings."""
    if is_held_against(arm, control):
        return settings
    return 0 if arm in (control, SCRATCH) else settings - 1
