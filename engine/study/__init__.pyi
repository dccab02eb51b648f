from .config import StudyConfig
from .run import run_study

__all__ = [
    "StudyConfig",
    "run_study",
]
