"""The console script `mim3d`: one word picks a command module, which parses the rest with tyro."""

import importlib
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from mim3d.dataio.errors import first_line
from mim3d.dataio.extras import extra
from mim3d.dataio.plugins import load_plugin
from mim3d.engine.commands.outcome import Outcome
from mim3d.engine.distributed.parent import end_with_launcher, quieten_torch
from mim3d.engine.errors import EXIT_USER_ERROR, StoppedError
from mim3d.engine.runs.files import finite, refuse_address

COMMANDS = {
    "demo": "the main job, whole: NIfTI -> corpus -> pretraining -> fine-tuning -> report",
    "convert": "NIfTI files -> a verified, resumable Zarr corpus",
    "verify": "check every hash and checksum of a corpus",
    "remove": "take subjects or volumes out of a corpus, for good",
    "merge": "several corpora as one, without copying a voxel",
    "inspect": "table, histograms and a montage of a corpus",
    "export-nifti": "a corpus back to NIfTI, bit for bit",
    "pretrain": "MAE, SimMIM or SimCLR on a corpus, on 1 to many GPUs",
    "finetune": "segmentation or classification from pretrained weights or from scratch",
    "predict": "label maps or classes of new scans, by a fine-tuned run",
    "embed": "an encoder's features of scans: a vector each, or all tokens",
    "compare": "the convergence study: arms x seeds, speed-up with intervals, report",
    "export": "encoder weights for other libraries",
    "plan": "time, memory, loader and network need of a recipe before it runs",
    "bench": "throughput of every stage, side by side with its peers",
    "env": "versions, devices, and what is optional and missing",
}

FOLDERS = {"export": "weights.", "predict": "weights.", "embed": "weights."}
"""Commands whose modules stand in a folder of their own."""
LACK = re.compile(r"out of memory|can't allocate memory|can't start new thread", re.IGNORECASE)
"""What a RuntimeError says of memory or threads that are not to be had."""
READER_LEFT = 141
"""What shells show of a command that SIGPIPE ended."""
GO_ON = ("demo", "convert", "merge", "pretrain", "finetune", "compare", "predict", "embed")
AFTER_INTERRUPT = {
    True: "the same command goes on from what is on disk, or begins where nothing is yet",
    False: "the same command begins anew",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit 0, 2 on an error the user can mend, 3 where something was lost.

    A reader of the output that left, as `head` does, ends the command without a word.
    """
    try:
        code = run(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end, into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    return code


def run(argv: Sequence[str] | None) -> int:
    """The same, with what printing to nobody raises."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(overview())
        return 0 if words else EXIT_USER_ERROR
    if words[0] in {"-V", "--version"}:
        print(f"mim3d {version('mim3d')}")
        return 0
    end_with_launcher()
    quieten_torch()
    name = words[0]
    if name not in COMMANDS:
        print(f"mim3d: no command {name!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        plugins, rest = split_flag("--plugin", words[1:])
        json_file, rest = split_json_flag(rest)
        for plugin in plugins:
            load_plugin(plugin)
        with extra():
            outcome = run_or_stop(name, rest)
        if json_file is not None and outcome.writes_json:
            write_figures(json_file, outcome)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, MemoryError, OverflowError, RuntimeError) as error:
        line = one_line(error)
        if not line:
            raise  # a mistake of ours
        if os.environ.get("MIM3D_TRACEBACK"):
            traceback.print_exc()
        print(f"mim3d {name}: {line}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"mim3d {name}: interrupted; {AFTER_INTERRUPT[name in GO_ON]}", file=sys.stderr)
        return 130
    return outcome.exit_code


def run_or_stop(name: str, words: list[str]) -> Outcome:
    """Run a command; one that a signal stopped, and that saved, ends well, as a single run does."""
    try:
        return run_command(name, words)
    except StoppedError as stop:
        print(f"mim3d {name}: {stop}")
        return Outcome({"interrupted": True})


def overview() -> str:
    """Text of `mim3d --help`."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items())
    return (
        "mim3d: self-supervised pretraining on 3D medical volumes\n\n"
        f"usage: mim3d COMMAND [options]\n\n{rows}\n\n"
        "`mim3d COMMAND --help` tells the options. Every command takes --json FILE and writes\n"
        "its figures there, and --plugin FILE.py (or MODULE), which adds methods, encoders,\n"
        "augmentations, normalisations and recipes of your own. Exit codes: 0 done, 2 an error\n"
        "you can mend, 3 done but something was lost on the way (quarantined files).\n"
        "MIM3D_TRACEBACK=1 shows where an error arose."
    )


def split_flag(flag: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Values of `--flag FILE` (or `--flag=FILE`), wherever it stands, and the other words."""
    values: list[str] = []
    rest: list[str] = []
    queue = iter(words)
    for word in queue:
        if word == flag:
            value = next(queue, None)
            if not value:
                raise ValueError(f"{flag} needs a file name: {flag} FILE")
            values.append(value)
        elif word.startswith(f"{flag}="):
            values.append(word.removeprefix(f"{flag}="))
        else:
            rest.append(word)
    return values, rest


def split_json_flag(words: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Take `--json FILE` out of the words; ValueError where two are named."""
    files, rest = split_flag("--json", words)
    if len({*files}) > 1:
        raise ValueError(f"--json is given twice, {files[0]!r} and {files[1]!r}: name one file")
    json_file = Path(files[-1]) if files else None
    if json_file is not None:
        refuse_address(json_file, "--json")
    return json_file, rest


def run_command(name: str, words: Sequence[str]) -> Outcome:
    """Import the command's module (lazily: `env` must not wait for torch) and call its `main`."""
    place = f"{FOLDERS.get(name, '')}{name.replace('-', '_')}"
    module = importlib.import_module(f"mim3d.engine.commands.{place}")
    return module.main(list(words))


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch or the system could not give what was asked for."""
    return isinstance(error, RuntimeError) and LACK.search(str(error)) is not None


def one_line(error: Exception) -> str:
    """An error in one line, its file first where the system names one.

    Empty where it tells of nothing that a user can change.
    """
    if isinstance(error, OverflowError):
        return f"a number is larger than can be computed with ({error})"
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        reason = first_line(error)[:160]
        return f"out of memory ({reason}); lower batch, crop, model or threads, whichever is large"
    if isinstance(error, RuntimeError):
        return ""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error)


def write_figures(file: Path, outcome: Outcome) -> None:
    """Write the figures as JSON; non-finite numbers become null, as JSON has none."""
    from mim3d.dataio.storage.store import writing

    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(finite(dict(outcome.figures)), indent=2, default=str) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
