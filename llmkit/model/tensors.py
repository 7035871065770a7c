"""Tensors whose numbers come on demand: what every format of checkpoint is read as, and written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types that hold weights as plain numbers, by the names that safetensors gives them."""

KINDS = {dtype: kind for kind, dtype in FLOATS.items()}
"""The names of these types."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose name, shape and type are known, and whose numbers are read on demand.

    Attributes:
        name: as the Hugging Face checkpoint of its family names it.
        shape: sizes of its dimensions.
        kind: its type as the file names it, such as "BF16".
        dtype: of what `read` gives; None where it is no plain number, and so no weight.
        rows: reads the rows from its first argument to before its second (None: to the end) to the CPU.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    dtype: torch.dtype | None
    rows: Callable[[int, int | None], Tensor]

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows along the first dimension, by default all, on the CPU.

        They may be a view of the file: copy them, and let them go.
        """
        return self.rows(start, stop)


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of safetensors, readable by whom the folder's other files are: the library would make it private."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
    path.chmod(mode)
