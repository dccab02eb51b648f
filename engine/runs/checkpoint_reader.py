"""Reading a DCP checkpoint without letting it run code.

`.metadata` is a pickle: only the classes DCP itself writes may be built from it. A checkpoint
that declares a value as pickled bytes is refused, because DCP would unpickle it freely; tensors
go through `torch.load(weights_only=True)` in DCP's own reader.
"""

import pickle
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

from mim3d.engine.errors import CheckpointError

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


def read_metadata(stream: IO[bytes], folder: Path) -> Metadata:
    """Metadata of a checkpoint, built safely and checked to name only tensors and own files."""
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
        if not (folder / name).is_file():
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
