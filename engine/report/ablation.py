"""The section of an ablation: charts, small multiples, table, pictures."""

from mim3d.engine.analysis.ablation import DAGGER, Ablation, Setting
from mim3d.engine.analysis.ablation_family import AblationFamily, read_ablation_family
from mim3d.engine.analysis.ablation_statement import number_of
from mim3d.engine.analysis.speedup import MIN_PAIRS
from mim3d.engine.analysis.words import (
    arm_name,
    median_reach,
    p_in_words,
    paired_in_words,
    plus_minus,
)
from mim3d.engine.report.ablation_charts import ablation_charts, scale_in_words
from mim3d.engine.report.ablation_curves import curves_charts
from mim3d.engine.report.pictures import ablation_segmentations
from mim3d.engine.report.section import Charts, Content, Note, Picture, Section, Table
from mim3d.engine.study.encoders import SCRATCH


def ablation_sections(content: Content) -> list[Section]:
    """Everything about an ablation; pictures only where no group's section has them."""
    study, ablation, plotter = content.study, content.ablation, content.plotter
    if ablation is None:
        return []
    pictures: list[Picture] = []
    if not content.shown_groups:
        pictures = ablation_segmentations(study, ablation, plotter.folder)
    blocks = (
        Charts(tuple(ablation_charts(study, ablation, plotter)), paired=True),
        Note(scale_in_words(ablation, content.metric)),
        Charts(tuple(curves_charts(study, ablation, plotter))),
        ablation_table(ablation, read_ablation_family(study, ablation), content.metric),
        *pictures,
    )
    return [Section(f"Ablation: {study.about.get('ablation', '')}", blocks)]


def ablation_table(ablation: Ablation, family: AblationFamily, metric: str) -> Table:
    """Every setting with its area against its rival's, its final score, steps, and what learned."""
    rows = []
    for arm in ablation.arms:
        for setting in ablation.of(arm):
            learned = "–" if arm == SCRATCH else "yes" if setting.learned else f"no {DAGGER}"
            rows.append(
                (
                    f"{arm_name(arm)}, {setting.name}",
                    plus_minus(setting.summary.area),
                    *against_rival(family, setting),
                    plus_minus(setting.final),
                    median_reach(setting.reaches),
                    str(len(setting.curves)),
                    learned,
                )
            )
    header = ("setting", "area under curve", "against its rival", "p (Holm)")
    header += (f"final {metric}", "steps to target", "seeds", "learned")
    note = (
        "Mean ± standard deviation over seeds. The area is the mean of the smoothed validation "
        "curve over the steps, step 0 included, and alone is tested: its mean difference from the "
        f"rival, paired by seed, with a 95 % interval by itself from {MIN_PAIRS} seeds on, and p "
        f"corrected (Holm) for {number_of(family)} of the plan. All else is described: a "
        "lead within the seeds' spread is no finding. Steps are the median over seeds with how "
        f"many reached the target: {ablation.target}."
    )
    if any(not setting.learned for setting in ablation.settings):
        note += f" {DAGGER} did not learn its pretext task: shown, but neither ranked nor compared."
    return Table("What each setting gave", header, tuple(rows), note)


def against_rival(family: AblationFamily, setting: Setting) -> tuple[str, str]:
    """Difference from the rival, which is named, and p; dashes of what is not compared."""
    member = family.of(setting)
    if member is None:
        return ("(rival)" if family.is_rival(setting) else "–"), "–"
    rival = member.rival
    name = rival.name if rival.arm == setting.arm else arm_name(rival.arm)
    p_value = "–" if member.p_value is None else p_in_words(member.p_value)
    return f"{paired_in_words(member.area)}\nagainst {name}", p_value.removeprefix("p ").lstrip(
        "= "
    )
