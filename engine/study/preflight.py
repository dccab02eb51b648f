"""Whether every run of a study can be built, asked before the first one starts.

A crop that an encoder cannot take, a width that no head divides or channels that the corpus lacks
would otherwise show after hours of other pretrainings.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from mim3d.dataio.corpus.chunk_table import choose_volumes, label_arrays
from mim3d.dataio.errors import Mim3dError, first_line
from mim3d.dataio.reader.corpus import Corpus
from mim3d.dataio.reader.voxel_weights import LABEL
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.config import WHOLE_VOLUME, FinetuneConfig
from mim3d.engine.finetune.encoder import build_encoder, require_same_shape
from mim3d.engine.finetune.network import build_segmentation
from mim3d.engine.finetune.run_folder import RESULT
from mim3d.engine.finetune.splits import Splits, labelled_subset
from mim3d.engine.models.own_fields import own_encoder_kind, own_method
from mim3d.engine.pretrain.config import PretrainConfig
from mim3d.engine.runs.files import differences
from mim3d.engine.study.arms import arms_of, is_pretrained_here, refuse_arms, varied_vit
from mim3d.engine.study.config import StudyConfig, Variant
from mim3d.engine.study.encoders import Arm
from mim3d.engine.study.plan import (
    Cell,
    Pretraining,
    finetune_config,
    pretrain_config,
    pretrainings,
    scored_cells,
    tuning_cells,
)
from mim3d.engine.study.search import refuse_scored_seeds
from mim3d.engine.training.corpus import corpus_fit
from mim3d.engine.transfer.given_weights import open_encoder
from mim3d.engine.transfer.shape import encoder_shape

SHOWN = 3


def refuse_impossible(config: StudyConfig, corpus: Corpus, splits: Splits, out: Path) -> None:
    """A ConfigError that names the runs which cannot be built, each kind of problem once."""
    refuse_arms(config)
    refuse_shared_folders(config)
    refuse_scored_seeds(config.pretext_search, config.seeds)
    arms = arms_of(config)
    problems: dict[str, str] = {}
    for name, build in builds(config, corpus, splits, out):
        try:
            build()
        except Mim3dError as error:
            problems.setdefault(str(error), name)
        except Exception as error:
            if not any(own_method(arm.name) or own_encoder_kind(arm.encoder) for arm in arms):
                raise  # a mistake of ours
            problems.setdefault(f"{type(error).__name__}: {first_line(error)}", name)
    if problems:
        found = [f"{name}: {why}" for why, name in list(problems.items())[:SHOWN]]
        more = len(problems) - SHOWN
        raise ConfigError(
            "nothing was started, for not all of this study can be run: "
            + "; ".join(found)
            + (f"; and {more} more" if more > 0 else "")
        )


def refuse_shared_folders(config: StudyConfig) -> None:
    """ConfigError where two runs would lie in one folder, whose name has six digits of a number."""
    found: dict[tuple[type, str], Pretraining | Cell] = {}
    for run in [*pretrainings(config), *tuning_cells(config), *scored_cells(config, {})]:
        other = found.setdefault((type(run), run.key), run)
        if other != run:
            (name, one, two), *_ = differences(asdict(other), asdict(run))
            raise ConfigError(
                f"{name} {one} and {name} {two} would both be run in folder {run.key}: names have "
                "letters, digits and six figures of a number, so let them differ there"
            )


def builds(
    config: StudyConfig, corpus: Corpus, splits: Splits, out: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is to be tried, with the name of a run that needs it."""
    for name in dict.fromkeys(arm.name for arm in arms_of(config)):
        if is_pretrained_here(config, name):
            yield f"arm {name}", partial(find_labels, config, corpus, name)
    for variant in dict.fromkeys(config.variants):
        yield (
            variant.name or "this study",
            partial(fit_corpus, config, corpus, splits, variant),
        )
    taken: dict[int, float] = {}
    for labels in config.labels:
        yield f"labels {labels:g}", partial(new_subset, splits.train, labels, taken)
    cells = [*tuning_cells(config), *scored_cells(config, {})]
    tried: set[object] = set()
    given = {arm.label: arm for arm in arms_of(config) if arm.path}
    for cell in cells:  # weights that none waits for any more may have gone
        if cell.label in given and not (out / "cells" / cell.key / RESULT).exists():
            made = partial(finetune_config, config, cell, splits, out)
            yield f"arm {cell.label}", partial(fit_given, made, given[cell.label], tried)
    for wanted in pretrainings(config):
        made = partial(pretrain_config, config, wanted, splits)
        yield f"pretraining {wanted.key}", partial(build_pretext, made, tried)
    for cell in cells:
        made = partial(finetune_config, config, cell, splits, out)
        yield f"cell {cell.key}", partial(build_network, made, tried)


def new_subset(train: Sequence[str], labels: float, taken: dict[int, float]) -> None:
    """Whether there are as many subjects, and no other share or number has the same: `taken`."""
    n = len(labelled_subset(train, labels, 0))
    if (other := taken.setdefault(n, labels)) != labels:
        raise ConfigError(
            f"labels {other:g} and {labels:g} are the same {n} of {len(train)} subjects, and would "
            "be run twice: leave one of them out of --labels"
        )


def fit_corpus(config: StudyConfig, corpus: Corpus, splits: Splits, variant: Variant) -> None:
    """Whether the subjects that are trained on have the encoder's channels."""
    rows = choose_volumes(corpus.table, None, splits.pretrain)
    corpus_fit(corpus.table, varied_vit(config.vit, variant), rows)


def find_labels(config: StudyConfig, corpus: Corpus, arm: str) -> None:
    """Whether the corpus has the labels in which an arm's voxels are not scored."""
    for word in getattr(config.pretrain.arm(arm).method, "ignore", ()):
        if word.startswith(LABEL):
            label_arrays(corpus.table, word.removeprefix(LABEL))


def fit_given(make: Callable[[], FinetuneConfig], arm: Arm, tried: set[object]) -> None:
    """Whether weights given by path can be read, and fit the network of a cell of theirs."""
    config = make()
    if (config.init, config.encoder) in tried:
        return
    tried.add((config.init, config.encoder))
    wanted = config.encoder
    try:
        found = encoder_shape(config.init, wanted.vit, wanted.backbone, open_encoder(config.init))
    except OSError as error:
        raise CheckpointError(f"{arm.path} cannot be read ({error})") from error
    if found.kind != wanted.kind:
        raise ConfigError(
            f"{arm.path} holds a {found.kind} encoder and the arm has a {wanted.kind}: write "
            f"{arm.name}@{found.kind}={arm.path} in --arms, beside scratch@{found.kind}"
        )
    where = "vit" if wanted.backbone is None else wanted.kind
    where = f"shapes.{arm.encoder}" if arm.encoder and arm.encoder != "vit" else where
    require_same_shape(arm.path, found.config, wanted.config, where)
    build_encoder(config)


def build_pretext(make: Callable[[], PretrainConfig], tried: set[object]) -> None:
    """A pretext module with its initial weights, each shape once; dropped at once."""
    config = make()
    shape = config.method, config.encoder
    if shape not in tried:
        tried.add(shape)
        config.build()


def build_network(make: Callable[[], FinetuneConfig], tried: set[object]) -> None:
    """The network of a cell from scratch, of two classes, each shape once; dropped at once."""
    config = replace(make(), init="")
    shape = config.head, config.encoder, config.feature_size
    if shape in tried:
        return
    tried.add(shape)
    if config.head in WHOLE_VOLUME:
        build_encoder(config)
    else:
        build_segmentation(config, 2)
