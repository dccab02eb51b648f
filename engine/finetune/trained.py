"""What a finished fine-tuning run leaves for those who use its network: trained.json and weights.

Runs from before it was kept are told of by their config.json and the corpus they were trained on.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim3d.dataio.reader.corpus import Corpus, opened_corpus
from mim3d.dataio.reader.normalisation import MODES
from mim3d.engine.errors import CheckpointError, ConfigError
from mim3d.engine.finetune.config import WHOLE_VOLUME, FinetuneConfig, stored_identity
from mim3d.engine.finetune.encoder import build_encoder
from mim3d.engine.finetune.network import build_segmentation
from mim3d.engine.finetune.regression import RegressionNet
from mim3d.engine.finetune.run_folder import CONFIG, MODEL, RESULT
from mim3d.engine.finetune.segmentation import class_names, ignored_value, n_classes
from mim3d.engine.finetune.targets import read_targets
from mim3d.engine.finetune.volume_task import PooledNet
from mim3d.engine.models.registry import ENCODERS
from mim3d.engine.runs.address import local_run
from mim3d.engine.runs.files import file_sha256, read_json, write_json
from mim3d.engine.runs.own_parts import refuse_missing, stored_parts
from mim3d.engine.runs.plain import rebuilt
from mim3d.engine.runs.scan_recipe import ScanRecipe, read_scan_recipe, scan_recipe
from mim3d.engine.training.corpus import corpus_sha256

TRAINED = "trained.json"


@dataclass(frozen=True)
class Trained:
    """A trained network's configuration, its classes by name, and how its scans were read.

    `classes` are those of a label, background first, or the targets of a classification; none of
    a regression. `ignore` is the label's value that is no class; `precision` the arithmetic of
    validation.
    """

    config: FinetuneConfig
    classes: tuple[str, ...]
    scans: ScanRecipe
    precision: str = "float32"
    ignore: int | None = None
    model_sha256: str = ""

    @property
    def segments(self) -> bool:
        """Whether it makes label maps, not a class or number of each volume."""
        return self.config.head not in WHOLE_VOLUME


def describe(
    config: FinetuneConfig, corpus: Corpus, subjects: tuple[str, ...], dtype: torch.dtype
) -> Trained:
    """What is to be told of a run on this corpus."""
    scans = scan_recipe(corpus, config.data.normalise, config.vit.channels, subjects or None)
    precision = str(dtype).removeprefix("torch.")
    if config.head == "classify":
        names = read_targets(Path(config.data.targets)).names
        return Trained(config, tuple(names), scans, precision)
    if config.head == "regress":
        return Trained(config, (), scans, precision)
    records, label = corpus.records, config.data.label
    names = ["background", *class_names(records, label, n_classes(records, label))]
    return Trained(config, tuple(names), scans, precision, ignored_value(records, label))


def write_trained(out: Path, trained: Trained) -> None:
    """Store it beside the weights, with their hash."""
    plain = {**asdict(trained), "scans": trained.scans.plain(), **trained.config.encoder.own_name}
    write_json(out / TRAINED, {**plain, "model_sha256": file_sha256(out / MODEL)})


def read_trained(run: str | Path, corpus: str = "") -> Trained:
    """What a run's folder tells; `corpus` is asked for where the run is older than that file.

    CheckpointError where the run did not finish or kept no weights.
    """
    run = local_run(run)
    refuse_other_folders(run)
    file = run / TRAINED
    if not file.is_file():
        return of_earlier_run(run, corpus)
    needed = [part for part in stored_parts(run) if part["kind"] in (ENCODERS.kind, MODES.kind)]
    refuse_missing(needed, f"the run in {run}")
    plain = read_json(file)
    try:
        return Trained(
            config_of(plain, str(file)),
            tuple(plain["classes"]),
            read_scan_recipe(plain["scans"], str(file)),
            plain["precision"],
            plain["ignore"],
            plain["model_sha256"],
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file} does not tell how to use the network ({error})") from error


def config_of(plain: Mapping[str, Any], where: str) -> FinetuneConfig:
    """The configuration in trained.json, with an encoder of the plugin's own class."""
    if "encoder" not in plain:
        return rebuilt(FinetuneConfig, plain["config"], where)
    kind = ENCODERS.find(plain["encoder"], "encoder").config
    vit = rebuilt(kind, plain["config"]["vit"], where)
    return replace(rebuilt(FinetuneConfig, {**plain["config"], "vit": {}}, where), vit=vit)


def refuse_other_folders(run: Path) -> None:
    """A CheckpointError where a folder is no finished fine-tuning run with its network."""
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such folder; name the --out of a `mim3d finetune`")
    if not (run / CONFIG).is_file() or (run / "encoder.safetensors").exists():
        what = "a pretraining run" if (run / "encoder.safetensors").exists() else "no run"
        raise CheckpointError(
            f"{run} is {what}: name the --out of a `mim3d finetune`, which has a network that "
            "predicts"
        )
    if not (run / RESULT).exists():
        raise CheckpointError(f"{run} is not finished: repeat its `mim3d finetune`, which goes on")
    if not (run / MODEL).is_file():
        raise CheckpointError(
            f"{run} kept no network ({MODEL} is missing), as cells of a study: `mim3d finetune` "
            "trains one that is kept"
        )


def of_earlier_run(run: Path, corpus: str) -> Trained:
    """The same of a run without the file, from its configuration and its corpus."""
    if not corpus:
        raise CheckpointError(
            f"{run} is of an earlier version, which kept no {TRAINED}: name the corpus it was "
            "trained on by --corpus"
        )
    stored = stored_identity(read_json(run / CONFIG))
    names = FinetuneConfig.__dataclass_fields__
    known = {name: value for name, value in stored.items() if name in names and name != "init"}
    with opened_corpus(corpus) as (opened, _):
        expected, now = stored.get("corpus_sha256"), corpus_sha256(opened)
        if expected and expected != now:
            raise ConfigError(
                f"{corpus} is not the corpus that {run} was trained on (sha256 {now[:12]}, "
                f"{str(expected)[:12]} then): name that one by --corpus"
            )
        config = rebuilt(FinetuneConfig, known, str(run / CONFIG))
        subjects = tuple(read_json(run / RESULT).get("subjects", {}).get("train", ()))
        return describe(config, opened, subjects, torch.float32)


def load_network(run: str | Path, trained: Trained) -> nn.Module:
    """The network with its weights, on the CPU in float32, in evaluation mode.

    CheckpointError where the weights are not those the run speaks of.
    """
    file = local_run(run) / MODEL
    if trained.model_sha256 and (found := file_sha256(file)) != trained.model_sha256:
        raise CheckpointError(
            f"{file} was changed or damaged: sha256 {found[:12]}, {TRAINED} says "
            f"{trained.model_sha256[:12]}; restore it, or train again with another --out"
        )
    net = empty_network(trained)
    try:
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        net.load_state_dict(weights)
    except Exception as error:  # torch has a kind of its own for each way a file can be broken
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{file} does not fit the network of its run: {reason}") from error
    return net.eval()


def empty_network(trained: Trained) -> nn.Module:
    """The run's network, its weights not yet loaded."""
    config = replace(trained.config, init="", init_axes="auto", init_channels="auto")
    if trained.segments:
        return build_segmentation(config, len(trained.classes))
    if config.head == "regress":
        return RegressionNet(build_encoder(config), 0.0, 1.0)  # what it scales by is loaded
    return PooledNet(build_encoder(config), len(trained.classes))
