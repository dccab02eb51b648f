"""Layout `dicom`: folders of DICOM series, through dcm2niix (extra `containers`).

Each folder that holds DICOM files is converted once into a cache of NIfTI files, one a series, and
those are the sources: hashed, checked and verified as all others. A folder whose files are as they
were is not converted again. The subject is DICOM's patient ID.
"""

import hashlib
import json
import os
import subprocess
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

from mim3d.dataio.errors import Rejection, SourceError
from mim3d.dataio.sources.source import Discovery, Source
from mim3d.dataio.sources.tree import LocalTree, Tree

MAGIC_AT, MAGIC = 128, b"DICM"
DONE = "files.json"
SERIES = "UID_"
NAME = f"%i_{SERIES}%j"  # patient ID and series UID; doubled underscores would become one
TIMEOUT_S = 3600


def find(tree: Tree) -> Discovery:
    """Sources of every series below the root; SourceError without dcm2niix or any DICOM file."""
    if not isinstance(tree, LocalTree):
        raise SourceError("not-local", tree.root, "DICOM is read from disk only; copy it here")
    program = dcm2niix(tree.root)
    skipped = list(tree.problems)
    sources: list[Source] = []
    for folder, names in sorted(dicom_folders(tree).items()):
        try:
            made = converted(program, tree, folder, names)
        except SourceError as error:
            skipped.append(Rejection.of(error))
            continue
        sources += [source_of(file, folder) for file in made]
    if not sources and not skipped:
        raise SourceError("no-images", tree.root, "holds no DICOM files")
    notes = (f"NIfTI files of the series are in {cache_of(tree.root)}",)
    return Discovery(tuple(sources), tuple(skipped), "dicom", notes=notes)


def dcm2niix(where: str) -> str:
    """Path of the program that the package brings."""
    if find_spec("dcm2niix") is None:
        problem = "DICOM needs dcm2niix: pip install 'mim3d[containers]'"
        raise SourceError("needs-extra", where, problem)
    from dcm2niix import bin as program

    return str(program)


def dicom_folders(tree: Tree) -> dict[str, list[str]]:
    """Files that begin as DICOM does, by folder."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in tree.names:
        if is_dicom(Path(tree.path(name))):
            found[name.rpartition("/")[0]].append(name)
    return found


def is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark behind its preamble."""
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def cache_of(root: str) -> Path:
    """Where the NIfTI files of a folder go: $MIM3D_CACHE or ~/.cache/mim3d, by the root's path."""
    base = Path(os.environ.get("MIM3D_CACHE") or Path.home() / ".cache" / "mim3d")
    return base / "dicom" / hashlib.sha256(root.encode()).hexdigest()[:16]


def converted(program: str, tree: LocalTree, folder: str, names: list[str]) -> list[Path]:
    """NIfTI files of a folder's series, made now or before; SourceError where there are none."""
    out = cache_of(tree.root) / (folder or "root")
    stamps = {name: stamp(Path(tree.path(name))) for name in names}
    state = json.dumps(stamps, sort_keys=True)
    if not (out / DONE).is_file() or (out / DONE).read_text() != state:
        for old in out.glob("*.nii") if out.is_dir() else ():
            old.unlink()
        out.mkdir(parents=True, exist_ok=True)
        place = tree.path(folder) if folder else tree.root
        run(program, place, out, len(names))
        (out / DONE).write_text(state)
    made = sorted(out.glob("*.nii"))
    if not made:
        problem = f"dcm2niix made no image of its {len(names)} DICOM files; see `dcm2niix {folder}`"
        raise SourceError("no-series", tree.path(folder), problem)
    return made


def stamp(path: Path) -> str:
    """Size and time of change of a file."""
    found = path.stat()
    return f"{found.st_size}:{found.st_mtime_ns}"


def run(program: str, place: str, out: Path, n_files: int) -> None:
    """dcm2niix on one folder alone; SourceError where it fails."""
    words = [program, "-d", "0", "-z", "n", "-b", "n", "-f", NAME, "-o", str(out), place]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError("no-series", place, f"dcm2niix cannot be run: {error}") from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
        why = lines[-1] if lines else f"exit {done.returncode}"
        problem = f"dcm2niix fails on its {n_files} files: {why}"
        raise SourceError("no-series", place, problem)


def source_of(file: Path, folder: str) -> Source:
    """One series; without a patient ID the folder is the person."""
    person, _, series = file.stem.rpartition(SERIES)
    person = person.strip("_")
    subject = person or folder or "unnamed"
    id = "_".join(filter(None, [person, folder.replace("/", "_"), series[-12:]]))
    rule = "DICOM patient IDs" if person else "folders"
    return Source(id, (str(file),), subject=subject, subject_from=rule)
