"""Find the volumes of an input: look at what is there, choose the layout, list the sources."""

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from mim3d.dataio.errors import SourceError
from mim3d.dataio.nifti.names import header_of, is_data_of_pair, is_image
from mim3d.dataio.sources import (
    layout_bids,
    layout_csv,
    layout_dicom,
    layout_folder,
    layout_msd,
    layout_nnssl,
    layout_nnunet,
)
from mim3d.dataio.sources.layout_folder import with_untaken
from mim3d.dataio.sources.options import SourceOptions
from mim3d.dataio.sources.source import Discovery
from mim3d.dataio.sources.subjects import with_options
from mim3d.dataio.sources.table import TABLES
from mim3d.dataio.sources.tree import (
    LocalTree,
    SubTree,
    Tree,
    as_text,
    glob_pattern,
    is_corpus,
    is_text,
)
from mim3d.dataio.storage.remote import ADDRESS
from mim3d.dataio.subjects.grouping import CASES
from mim3d.dataio.subjects.spelling import on_disk

LAYOUTS = ("auto", "folder", "msd", "nnunet", "bids", "nnssl", "csv", "dicom")
LOOKED = 20  # files of a folder without images that are looked at for DICOM
WILD = re.compile(r"[*?\[]")


def discover(source: str, layout: str = "auto", options: SourceOptions | None = None) -> Discovery:
    """List the sources of a folder, glob, single file, datalist, table, address or `msd:Task...`.

    `layout` names one of LAYOUTS where detection would choose another; `options` are what a person
    tells beside. Raises SourceError where nothing can be found; single bad entries are in
    `Discovery.skipped`.
    """
    options = options or SourceOptions()
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if not is_text(source):
        problem = "its name is not UTF-8; rename it, or name it by a symbolic link"
        raise SourceError("bad-name", as_text(source), problem)
    if not source:
        raise SourceError("missing", source, "the input's name is empty")
    if source.startswith("msd:"):
        from mim3d.dataio.sources.msd_download import fetch_task

        source = str(fetch_task(source.removeprefix("msd:")))
    root, name, is_pattern = split_source(source)
    tree = open_tree(root)
    if options.base is not None:
        tree, name = with_base(tree, name, options.base, is_pattern)
    if is_pattern:
        pattern = glob_pattern(name)
        found = layout_folder.find(tree, [n for n in tree.names if pattern.fullmatch(n)])
    elif name:
        found = find_by_file(tree, name, layout)
    else:
        found = find_in_folder(tree, layout)
    if not found.sources:
        raise SourceError("no-images", source, nothing_found(tree, found))
    return with_options(replace(found, root=tree.root), options)


def with_base(tree: Tree, name: str, base: str, is_pattern: bool) -> tuple[Tree, str]:
    """The tree that a list's paths begin at, and the list's own path."""
    if is_pattern or not name.lower().endswith((".json", *TABLES)):
        problem = "goes with a datalist (.json) or a table (.csv, .tsv) as SRC"
        raise SourceError("no-list", f"--base {base}", problem)
    return open_tree(str(Path(base).expanduser()) if "://" not in base else base), tree.path(name)


def split_source(source: str) -> tuple[str, str, bool]:
    """Split into the tree's root, a file name in it ("" for a folder), and whether it is a glob."""
    if ADDRESS.match(source):
        head = re.match(r"[a-z0-9]+://[^/]*", source)
        start = len(head[0]) if head else 0
    else:
        start = 0
        path = Path(source).expanduser()
        if path.is_dir():
            return str(path), "", False
        if path.exists():
            return str(path.parent), path.name, False
        source = str(path)
        if (there := on_disk(source)) != source:
            return split_source(there)
    wild = WILD.search(source, start)
    if wild:
        cut = source.rfind("/", 0, wild.start()) + 1
        return source[:cut] or ".", source[cut:], True
    if start:
        folder, name = posixpath.split(source)
        is_file = is_image(name) or name.lower().endswith((".json", *TABLES))
        return (folder, name, False) if is_file else (source, "", False)
    raise SourceError("missing", source, "is not there; name a folder, a file or a glob")


def open_tree(root: str) -> Tree:
    """The tree of a folder or of an address."""
    if ADDRESS.match(root):
        from mim3d.dataio.sources.tree import RemoteTree

        return RemoteTree(root)
    if not Path(root).is_dir():
        raise SourceError("missing", root, "is not a folder")
    return LocalTree(root)


def find_by_file(tree: Tree, name: str, layout: str) -> Discovery:
    """Sources of a single file: an image, a table, or one of the JSON descriptions."""
    if is_image(name) or is_data_of_pair(name):
        header = name if is_image(name) else header_of(name)
        return layout_folder.find(tree, [header])
    if name.lower().endswith(TABLES):
        return layout_csv.find(tree, name)
    if not name.lower().endswith(".json"):
        detail = "is not NIfTI (.nii, .nii.gz, .hdr+.img), a .csv table or a .json datalist"
        raise SourceError("not-nifti", tree.path(name), detail)
    if layout == "nnssl" or (layout == "auto" and posixpath.basename(name) == layout_nnssl.FILE):
        return layout_nnssl.find(tree, name)
    if layout == "nnunet" or (layout == "auto" and is_nnunet(tree, name)):
        return layout_nnunet.find(tree, name)
    return layout_msd.find(tree, name)


def find_in_folder(tree: Tree, layout: str) -> Discovery:
    """Sources of a folder by the layout told, or by what stands in it."""
    finders: dict[str, Callable[[], Discovery]] = {
        "nnssl": lambda: layout_nnssl.find(tree),
        "nnunet": lambda: with_untaken(tree, layout_nnunet.find(tree), whole_folders=True),
        "msd": lambda: find_msd(tree),
        "bids": lambda: layout_bids.find(tree),
        "csv": lambda: layout_csv.find(tree, only_table(tree)),
        "dicom": lambda: layout_dicom.find(tree),
        "several": lambda: find_several(tree),
        "folder": lambda: layout_folder.find(tree),
    }
    return finders[detect(tree) if layout == "auto" else layout]()


def detect(tree: Tree) -> str:
    """Layout of a folder, by the files that only this layout has."""
    if tree_has(tree, layout_nnssl.FILE):
        return "nnssl"
    if tree_has(tree, "dataset.json"):
        return "nnunet" if is_nnunet(tree, "dataset.json") else "msd"
    tops = {name.split("/", 1)[0] for name in tree.names if "/" in name}
    if "imagesTr" in tops:
        return "msd"
    images = [name for name in tree.names if is_image(name)]
    if images and 2 * len(layout_bids.bids_files(images)) > len(images):
        return "bids"
    if not images and any(layout_dicom.is_dicom(Path(tree.path(n))) for n in tree.names[:LOOKED]):
        return "dicom"
    return "several" if nested_roots(tree.names) or layout_bids.bids_files(images) else "folder"


def nested_roots(names: Sequence[str]) -> list[str]:
    """Folders below the root that are data sets of their own: with imagesTr in them."""
    found = {name[: name.index("/imagesTr/")] for name in names if "/imagesTr/" in name}
    return sorted(root for root in found if not any(root.startswith(o + "/") for o in found))


def find_several(tree: Tree) -> Discovery:
    """Sources of a folder of data sets, each read as its own layout has it, then of all else.

    Subjects are told apart by their data set, which is their group.
    """
    roots = nested_roots(tree.names)
    parts = [as_part(find_in_folder(SubTree(tree, root), "auto"), root) for root in roots]
    rest = [n for n in tree.names if not any(n.startswith(root + "/") for root in roots)]
    bids = set(layout_bids.bids_files(rest))
    if bids:
        parts.append(layout_bids.find(tree, sorted(bids)))
    parts.append(layout_folder.find(tree, [n for n in rest if n not in bids]))
    layouts = dict.fromkeys(part.layout for part in parts if part.sources)
    return Discovery(
        tuple(source for part in parts for source in part.sources),
        tuple(dict.fromkeys(skip for part in parts for skip in part.skipped)),
        ", ".join(layouts),
        tuple(warning for part in parts for warning in part.warnings),
        tuple(note for part in parts for note in part.notes),
    )


def as_part(found: Discovery, root: str) -> Discovery:
    """What was found in one data set of several: under its name."""
    sources = []
    for source in found.sources:
        known = source.subject_from.endswith(" names") and source.subject_from != "file names"
        subject = source.subject if known else f"{root}/{source.subject or source.id}"
        id = f"{root.replace('/', '_')}_{source.id}"
        rule = CASES if source.subject_from == "file names" else source.subject_from
        group = source.group or root
        sources.append(replace(source, id=id, subject=subject, subject_from=rule, group=group))
    return replace(found, sources=tuple(sources))


def tree_has(tree: Tree, name: str) -> bool:
    """Whether the tree lists the file itself (not only may have it, as an http address does)."""
    return tree.has(name) if isinstance(tree, LocalTree) else name in tree.names


def find_msd(tree: Tree) -> Discovery:
    """MSD with its dataset.json, or by folder names where that is missing."""
    if tree_has(tree, "dataset.json"):
        return with_untaken(tree, layout_msd.find(tree))
    return with_untaken(tree, layout_msd.find_without_json(tree), whole_folders=True)


def is_nnunet(tree: Tree, name: str) -> bool:
    """Whether a dataset.json is nnU-Net's.

    Version 2 tells channel names or the file ending and lists no images; version 1 lists
    `CASE.nii.gz` where `CASE_0000.nii.gz` stands.
    """
    try:
        described = layout_nnunet.read_description(tree, name)
    except SourceError:
        return False
    listed = described.get("training")
    if not listed:
        return bool({"channel_names", "file_ending"} & set(described))
    first = (
        listed[0].get("image") if isinstance(listed, list) and isinstance(listed[0], dict) else 0
    )
    if not isinstance(first, str) or tree.has(first.removeprefix("./")):
        return False
    return any(re.match(r"imagesTr/.+_0000\.", n) for n in tree.names)


def only_table(tree: Tree) -> str:
    """The folder's only table; SourceError where there is none or more than one."""
    tables = [n for n in tree.names if "/" not in n and n.lower().endswith(TABLES)]
    if len(tables) != 1:
        detail = f"holds {len(tables)} tables ({', '.join(tables[:3])}); name one"
        raise SourceError("no-table", tree.root, detail)
    return tables[0]


def nothing_found(tree: Tree, found: Discovery) -> str:
    """Why no source was found, in one line."""
    if isinstance(tree, LocalTree) and is_corpus(tree.root):
        return "is a corpus already; `mim3d export-nifti` makes NIfTI files of it"
    if not found.skipped:
        return "holds no NIfTI files (.nii, .nii.gz, .hdr+.img)"
    first = found.skipped[0]
    more = f" and {len(found.skipped) - 1} more" if len(found.skipped) > 1 else ""
    detail = " ".join(f"{first.path} {first.detail}".split())  # names may hold line ends
    return f"holds nothing to convert: {detail}{more}"
