"""Refuse a build without its compiled loops.

python .ci/wheel_is_whole.py WHEEL        what a wheel holds
python .ci/wheel_is_whole.py --installed  what this interpreter imports
"""

import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
SETUPTOOLS = tomllib.loads(PROJECT.read_text())["tool"]["setuptools"]
LOOPS = tuple(module["name"] for module in SETUPTOOLS["ext-modules"])


def missing_of(wheel: str) -> list[str]:
    """Compiled modules that a wheel lacks."""
    names = zipfile.ZipFile(wheel).namelist()
    stems = {name.partition(".")[0].replace("/", ".") for name in names if name.endswith(".so")}
    return [loop for loop in LOOPS if loop not in stems]


def missing_here() -> list[str]:
    """Compiled modules that this interpreter does not find."""
    return [loop for loop in LOOPS if find_spec(loop) is None]


if __name__ == "__main__":
    asked = sys.argv[1]
    gone = missing_here() if asked == "--installed" else missing_of(asked)
    sys.exit(f"{asked}: {', '.join(gone)} missing: was there a C compiler?" if gone else 0)
