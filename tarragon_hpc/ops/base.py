"""What an expert FFN backend does.

Invariant 2 (DESIGN §4): the output row of a pair depends on its input row and the expert's weights
only: not on the other rows of the batch, their number, their order, or the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """Weights of one expert in one layer, as they lie in the checkpoint (usually a file mapping).

    gate, up: [ffn, hidden]; down: [hidden, ffn]; biases [ffn], [ffn], [hidden] or None. Row-major,
    C-contiguous. dtype float32 or float16, or uint16 holding bfloat16 bits when `bfloat16` is set.
    """

    gate: NDArray[Any]
    up: NDArray[Any]
    down: NDArray[Any]
    gate_bias: NDArray[Any] | None = None
    up_bias: NDArray[Any] | None = None
    down_bias: NDArray[Any] | None = None
    bfloat16: bool = False


@dataclass(slots=True)  # not frozen: several are made per dispatch, and frozen triples their cost
class Segment:
    """Rows of one expert that came with one dispatch.

    `x` points at the dispatch's rows [rows, hidden]; `index` (u32 [count]) says which of them this
    expert reads; `y` receives [count, hidden]. Addresses, not arrays: they lie in slots of a
    channel, and the caller keeps them valid during the call.
    """

    expert: int
    x: int
    index: int
    count: int
    y: int


class ExpertBank(Protocol):
    """The experts that one EW holds, ready to run."""

    def experts(self) -> frozenset[int]:
        """Ids of the loaded experts."""

    def run(self, layer: int, segments: list[Segment]) -> None:
        """Compute all segments of a layer's batch, writing every y. The GIL is released.

        Segments of the same expert are run as one batch, whatever AW they came from. Raises
        KeyError for an expert or a layer that is not loaded.
        """

    def prepare(self, tensors: Mapping[tuple[int, int], ExpertTensors]) -> Any:
        """Do whatever takes long for more experts, by (layer, expert); the result is for `add`.

        From any thread, also while batches run. Raises ModelError for tensors that do not fit what
        is there, MemoryError or RuntimeError where there is no room for them.
        """

    def add(self, prepared: Any) -> None:
        """Hold these experts too, or instead of those of the same layer and id.

        Between two batches, in the thread that runs them, like `remove`. Neither changes a bit of
        what the other experts compute.
        """

    def remove(self, experts: Collection[int]) -> None:
        """Forget these experts and release their memory; those that are not there are ignored."""

    def nbytes(self) -> int:
        """Bytes of weights held (mapped or copied)."""
