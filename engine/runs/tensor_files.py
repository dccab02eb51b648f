"""Tensors written to a file, whose failures are the system's own errors with the file's name."""

import errno
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

NUMBERED = re.compile(r"os error (\d+)")


def save_safetensors(
    tensors: Mapping[str, Tensor], file: Path, about: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file with what is told of it; OSError where the disk does not take it.

    Without more to tell it says that it is torch's, which others look for.
    """
    try:
        save_file(dict(tensors), file, metadata=dict(about or {"format": "pt"}))
    except SafetensorError as error:
        found = NUMBERED.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error


def save_pickled(content: object, file: Path) -> None:
    """Write by torch.save; OSError where the disk does not take it."""
    try:
        with file.open("wb") as stream:
            torch.save(content, stream)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch's own beside it
        if not isinstance(reason, OSError):
            raise
        raise OSError(reason.errno, reason.strerror, str(file)) from error


def mapped_array(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float32 array in a new file, zeros; OSError where the disk has no room for all of it.

    Room is taken at once: filling a file with holes, a full disk would kill the process (SIGBUS).
    """
    with file.open("wb") as stream:
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, 4 * math.prod(shape))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from error
    return np.memmap(file, np.float32, "r+", shape=shape)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; where there is no room the error names the target, not the source."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
