"""The section of an ablation: charts, small multiples, table, pictures."""

from mim3d.engine.analysis.ablation import DAGGER, Ablation
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
        ablation_table(ablation, content.metric),
        *pictures,
    )
    return [Section(f"Ablation: {study.about.get('ablation', '')}", blocks)]


def ablation_table(ablation: Ablation, metric: str) -> Table:
    """Every setting with its final score, its steps, and whether its pretext task was learned."""
    rows, single = [], len(ablation.varied) == 1
    for arm in ablation.arms:
        for setting in ablation.of(arm):
            learned = "–" if arm == SCRATCH else "yes" if setting.learned else f"no {DAGGER}"
            rows.append(
                (
                    f"{arm_name(arm)}, {setting.name}",
                    plus_minus(setting.final),
                    *([paired_in_words(ablation.against_first(setting))] if single else []),
                    plus_minus(setting.summary.area),
                    median_reach(setting.reaches),
                    str(len(setting.curves)),
                    learned,
                )
            )
    header = ("setting", f"final {metric}", *(["against the first"] if single else []))
    header += ("area under curve", "steps to target", "seeds")
    note = (
        "Mean ± standard deviation over seeds; steps are the median over seeds with how many "
        f"reached the target: {ablation.target}. Settings were not compared by tests fixed "
        "beforehand: a lead within the seeds' spread is no finding."
    )
    if single:
        note += (
            f" Against the first: mean difference of the final {metric} from the setting that is "
            f"listed first, paired by seed, with its 95 % interval from {MIN_PAIRS} seeds on."
        )
    if any(not setting.learned for setting in ablation.settings):
        note += f" {DAGGER} did not learn its pretext task: shown, but not ranked."
    return Table("What each setting gave", (*header, "learned"), tuple(rows), note)
