# pyright: reportMissingImports=false
# Linked into the package's root, where these modules are.
from .dataio.convert.run import convert
from .dataio.corpus.conversion import Conversion
from .dataio.inspect.verify import verify
from .dataio.loader.config import LoaderConfig
from .dataio.loader.loader import Loader
from .dataio.reader.corpus import Corpus, opened_corpus
from .dataio.reader.normalisation import register_normalisation
from .dataio.reader.whole_volume import read_volume
from .dataio.sources.discover import discover
from .dataio.transforms.artefacts import Artefacts
from .dataio.transforms.augment import Augmentation, register_augmentation
from .dataio.transforms.placement import Spatial
from .engine.finetune.config import FinetuneConfig
from .engine.finetune.finetune import run_finetune
from .engine.models.registering import register_encoder, register_method
from .engine.predict.config import PredictConfig
from .engine.predict.predict import run_predict
from .engine.pretrain.config import PretrainConfig
from .engine.pretrain.pretrain import run_pretrain
from .engine.pretrain.recipes import recipe, register_recipe
from .engine.runs.encoder_file import load_encoder

__version__: str

__all__ = [
    "Artefacts",
    "Augmentation",
    "Conversion",
    "Corpus",
    "FinetuneConfig",
    "Loader",
    "LoaderConfig",
    "PredictConfig",
    "PretrainConfig",
    "Spatial",
    "__version__",
    "convert",
    "discover",
    "load_encoder",
    "opened_corpus",
    "read_volume",
    "recipe",
    "register_augmentation",
    "register_encoder",
    "register_method",
    "register_normalisation",
    "register_recipe",
    "run_finetune",
    "run_predict",
    "run_pretrain",
    "verify",
]
