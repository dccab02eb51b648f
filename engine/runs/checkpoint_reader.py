"""Reading a DCP checkpoint without letting it run code.

`.metadata` is a pickle: only the classes DCP itself writes may be built from it. A checkpoint
that declares a value as pickled bytes is refused, because DCP would unpickle it freely; tensors
go through `torch.load(weights_only=True)` in DCP's own reader.
"""

import pickle
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

from mim3d.dataio.errors import first_line
from mim3d.engine.errors import CheckpointError
from mim3d.engine.runs import checkpoint_files as files
from mim3d.engine.runs.checkpoint_files import CheckpointFacts

State = dict[str, Tensor]
RNG_PREFIX, HOOK_PREFIX = "rng.", "rank."
PER_RANK = (RNG_PREFIX, HOOK_PREFIX)
"""Keys that exist once per rank, so a run at another world size lacks or leaves some."""

ALLOWED = frozenset(
    {
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "StorageMeta"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
    }
)
DTYPES = frozenset({"float32", "float64", "bfloat16", "float16", "int32", "int64", "uint8", "bool"})


class RestrictedUnpickler(pickle.Unpickler):
    """Builds DCP's own metadata classes and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Look up an allowed class; a CheckpointError names any other."""
        if (module_name, global_name) in ALLOWED or (
            module_name == "torch" and global_name in DTYPES
        ):
            return super().find_class(module_name, global_name)
        raise CheckpointError(
            f"its .metadata wants to build {module_name}.{global_name}, which no checkpoint of "
            "ours holds: it is hostile or foreign, and nothing of it was run"
        )


def read_metadata(
    stream: IO[bytes], folder: Path | str, present: Collection[str] | None = None
) -> Metadata:
    """Metadata of a checkpoint, built safely and checked to name only tensors and own files.

    Those are in `folder`, or `present` somewhere else.
    """
    try:
        metadata = RestrictedUnpickler(stream).load()
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except Exception as error:
        raise CheckpointError(f"{folder}/.metadata is not DCP metadata: {error}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CheckpointError(f"{folder}/.metadata is not DCP metadata")
    for key, kind in metadata.state_dict_metadata.items():
        if not isinstance(kind, TensorStorageMetadata):
            raise CheckpointError(f"{folder}: {key} is not stored as a tensor: refused")
    for info in metadata.storage_data.values():
        name = str(getattr(info, "relative_path", "/"))
        if Path(name).name != name:
            raise CheckpointError(f"{folder}: its .metadata points to another place, {name}")
        if not (Path(folder, name).is_file() if present is None else name in present):
            raise CheckpointError(
                f"{folder} lacks {name}, which a rank wrote elsewhere (not all nodes share this "
                "folder) or which is lost"
            )
    return metadata


class SafeReader(FileSystemReader):
    """DCP's reader of a folder, with the metadata read as above."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Metadata of the folder."""
        folder = Path(self.path)
        with (folder / ".metadata").open("rb") as stream:
            metadata = read_metadata(stream, folder)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class TensorPlanner(DefaultLoadPlanner):
    """Loads tensors only."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Refuse: DCP would unpickle the bytes."""
        raise CheckpointError(f"{read_item.dest_index.fqn} is stored as pickled bytes: refused")


def verified(folder: Path) -> CheckpointFacts:
    """Facts of a checkpoint whose every byte matches its manifest and whose metadata is safe."""
    facts = files.verify(folder)
    checked_metadata(folder)
    return facts


def checked_metadata(folder: Path) -> Metadata:
    """What a checkpoint holds; CheckpointError where it is hostile, or files that it names lack."""
    with (folder / ".metadata").open("rb") as stream:
        return read_metadata(stream, folder)


def load_tensors(folder: Path, state: State, group: dist.ProcessGroup | None = None) -> None:
    """Read a checkpoint into the tensors of `state`, in place; its keys must be the same.

    Of the per-rank keys only those in both are read.
    """
    reader = SafeReader(folder)
    stored = reader.read_metadata().state_dict_metadata
    check_keys(folder, set(stored), set(state))
    wanted = {key: tensor for key, tensor in state.items() if key in stored}
    for key, tensor in wanted.items():
        size = tuple(getattr(stored[key], "size", ()))
        if size != tuple(tensor.shape):
            raise CheckpointError(
                f"{folder}: {key} has shape {size}, the model wants {tuple(tensor.shape)}"
            )
    try:
        dcp.load(wanted, storage_reader=reader, planner=TensorPlanner(), process_group=group)
    except dcp.api.CheckpointException as error:
        raise CheckpointError(f"{folder} cannot be loaded: {failure_line(error)}") from None


def check_keys(folder: Path, stored: set[str], wanted: set[str]) -> None:
    """A CheckpointError naming what is missing and what is foreign."""
    missing = sorted(key for key in wanted - stored if not key.startswith(PER_RANK))
    foreign = sorted(key for key in stored - wanted if not key.startswith(PER_RANK))
    if missing or foreign:
        raise CheckpointError(
            f"{folder} is of another model: it lacks {missing[:5] or 'nothing'} "
            f"and has {foreign[:5] or 'nothing'} besides ({len(missing)} and {len(foreign)} keys)"
        )


def failure_line(error: BaseException) -> str:
    """Kind and first line of an error, of the first failure where DCP lists one per rank."""
    failures = getattr(error, "failures", None)
    if failures:
        rank, (inner, _trace) = next(iter(failures.items()))
        return f"rank {rank}: {failure_line(inner)}"
    return f"{type(error).__name__}: {first_line(error)}"
