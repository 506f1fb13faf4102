"""The files of a checkpoint directory: which tensor lies in which file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import ModelError
from tarragon_hpc.models.fields import read_json
from tarragon_hpc.models.safetensors_map import MappedFile, TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

INDEX = "model.safetensors.index.json"


class Checkpoint:
    """Tensors by name, whatever file they are in. Files are opened and mapped on first use."""

    def __init__(
        self, root: Path, files: dict[str, Path], mapped: dict[Path, MappedFile] | None = None
    ) -> None:
        self.root = root
        self._files = files
        self._mapped = mapped or {}

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __repr__(self) -> str:
        shards = len(set(self._files.values()))
        return f"Checkpoint({self.root}, {len(self._files)} tensors in {shards} files)"

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor. Raises ModelError if there is none of that name."""
        return self._file(name).tensors[name]

    def view(self, name: str) -> NDArray[Any]:
        """A tensor as an array on the file mapping (see `MappedFile.view`)."""
        return self._file(name).view(name)

    def _file(self, name: str) -> MappedFile:
        path = self._files.get(name)
        if path is None:
            raise ModelError(f"{self.root}: tensor {name!r} is missing")
        mapped = self._mapped.get(path)
        if mapped is None:
            mapped = self._mapped[path] = MappedFile(path)
        if name not in mapped.tensors:
            raise ModelError(f"{path}: has no tensor {name!r}, though {INDEX} says so")
        return mapped


def open_checkpoint(root: Path) -> Checkpoint:
    """The checkpoint in a directory: by its index file, or all its safetensors files.

    Raises ModelError if there are none, or if the index names files that are not there.
    """
    index = root / INDEX
    if index.is_file():
        return Checkpoint(root, _indexed(root, index))
    # Mistral's checkpoints carry the same weights again under other names.
    paths = sorted(p for p in root.glob("*.safetensors") if not p.name.startswith("consolidated"))
    if not paths:
        raise ModelError(f"{root}: {_why_no_weights(root)}")
    files: dict[str, Path] = {}
    mapped = {path: MappedFile(path) for path in paths}
    for path, file in mapped.items():
        for name in file.tensors:
            if name in files:
                raise ModelError(
                    f"{root}: tensor {name!r} is in {files[name].name} and in {path.name}, "
                    f"and there is no {INDEX} to say which counts"
                )
            files[name] = path
    return Checkpoint(root, files, mapped)


def _indexed(root: Path, index: Path) -> dict[str, Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map from tensor names to files")
    shards = list(weight_map.values())
    # A plain name only: an index must not make us read files elsewhere.
    if not all(isinstance(name, str) and Path(name).name == name for name in shards):
        raise ModelError(f"{index}: weight_map must name files in the same directory")
    absent = sorted(name for name in set(shards) if not (root / name).is_file())
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ModelError(f"{root}: {absent[0]}{more} named in {INDEX} but not there")
    return {tensor: root / name for tensor, name in weight_map.items()}


def _why_no_weights(root: Path) -> str:
    other = next((p.name for p in sorted(root.iterdir()) if p.suffix in {".bin", ".pt"}), None)
    if other is not None:
        return f"has {other} but no .safetensors file; only safetensors checkpoints are supported"
    return "has no .safetensors file"
