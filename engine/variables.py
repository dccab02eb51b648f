"""Environment variables that are as before when a block ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def variables_kept(*names: str) -> Iterator[None]:
    """Let a block set or remove these variables, and take that back."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
