"""The section of an ablation: charts, small multiples, table, pictures."""

from mim3d.engine.analysis.ablation import DAGGER, Ablation
from mim3d.engine.analysis.ablation_family import AblationFamily, read_ablation_family
from mim3d.engine.analysis.speedup import MIN_PAIRS
from mim3d.engine.analysis.words import arm_name, median_reach, paired_in_words, plus_minus
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
            member = family.of(setting)
            rows.append(
                (
                    f"{arm_name(arm)}, {setting.name}",
                    plus_minus(setting.summary.area),
                    paired_in_words(member and member.area),
                    "–" if member is None or member.p_value is None else f"{member.p_value:.3f}",
                    plus_minus(setting.final),
                    median_reach(setting.reaches),
                    str(len(setting.curves)),
                    learned,
                )
            )
    header = ("setting", "area under curve", f"against {rivals_in_words(family)}", "p (Holm)")
    header += (f"final {metric}", "steps to target", "seeds", "learned")
    note = (
        "Mean ± standard deviation over seeds. The area is the mean validation score over the "
        "steps, and alone is tested: its mean difference from the rival, paired by seed, with a "
        f"95 % interval by itself from {MIN_PAIRS} seeds on, and p corrected (Holm) for "
        f"{family.size} comparisons named beforehand. All else is described: a lead within the "
        "seeds' spread is no finding. Steps are the median over seeds with how many reached the "
        f"target: {ablation.target}."
    )
    if any(not setting.learned for setting in ablation.settings):
        note += f" {DAGGER} did not learn its pretext task: shown, but neither ranked nor compared."
    return Table("What each setting gave", header, tuple(rows), note)


def rivals_in_words(family: AblationFamily) -> str:
    """Whom settings are held against, for a heading."""
    rivals = {member.rival.arm for member in family.members}
    own = {member.setting.arm for member in family.members}
    return (
        " or ".join(sorted(map(arm_name, rivals))) if rivals and not rivals & own else "the first"
    )
