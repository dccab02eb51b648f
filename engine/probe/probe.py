"""The probe of a run: scores in its rows, which checkpoint is best, and when to stop early."""

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mim3d.dataio.progress import Progress
from mim3d.engine.distributed.parallel import wait_for
from mim3d.engine.distributed.process_group import Ranks, first_decides
from mim3d.engine.errors import ConfigError
from mim3d.engine.models.flops import encoder_flops
from mim3d.engine.models.objective import Objective
from mim3d.engine.models.registry import EncoderShape
from mim3d.engine.probe.cohort import Cohort, opened_cohort
from mim3d.engine.probe.config import ProbeConfig
from mim3d.engine.probe.features import Extractor, Frozen
from mim3d.engine.probe.scores import (
    Features,
    accuracy,
    balanced_accuracy,
    knn_classes,
    linear_classes,
)
from mim3d.engine.runs.files import file_sha256, json_sha256
from mim3d.engine.training.corpus import corpus_sha256
from mim3d.engine.training.trainer import Hook, Judgement, Trainer

PREFIX = "probe_"
"""Begins the names of a probe's figures in rows."""
DECIDES_NOTHING = ("corpus", "targets", "every", "patience")
"""Fields of the configuration that change no score; the files' contents do."""
Figures = dict[str, float | None]


@dataclass
class Course:
    """What a run's probes came to so far; kept in checkpoints."""

    of: str
    """Hash of what is asked; scores of another cannot be compared."""
    start: Figures = field(default_factory=dict)
    """Scores of the encoder that the run began with."""
    best: float | None = None
    best_step: int = 0
    without_gain: int = 0
    """Probes since the best one."""
    probes: int = 0
    seconds: float = 0.0
    """Of all of them."""


class ProbeSetting:
    """All that a run's probe needs, opened and checked before its folder is made."""

    def __init__(
        self, config: ProbeConfig, shape: EncoderShape, normalise: str, ranks: Ranks
    ) -> None:
        self.config, self.shape, self.ranks = config, shape, ranks
        with ExitStack() as stack:
            self.cohort: Cohort = stack.enter_context(opened_cohort(config, shape.vit))
            self.extractor = Extractor(config, self.cohort, shape, normalise, ranks)
            self._stack = stack.pop_all()
        asked = {k: v for k, v in asdict(config).items() if k not in DECIDES_NOTHING}
        contents = [corpus_sha256(self.cohort.corpus)]
        contents += [file_sha256(Path(config.targets))] if config.targets else []
        self.sha256 = json_sha256({**asked, "contents": contents, "normalise": normalise})[:12]

    def close(self) -> None:
        """Let go of the corpus."""
        self._stack.close()


class Probe(Hook):
    """Probes before the first step, every `config.every` steps and after the last one."""

    doing = "probing the encoder"
    name = "probe"

    def __init__(
        self,
        setting: ProbeSetting,
        module: Objective,
        step_flops: float,
        shown: Progress,
    ) -> None:
        self.setting, self.module, self.shown = setting, module, shown
        self.config, self.ranks = setting.config, setting.ranks
        self.step_flops = step_flops
        self.course = Course(setting.sha256)
        self.replaced = False

    def begin(self, trainer: Trainer) -> None:
        """Score the encoder that the run begins with, and say what probes will cost."""
        if self.replaced:
            self.shown.note(
                "probe: it asks something else than before, so the best is looked for anew"
            )
        if trainer.step == 0 and not self.course.start:
            self.course.start = self.figures(trainer)
        trainer.judgement = Judgement(self.judged_by)
        for note in (*self.setting.cohort.doubts, *self.setting.cohort.notes):
            self.shown.note(f"probe: {note}")
        self.shown.note(self.last_line(trainer) if self.enough() else self.announcement(trainer))

    def announcement(self, trainer: Trainer) -> str:
        """Whom it asks, how often, and at what cost."""
        cohort, extractor, config = self.setting.cohort, self.setting.extractor, self.config
        shape = self.setting.shape
        done, last = trainer.step // config.every, trainer.steps / config.every
        times = math.ceil(last) - done
        flops = extractor.crops * encoder_flops(shape.vit, shape.backbone).forward
        share = flops * times / max((trainer.steps - trainer.step) * self.step_flops, 1.0)
        seconds = self.course.seconds / max(self.course.probes, 1)
        taken = f", {seconds:.2g} s each, {seconds * times:.2g} s in all" * bool(seconds)
        return (
            f"probe: {len(cohort.classes)} classes, {cohort.count(False)} subjects to learn from "
            f"and {cohort.count(True)} scored, {extractor.crops} crops; {times} times from here on "
            f"(--probe.every {config.every}){taken}, about {share:.1%} of the training's arithmetic"
        )

    def due(self, step: int, steps: int) -> bool:
        """Where there is a probe there is a row."""
        return step == steps or step % self.config.every == 0

    def before_step(self, trainer: Trainer) -> None:
        """A checkpoint is judged by a probe of its own step, or by none."""
        trainer.judgement = Judgement(self.judged_by)

    def after_step(self, trainer: Trainer) -> None:
        """Probe, where it is time."""
        if not self.due(trainer.step, trainer.steps):
            return
        figures = self.figures(trainer)
        score = figures[self.config.by]
        is_best = self.judge(trainer.step, score)
        error = None if score is None else 1.0 - score
        trainer.judgement = Judgement(self.judged_by, error, is_best)
        trained = trainer.clock.seconds
        share = self.course.seconds / max(trained + self.course.seconds, 1e-9)
        trainer.row |= {PREFIX + name: value for name, value in figures.items()}
        trainer.row |= {f"{PREFIX}{name}_start": v for name, v in self.starts().items()}
        trainer.row |= {f"{PREFIX}share": share, f"{PREFIX}best_step": self.course.best_step}
        self.shown.note(self.line(trainer.step, figures, share))
        if self.enough():
            self.shown.note(self.last_line(trainer))

    def last_line(self, trainer: Trainer) -> str:
        """Why the run ends here, and how it goes on."""
        course = self.course
        return (
            f"stopped early at step {trainer.step}: {course.without_gain} probes in a row were not "
            f"better than that of step {course.best_step} (--probe.patience "
            f"{self.config.patience}); --probe.patience 0 goes on to step {trainer.steps}"
        )

    @property
    def judged_by(self) -> str:
        """What a checkpoint's score is, for others to be compared with."""
        return f"probe {self.config.by} {self.course.of}"

    def judge(self, step: int, score: float | None) -> bool:
        """Take a score in; whether it is the best."""
        course = self.course
        if score is not None and (course.best is None or score > course.best):
            course.best, course.best_step, course.without_gain = score, step, 0
            return True
        course.without_gain += 1
        return False

    def enough(self) -> bool:
        """Whether the run's patience is at its end."""
        return 0 < self.config.patience <= self.course.without_gain

    def figures(self, trainer: Trainer) -> Figures:
        """Scores of the present encoder and the seconds that they took; all ranks take part."""
        with trainer.clock.paused():
            began = time.perf_counter()
            frozen = self.setting.extractor.extract(self.module)
            found = first_decides(self.ranks, lambda: self.scores(frozen))
            wait_for(self.ranks.device)
            seconds = time.perf_counter() - began
        self.course.probes += 1
        self.course.seconds += seconds
        return {**found, "s": seconds}

    def scores(self, frozen: Frozen | None) -> Figures:
        """Accuracies of both classifiers; None where features are no numbers."""
        assert frozen is not None
        train, scored, config = frozen.train, frozen.scored, self.config
        refuse_one_class(train, scored, config)
        names = ("linear", "linear_accuracy", "knn", "knn_accuracy")
        known = {"chance": 1.0 / len(scored.classes.unique())}
        if not (train.is_finite and scored.is_finite):
            return dict.fromkeys(names) | known
        n_classes = len(self.setting.cohort.classes)
        linear = linear_classes(train, scored.values, config.ridge, n_classes)
        knn = knn_classes(train, scored.values, config.neighbours, n_classes)
        figures = [
            measure(found, scored.classes)
            for found in (linear, knn)
            for measure in (balanced_accuracy, accuracy)
        ]
        return {**dict(zip(names, figures, strict=True)), **known}

    def starts(self) -> Figures:
        """Balanced accuracies of the encoder that the run began with."""
        start = self.course.start
        return {name: start[name] for name in ("linear", "knn") if start}

    def line(self, step: int, figures: Figures, share: float) -> str:
        """The scores for a reader of the console."""
        parts = []
        for name in ("linear", "knn"):
            start = self.course.start.get(name)
            began = "" if start is None else f" ({start:.3f} at the start)"
            parts.append(f"{'kNN' if name == 'knn' else name} {number(figures[name])}{began}")
        best = "the best" if self.course.best_step == step else f"best at {self.course.best_step}"
        return (
            f"step {step}: probe {', '.join(parts)}, chance {number(figures['chance'])}; {best}; "
            f"{number(figures['s'], 2)} s, {share:.1%} of the run's time"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on with."""
        return asdict(self.course)

    def load_state(self, state: dict[str, Any]) -> None:
        """Take it up, where the same is asked still."""
        if state and state["of"] == self.course.of:
            self.course = Course(**state)
        else:
            self.course, self.replaced = Course(self.course.of), bool(state)

    def close(self) -> None:
        """Let go of the corpus."""
        self.setting.close()


def refuse_one_class(train: Features, scored: Features, config: ProbeConfig) -> None:
    """A ConfigError where there are not two classes on both sides."""
    for side, name in ((train, "learned from"), (scored, "scored")):
        n = len(side.classes.unique())
        if n < 2:
            raise ConfigError(
                f"all {len(side.classes)} patches or volumes of probe.corpus {config.corpus} that "
                f"are {name} are of one class: set another --probe.seed, more --probe.windows, a "
                "smaller --probe.foreground, or more subjects"
            )


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
