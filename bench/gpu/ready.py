"""Whether a GPU machine has what bench/gpu.sh needs: each part once, on something tiny, checked.

    python -m mim3d.bench.gpu.ready FILE.json

Half a minute that says which part is broken before the stages spend theirs. The file is written
anew after every check, for a broken library may take the process with it. Exit 3 where one failed.
"""

import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from mim3d.bench.gpu.checks import AbsentError, checks


def main(file: Path) -> int:
    """Run every check; 0 where none failed."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    outcomes: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(prefix="mim3d-ready-") as folder:
        for name, check in checks(device, Path(folder)).items():
            began = time.perf_counter()
            outcome = outcome_of(check)
            seconds = round(time.perf_counter() - began, 2)
            outcomes[name] = {"outcome": outcome, "seconds": seconds}
            print(f"{name}: {outcome}, {seconds} s", flush=True)
            file.write_text(json.dumps({"ready": {"device": str(device), "checks": outcomes}}))
    return 3 if any(str(each["outcome"]).startswith("failed") for each in outcomes.values()) else 0


def outcome_of(check: Callable[[], None]) -> str:
    """What came of it, in a line; the whole error goes to the log."""
    try:
        check()
    except AbsentError as why:
        return f"absent: {why}"
    except Exception as error:
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return "ok"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
