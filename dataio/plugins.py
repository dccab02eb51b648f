"""Plugins: Python files and modules that register parts of their own.

Three ways: `--plugin FILE.py` or `--plugin MODULE` on a command line, the variable MIM3D_PLUGINS
(what --plugin gave, handed to the processes that a command starts), and packages with an entry
point in the group `mim3d.plugins`, loaded when a name is asked for that nothing else has.

A plugin is code, and runs as the user: none is ever loaded because a run or a corpus names it.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mim3d.dataio.errors import Mim3dError

GROUP, VARIABLE = "mim3d.plugins", "MIM3D_PLUGINS"
_asked: set[str] = set()
"""Plugins that `load_known` has loaded or is loading."""


class PluginError(Mim3dError):
    """A plugin cannot be found or imported."""


def load_plugin(given: str) -> str:
    """Import a plugin, a path ending in .py or a module's name; the name it has as a module.

    The processes that this one starts find it too. PluginError in one line where it fails.
    """
    is_file = given.endswith(".py") or os.sep in given
    name = _module_of(Path(given)) if is_file else given
    remedy = f"mend it, or leave --plugin {given} out"
    if not is_file and name not in sys.modules and not _exists(name):
        raise PluginError(
            f"--plugin {given}: no module of that name is installed; give the path of a Python "
            f"file, such as --plugin ./{given.replace('.', '/')}.py"
        )
    _import(name, f"--plugin {given}", remedy)
    lasting = str(Path(given).resolve()) if is_file else given
    others = [each for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*others, lasting]))
    _asked.add(lasting)
    return name


def load_known() -> None:
    """Load the plugins of MIM3D_PLUGINS and of installed packages, each once."""
    for given in os.environ.get(VARIABLE, "").split(os.pathsep):
        if given and given not in _asked:
            with _asking(given):
                load_plugin(given)
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.value not in _asked:
            package = point.dist.name if point.dist is not None else point.module
            with _asking(point.value):
                _import(
                    point.module,
                    f"the plugin {point.name} of the installed package {package}",
                    f"mend it, or take it away: pip uninstall {package}",
                )


@contextmanager
def _asking(plugin: str) -> Iterator[None]:
    """Ask for a plugin once, also while it is loading; again after it failed."""
    _asked.add(plugin)
    try:
        yield
    except BaseException:
        _asked.discard(plugin)
        raise


def origin_of(module: str) -> dict[str, Any]:
    """What a run keeps of a plugin's module: its name, and its file with the hash of it."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not Path(file).is_file():
        return {"module": module, "file": None, "sha256": None}
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return {"module": module, "file": str(Path(file).resolve()), "sha256": digest}


def _module_of(file: Path) -> str:
    """The name under which a file is imported, as its folder joins the end of the path.

    So processes that are started, and pickles, find it by the same name.
    """
    if not file.is_file():
        raise PluginError(
            f"--plugin {file}: there is no such file; give the path of a Python file, or the name "
            "of an installed module"
        )
    name, path = file.stem, file.resolve()
    known = sys.modules.get(name)
    found = getattr(known, "__file__", None) if known is not None else _origin(name)
    taken = known is not None or found is not None
    if not name.isidentifier() or (taken and (not found or Path(found).resolve() != path)):
        raise PluginError(
            f"--plugin {file}: {name} is {'another module' if taken else 'no name of a module'}"
            f"{f' ({found})' if found else ''}: rename the file, to my_{name.replace('-', '_')}.py "
            "for instance"
        )
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    return name


def _exists(name: str) -> bool:
    """Whether a module of that (dotted) name can be found."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _origin(name: str) -> str | None:
    """Where a module of that name would be imported from."""
    if not _exists(name):
        return None
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin or name


def _import(name: str, who: str, remedy: str) -> None:
    """Import a module of somebody else's; any failure is a PluginError of one line."""
    try:
        importlib.import_module(name)
    except Mim3dError as error:
        raise PluginError(f"{who}: {error}") from error
    except (Exception, SystemExit) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{who} failed to import: {what}{_place(error)}; {remedy}") from error


def _place(error: BaseException) -> str:
    """The last line of the plugin's own that was running, as " (turns.py line 3)"."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name} line {error.lineno})"
    ours = (str(Path(__file__)), "<frozen")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours) and "importlib" not in frame.filename
    ]
    return f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames else ""
