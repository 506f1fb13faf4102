"""Where the KV rows of a token lie in vLLM's paged cache.

A *row* is what one layer keeps of one token: for each KV head its K and then its V (MLA: the one
latent vector). Rows look the same whatever the cache looks like, so that an AW can take over
another's. vLLM registers one tensor per layer, logically [blocks, heads, tokens, 2 x dim] with any
strides but the last; on the CPU the K of a block and head is [dim, tokens], before V [tokens, dim].
A *slot* is block * block_tokens + offset, by the block tables of the layer's KV cache group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from tarragon_hpc.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

# Backends of which it is known where they keep a token: every head's part in one piece …
_PIECES = frozenset(
    "CPU_MLA FLASH_ATTN FLASHINFER FLEX_ATTENTION TRITON_ATTN "
    "CUTLASS_MLA FLASHINFER_MLA FLASHMLA FLASH_ATTN_MLA TRITON_MLA".split()
)
# … or K across the tokens of a block, for these of vLLM's CPU kernels ("amx" packs it in tiles).
_ACROSS = "CPU_ATTN"
_ACROSS_KERNELS = frozenset(("vec", "vec16"))

# vLLM's names of what a layer keeps (exactly: subclasses keep it otherwise) → whether blocks are
# given back while their request runs, and the null block is in their place in its table.
_SPECS = {
    "FullAttentionSpec": False,
    "MLAAttentionSpec": False,
    "SlidingWindowSpec": True,
    "ChunkedLocalAttentionSpec": True,
}
_NUMBERS = ("NONE", "FP8_PER_TENSOR")  # kv_quant_mode: a row is all there is to know of a token


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers with one block table.

    block_tokens: tokens of a block. evicts: a block out of every window becomes the null block,
    which is block 0: its rows are gone. Block 0 is in no table of a group that does not evict.
    """

    block_tokens: int
    evicts: bool


@dataclass(frozen=True, slots=True)
class KvLayer:
    """The cache of one layer. Strides and sizes in bytes.

    group:        index of its KvGroup
    cache:        vLLM's tensor; not ours, kept alive
    keys_across:  K of a (block, head) lies as [dim, tokens] before V as [tokens, dim]
    blocks, block_tokens: of the tensor; a block of the group may be several of these in a row
    piece_bytes:  K and V of one token and head
    """

    name: str
    group: int
    cache: torch.Tensor
    keys_across: bool
    blocks: int
    block_tokens: int
    block_stride: int
    heads: int
    head_stride: int
    token_stride: int
    piece_bytes: int
    itemsize: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a token's row."""
        return self.heads * self.piece_bytes


@dataclass(frozen=True, slots=True)
class KvLayout:
    """Every layer that has a KV cache of its own, in the order of the decoder; and the groups."""

    layers: tuple[KvLayer, ...]
    groups: tuple[KvGroup, ...]

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of a token's row in each layer."""
        return tuple(layer.row_bytes for layer in self.layers)


def kv_layout(
    caches: Mapping[str, torch.Tensor], groups: Sequence[Any], modules: Mapping[str, Any]
) -> KvLayout:
    """Derive the layout from what vLLM gives a KV connector.

    caches: as registered; groups: `kv_cache_config.kv_cache_groups`; modules: vLLM's
    `static_forward_context`, which is in the order of the decoder. A layer that uses another's
    cache is left out. Raises ClusterError if rows cannot be copied one by one.
    """
    group_of = {name: i for i, group in enumerate(groups) for name in group.layer_names}
    layers, evicts = [], [False] * len(groups)
    for name, module in modules.items():
        if name not in caches or getattr(module, "kv_sharing_target_layer_name", None):
            continue
        if name not in group_of:
            _refuse(name, "it is in no KV cache group")
        spec = groups[group_of[name]].kv_cache_spec
        spec = getattr(spec, "kv_cache_specs", {name: spec})[name]  # may differ within a group
        evicts[group_of[name]] |= _check_spec(name, spec)
        layers.append(_layer(name, caches[name], group_of[name], spec.block_size, module))
    if missing := sorted(set(caches) - set(modules)):
        _refuse(missing[0], "vLLM's forward context does not have it")
    sizes = [int(group.kv_cache_spec.block_size) for group in groups]
    return KvLayout(tuple(layers), tuple(map(KvGroup, sizes, evicts)))


def _check_spec(name: str, spec: Any) -> bool:
    """Whether blocks are given back early. Raises ClusterError if there are no rows by token."""
    kind = type(spec).__name__
    if kind not in _SPECS:
        _refuse(name, f"it keeps no row per token, or it is not known how ({kind})")
    if spec.tokens_per_state != 1:
        _refuse(name, f"it keeps one state per {spec.tokens_per_state} tokens")
    packed = spec.num_head_slots is not None or spec.state_content_bytes is not None
    if packed or spec.kv_quant_mode.name not in _NUMBERS:
        _refuse(name, f"it packs its numbers ({spec.kv_quant_mode.name})")
    return _SPECS[kind]


def _layer(name: str, cache: torch.Tensor, group: int, block_tokens: int, module: Any) -> KvLayer:
    backend = module.get_attn_backend().get_name()
    if backend == _ACROSS and (kernel := getattr(module, "isa", None)) not in _ACROSS_KERNELS:
        _refuse(name, f"the layout of vLLM's CPU kernel {kernel!r} is not known")
    if backend != _ACROSS and backend not in _PIECES:
        _refuse(name, f"the layout of attention backend {backend} is not known")
    shape, strides, size = tuple(cache.shape), cache.stride(), cache.element_size()
    if len(shape) != 4 or strides[3] != 1 or size not in (1, 2, 4):
        _refuse(name, f"its tensor is {cache.dtype} {shape} with strides {strides}")
    blocks, heads, tokens, width = shape
    if block_tokens % tokens:
        _refuse(name, f"blocks of {block_tokens} tokens are not made of blocks of {tokens}")
    across = backend == _ACROSS
    if across and (width % 2 or strides[2] != width or strides[1] != tokens * width):
        _refuse(name, f"its blocks {shape} are not contiguous (strides {strides})")
    return KvLayer(
        name=name,
        group=group,
        cache=cache,
        keys_across=across,
        blocks=blocks,
        block_tokens=tokens,
        block_stride=strides[0] * size,
        heads=heads,
        head_stride=(strides[1] if heads > 1 else width) * size,
        token_stride=strides[2] * size,
        piece_bytes=width * size,
        itemsize=size,
    )


def _refuse(layer: str, reason: str) -> NoReturn:
    raise ClusterError(
        f"checkpoint.stores must be 0 for this model: the KV cache of {layer} cannot be copied "
        f"token by token: {reason}"
    )
