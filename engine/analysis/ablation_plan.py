"""The comparisons that the plan of an ablation names, whatever became of its runs.

Each pretrained arm has one rival: SimCLR at the same setting where the study has it, else scratch;
where neither is an arm, or has one run at the same setting, the arm's setting that the plan lists
first. SimCLR as the control of others is not compared itself. Arms of equal FLOPs are described
only, and so are decoders and numbers of labels after the first, where they are not what varies.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mim3d.engine.analysis.ablation import what_matters
from mim3d.engine.analysis.results import Group, Study
from mim3d.engine.study.config import settings_in_words
from mim3d.engine.study.encoders import SCRATCH
from mim3d.engine.study.gather import variant_settings

Settings = dict[str, Any]


@dataclass(frozen=True)
class Planned:
    """One arm at one group's setting, against its rival at that of `rival_group`."""

    arm: str
    group: Group
    rival_arm: str
    rival_group: Group

    @property
    def sides(self) -> tuple[tuple[Group, str], tuple[Group, str]]:
        """Group and arm of both."""
        return (self.group, self.arm), (self.rival_group, self.rival_arm)


def planned_comparisons(study: Study, groups: Sequence[Group]) -> list[Planned]:
    """Every comparison of the plan in its order; `groups` are those of the results."""
    arms = [arm for arm in planned_arms(study) if not arm.endswith("-flops")]
    control = control_of(arms)
    tested = [arm for arm in arms if arm not in (SCRATCH, control)]
    return [found for arm in tested for found in of_arm(study, arm, control, groups)]


def planned_arms(study: Study) -> list[str]:
    """Arms as the plan names them; those of the rows where results have no plan."""
    return list(study.about.get("arms") or dict.fromkeys(row["arm"] for row in study.scored))


def control_of(arms: Sequence[str]) -> str:
    """SimCLR where another pretrained arm is held against it, else scratch, else nobody."""
    pretrained = [arm for arm in arms if arm != SCRATCH]
    if "simclr" in arms and len(pretrained) > 1:
        return "simclr"
    return SCRATCH if SCRATCH in arms else ""


def of_arm(study: Study, arm: str, control: str, groups: Sequence[Group]) -> Iterator[Planned]:
    """An arm's comparisons: with the control's run at each setting, or with its own first."""
    controls: dict[Group, set[Group]] = {}
    for head, labels, settings in planned_settings(study, groups):
        own = group_at(study, arm, head, labels, settings, groups)
        held = group_at(study, control, head, labels, settings, groups)
        controls.setdefault(own, set()).add(held)
    if control and all(len(found) == 1 for found in controls.values()):
        yield from (Planned(arm, own, control, *found) for own, found in controls.items())
        return
    settings = list(controls)
    yield from (Planned(arm, own, arm, settings[0]) for own in settings[1:])


def group_at(
    study: Study, arm: str, head: str, labels: float, settings: Settings, groups: Sequence[Group]
) -> Group:
    """Where an arm's rows of a setting stand: its name has only what matters to the arm."""
    matter = what_matters(study, arm)
    variant = settings_in_words({k: v for k, v in settings.items() if k in matter})
    return Group(head, labels, variant, groups[0].encoder)


def planned_settings(
    study: Study, groups: Sequence[Group]
) -> Iterator[tuple[str, float, Settings]]:
    """Decoder, labels and varied settings in the plan's order; only the first of what is fixed."""
    config, varied = study.about.get("config", {}), study.about.get("ablation_axes", ())
    heads = config.get("heads") or list(dict.fromkeys(group.head for group in groups))
    labels = config.get("labels") or list(dict.fromkeys(group.labels for group in groups))
    yield from product(
        heads if "head" in varied else heads[:1],
        labels if "labels" in varied else labels[:1],
        planned_variants(study),
    )


def planned_variants(study: Study) -> list[Settings]:
    """The settings of every variant; from their names' own where the results have no plan."""
    if given := variant_settings(study.about.get("config", {})):
        return given
    varied = study.about.get("ablation_axes", ())
    known = study.about.get("variants", {})
    found = [
        {k: v for k, v in settings.items() if k in varied}
        for name, settings in known.items()
        if name
    ]
    return found or [{}]
