"""What a probe of the frozen encoder asks, and how often; imports no torch."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from mim3d.dataio.finite import MOST_SEED, MOST_SIZE, refuse_not_finite, refuse_outside
from mim3d.engine.errors import ConfigError

Classifier = Literal["linear", "knn"]
FEWEST = 2
"""Subjects of a class that are needed: one to learn from, one to score."""


@dataclass(frozen=True)
class ProbeConfig:
    """A small labelled corpus on which the frozen encoder is scored while it is pretrained.

    kNN and a linear layer learn from the features of some subjects and are scored on the others, by
    balanced accuracy. With `targets` a volume has a class, and its feature is the mean token; else
    a patch has one, told by the label volume (see `patch_classes`), and its feature is its token.
    """

    corpus: str = ""
    """Folder or address of a labelled corpus; empty: no probe."""
    every: int = 1000
    """Steps between probes; there is one before the first step and one after the last too."""
    targets: str = ""
    """CSV with columns subject,target, as finetune takes it: classes of whole volumes."""
    label: str = "seg"
    """Without targets, the label of the corpus that tells the classes of patches."""
    foreground: float = 0.1
    """Share of a patch's voxels that must be labelled for it to have the class of most of these;
    else it is background."""
    test: float = 0.3
    """Share of the subjects that are scored; of each class, where classes are of volumes."""
    subjects: int = 64
    """Most subjects that are asked, at least two of each class; of more, the seed chooses, of each
    class as many."""
    windows: int = 8
    """Most crops of a volume; of more, the seed chooses, those with labelled patches first."""
    patches: int = 64
    """Most patches of a volume, of each class an equal part."""
    neighbours: int = 20
    """Neighbours that vote, by cosine similarity (of fewer volumes or patches, all)."""
    ridge: float = 0.01
    """Ridge penalty of the linear probe on standardised features, over their number."""
    by: Classifier = "linear"
    """Which of the two decides on the best checkpoint and the early stop."""
    patience: int = 0
    """End the run after so many probes in a row that were not better than the best; 0: never."""
    seed: int = 0
    """Of the split, the crops and the patches: the same for every run that is to be compared."""

    def __post_init__(self) -> None:
        """Refuse what asks nothing."""
        refuse_not_finite(self, "probe", ConfigError)
        within = partial(refuse_outside, self, part="probe", kind=ConfigError)
        within("every", 1)
        within("windows patches neighbours", 1, MOST_SIZE)
        within("subjects", most=MOST_SIZE)
        if self.subjects < FEWEST:
            raise ConfigError(
                f"probe.subjects {self.subjects} must be at least {FEWEST}: the probe learns from "
                "some and scores the others"
            )
        within("foreground ridge", above=0)
        within("foreground", most=1)
        within("patience", 0)
        within("seed", 0, MOST_SEED)
        if not 0.0 < self.test < 1.0:
            raise ConfigError(f"probe.test {self.test} must be a share between 0 and 1")
        given = [f"probe.targets {self.targets!r}"] if self.targets else []
        given += [f"probe.patience {self.patience}"] if self.patience else []
        if given and not self.corpus:
            says = "says nothing" if len(given) == 1 else "say nothing"
            raise ConfigError(f"{' and '.join(given)} {says} without --probe.corpus")

    @property
    def is_on(self) -> bool:
        """Whether there is a corpus to probe on."""
        return bool(self.corpus)
