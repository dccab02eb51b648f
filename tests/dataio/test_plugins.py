"""Parts of one's own: found by name, clashing, unknown, failing; every message with its remedy."""

import importlib
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mim3d.bench.corpora import anatomy_like, corpus_of
from mim3d.dataio import plugins
from mim3d.dataio.errors import Mim3dError
from mim3d.dataio.loader.config import LoaderConfig
from mim3d.dataio.loader.loader import Loader
from mim3d.dataio.plugins import VARIABLE, PluginError, load_known, load_plugin, origin_of
from mim3d.dataio.reader.normalisation import MODES, usage
from mim3d.dataio.registry import NameClashError, Registry, UnknownNameError
from mim3d.dataio.transforms.augment import AUGMENTATIONS, Augmentation, register_augmentation

GAMMA = """
import numpy as np
import torch
from mim3d import Augmentation, register_augmentation, register_normalisation

def gamma(image, seeds):
    powers = 1.0 + (seeds % np.uint64(8)).astype(np.float32) / 8
    return image.sign() * image.abs() ** torch.from_numpy(powers)[:, None, None, None, None]

def robust(rows, width):
    middle = (rows["p995"] + rows["p005"]) / 2
    return -np.inf, np.inf, middle, (rows["p995"] - rows["p005"]) / width

register_augmentation("NAME", Augmentation(flip=0.5, intensity=gamma))
register_normalisation("NAME", robust)
"""
CONFIG = LoaderConfig(crop_size=(16, 16, 16), micro_batch=3, snap=4)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """Leave nothing behind: modules, paths, names, the variable."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(plugins, "_asked", set())
    registries: tuple[Registry[Any], ...] = (AUGMENTATIONS, MODES)
    kept = [(each, dict(each._parts), dict(each._makers)) for each in registries]
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    for each, parts, makers in kept:
        vars(each).update(_parts=parts, _makers=makers)
    importlib.invalidate_caches()


def plugin(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.py"
    file.write_text(text.replace("NAME", name))
    return file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    volumes = [anatomy_like((30, 31, 32), i) for i in range(3)]
    return corpus_of(tmp_path_factory.mktemp("corpus") / "c.zarr", volumes)


def test_an_augmentation_and_a_normalisation_of_ones_own(corpus, tmp_path):
    assert load_plugin(str(plugin(tmp_path, "robust_gamma", GAMMA))) == "robust_gamma"
    plain = LoaderConfig(**{**vars(CONFIG), "normalise": "robust_gamma:2.5", "augment": "none"})
    own = LoaderConfig(**{**vars(plain), "augment": "robust_gamma"})
    assert usage("robust_gamma") == "robust_gamma:WIDTH"
    with Loader(corpus, own) as loader, Loader(corpus, plain) as unchanged:
        first, second, before = next(loader), next(loader), next(unchanged)
        state = loader.state_dict()
        third = next(loader)
        # What flips move, powers do not: each sample holds the same magnitudes, raised.
        for image, raw in zip(first.image, before.image, strict=True):
            found = image.abs().flatten().sort().values
            rank = raw.abs().flatten().sort().values
            power = torch.log(found[-1]) / torch.log(rank[-1])
            torch.testing.assert_close(found, rank**power, rtol=1e-3, atol=1e-4)
    assert not torch.equal(first.image, second.image)
    with Loader(corpus, own) as again:
        again.load_state_dict(state)
        assert torch.equal(next(again).image, third.image)
    with Loader(corpus, LoaderConfig(**{**vars(own), "dtype": "bfloat16"})) as half:
        assert torch.equal(next(half).image, first.image.bfloat16())


def test_its_range_is_that_of_the_statistics(corpus, tmp_path):
    load_plugin(str(plugin(tmp_path, "own_range", GAMMA)))
    config = LoaderConfig(**{**vars(CONFIG), "normalise": "own_range:2"})
    same = LoaderConfig(**{**vars(CONFIG), "normalise": "percentile"})
    with Loader(corpus, config) as ours, Loader(corpus, same) as theirs:
        # Percentiles to -1..1 without the clipping.
        image, clipped = next(ours).image, next(theirs).image
        torch.testing.assert_close(image.clamp(-1, 1), clipped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"augment": "nonsense"}, r"augment='nonsense' is none of: none, mim.*--plugin FILE"),
        ({"normalise": "nonsense:1"}, r"normalise='nonsense' is none of: none.*--plugin FILE"),
        ({"normalise": "zscore:3"}, "write zscore"),
        ({"normalise": "window:3"}, "write window:LOW:HIGH"),
        ({"normalise": "window:3:2"}, "write window:LOW:HIGH with LOW < HIGH"),
        ({"normalise": "window:0:inf"}, "write window:LOW:HIGH, with numbers of float32"),
    ],
)
def test_unknown_names_list_the_known(change, message):
    with pytest.raises(Mim3dError, match=message):
        LoaderConfig(**change)


def test_names_that_clash_name_both_sides(tmp_path):
    load_plugin(str(plugin(tmp_path, "first_one", GAMMA)))
    other = plugin(tmp_path, "other_one", GAMMA.replace("NAME", "first_one"))
    message = (
        r"^--plugin .*other_one.py: other_one registers the augmentation 'first_one', a name that "
        "first_one has taken: choose another in other_one$"
    )
    with pytest.raises(PluginError, match=message):
        load_plugin(str(other))
    ours = plugin(tmp_path, "ours", GAMMA.replace('"NAME"', '"mim"'))
    with pytest.raises(PluginError, match="'mim', a name that mim3d has taken"):
        load_plugin(str(ours))
    twice = plugin(tmp_path, "twice", GAMMA + 'register_augmentation("NAME", Augmentation())\n')
    with pytest.raises(PluginError, match="a name that twice has taken"):
        load_plugin(str(twice))
    other.write_text(GAMMA.replace("NAME", "other_one"))  # the remedy
    assert load_plugin(str(other)) == "other_one"
    with pytest.raises(NameClashError, match="'a b' is no name"):
        Registry("thing").add("a b", 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named .no_such"),
        ("x = 1\ny = (", r"SyntaxError: .* \(broken.py line 2\)"),
        ("def f():\n    return 1 / 0\nf()", r"ZeroDivisionError: .* \(broken.py line 2\)"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ValueError('a\\nb')", "ValueError: a b"),
    ],
)
def test_a_plugin_that_fails_is_one_line_and_may_be_mended(tmp_path, text, message):
    file = plugin(tmp_path, "broken", text)
    with pytest.raises(PluginError, match=f"failed to import: {message}.*mend it, or") as error:
        load_plugin(str(file))
    assert "\n" not in str(error.value)
    file.write_text(GAMMA.replace("NAME", "broken") + "#" * 100)
    assert load_plugin(str(file)) == "broken"


def test_what_fails_half_way_can_be_loaded_again(tmp_path):
    file = plugin(tmp_path, "half", GAMMA + "raise OSError('no licence')")
    with pytest.raises(PluginError, match="OSError: no licence"):
        load_plugin(str(file))
    file.write_text(GAMMA.replace("NAME", "half"))
    importlib.invalidate_caches()
    load_plugin(str(file))
    assert AUGMENTATIONS.maker_of("half") == "half"


def test_files_and_modules_that_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(PluginError, match="there is no such file"):
        load_plugin(str(tmp_path / "absent.py"))
    with pytest.raises(PluginError, match=r"no module of that name.*--plugin ./absent.py"):
        load_plugin("absent")
    shadow = plugin(tmp_path, "json", GAMMA)
    with pytest.raises(PluginError, match=r"json is another module \(.*rename.* to my_json"):
        load_plugin(str(shadow))
    dash = plugin(tmp_path, "two-words", "")
    with pytest.raises(PluginError, match=r"no name of a module: rename the file, to my_two_words"):
        load_plugin(str(dash))
    renamed = shadow.rename(tmp_path / "my_json.py")
    renamed.write_text(GAMMA.replace("NAME", "json"))
    load_plugin(str(renamed))
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path, "absent", GAMMA)
    assert load_plugin("./absent.py") == "absent"
    assert origin_of("absent")["file"] == str(tmp_path / "absent.py")


def test_the_processes_of_a_command_find_it_by_the_variable(tmp_path, monkeypatch):
    file = plugin(tmp_path, "handed", GAMMA)
    load_plugin(str(file))
    assert str(file) in plugins.os.environ[VARIABLE]
    del sys.modules["handed"]
    for each in (AUGMENTATIONS, MODES):
        del each._parts["handed"], each._makers["handed"]
    monkeypatch.setattr(plugins, "_asked", set())
    assert isinstance(AUGMENTATIONS.find("handed"), Augmentation)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.py"))
    with pytest.raises(PluginError, match=r"gone.py: there is no such file"):
        AUGMENTATIONS.find("another")


def test_an_installed_package_is_asked_when_a_name_is_unknown(tmp_path, monkeypatch):
    plugin(tmp_path, "packaged", GAMMA)
    monkeypatch.syspath_prepend(tmp_path)
    points = EntryPoints([EntryPoint("mine", "packaged", plugins.GROUP)])
    monkeypatch.setattr(plugins.importlib.metadata, "entry_points", lambda group: points)
    LoaderConfig()
    assert "packaged" not in sys.modules
    assert LoaderConfig(augment="packaged").augmentation.flip == 0.5
    plugin(tmp_path, "damaged", "import no_such_module_anywhere")
    points = EntryPoints([EntryPoint("mine", "damaged", plugins.GROUP)])
    with pytest.raises(PluginError, match=r"plugin mine of .*: pip uninstall damaged$"):
        LoaderConfig(augment="nonsense")
    points = EntryPoints([])
    load_known()
    with pytest.raises(UnknownNameError, match="nonsense"):
        LoaderConfig(augment="nonsense")


BAD = """
from mim3d import Augmentation, register_augmentation, register_normalisation
register_augmentation("NAME", Augmentation(intensity=lambda image, seeds: image[:1]))
register_normalisation("NAME", lambda rows: (0.0, 1.0))
register_normalisation("nan-NAME", lambda rows: (0.0, 1.0, float("nan"), 1.0))
"""


def test_what_a_plugin_gives_is_checked(corpus, tmp_path):
    load_plugin(str(plugin(tmp_path, "bad", BAD)))
    with (
        Loader(corpus, LoaderConfig(**{**vars(CONFIG), "augment": "bad"})) as loader,
        pytest.raises(Mim3dError, match=r"intensity gave torch.float32 \(1, 1, 16, 16, 16\)"),
    ):
        next(loader)
    with pytest.raises(Mim3dError, match="'bad' gave no low, high, centre and unit for 3 channels"):
        Loader(corpus, LoaderConfig(**{**vars(CONFIG), "normalise": "bad"}))
    with pytest.raises(Mim3dError, match="'nan-bad' gave NaN"):
        Loader(corpus, LoaderConfig(**{**vars(CONFIG), "normalise": "nan-bad"}))
    with pytest.raises(Mim3dError, match="give an Augmentation"):
        register_augmentation("x", np.zeros(3))  # pyright: ignore[reportArgumentType]
