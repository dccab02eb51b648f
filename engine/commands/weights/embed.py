"""`mim3d embed RUN SRC DST`: an encoder's features of scans."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from mim3d.engine.commands.arguments import parse
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.commands.weights.messages import listed, tell_done, tell_doubts, tell_failed
from mim3d.engine.commands.weights.scan_arguments import ScanArgs
from mim3d.engine.predict.config import EmbedConfig

DESCRIPTION = """Features of scans, by a pretrained or fine-tuned encoder.

Scans are read as the run's corpus was converted, and windows of the encoder's crop cover each. DST
gets ID.safetensors: `pooled` (width,), the mean of all tokens, or `tokens` (windows, tokens, width)
with `starts` (windows, 3), the windows' first voxels; and pooled.npz with `features`, `ids` and
`subjects` of all.
"""


@dataclass(frozen=True, kw_only=True)
class EmbedArgs(ScanArgs):
    """Whose encoder, which scans, where to, and what is kept."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a finished `mim3d pretrain` or `mim3d finetune`, or an encoder.safetensors;
    s3://BUCKET/RUN too."""
    config: Annotated[EmbedConfig, tyro.conf.arg(name="")] = field(default_factory=EmbedConfig)


def main(words: list[str]) -> Outcome:
    """Run the command."""
    args = parse(EmbedArgs, words, "mim3d embed", DESCRIPTION, addresses=("run",))
    from mim3d.dataio.storage.store import writing
    from mim3d.engine.predict.embed import run_embed
    from mim3d.engine.predict.ledger import FAILED

    with writing(args.destination):
        report = run_embed(args.run, args.source, args.destination, args.config, corpus=args.corpus)
    tell_failed(report.failed, args.destination / FAILED)
    tell_doubts(report.doubts)
    listed(report.leftovers, indent="")
    tell_done(report.n_done, report.n_kept, args.destination)
    figures = {
        "destination": str(report.destination),
        "done": report.n_done,
        "kept": report.n_kept,
        "width": report.width,
        "failed": [asdict(each) for each in report.failed],
        "doubts": list(report.doubts),
        "leftovers": list(report.leftovers),
    }
    return Outcome(figures, len(report.failed) + len(report.doubts))
