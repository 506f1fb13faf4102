"""Checkpoints of random weights that look like the real ones: for tests, demos and benchmarks.

The files are the ones a released checkpoint of the family has (config.json, sharded safetensors
with an index, tokenizer), written by transformers. The weights keep activations of order one
through the layers, so that greedy output wanders over the vocabulary instead of repeating a token.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarragon_hpc.errors import UserError
from tarragon_hpc.models.presets import Size, config_arguments, parse_family, size_for
from tarragon_hpc.models.tokenizer import write_tokenizer

if TYPE_CHECKING:
    from tarragon_hpc.models.spec import Family

_GAIN = 1.5  # of every matrix, over the variance-preserving 1/sqrt(fan-in)
_OFFSET_STD = 0.1  # biases, attention sinks, the router's score correction
_SHARDS = 3


def write_tiny(
    family: Family | str,
    directory: str | Path,
    *,
    seed: int = 0,
    preset: str = "tiny",
    layers: int | None = None,
    hidden: int | None = None,
    ffn: int | None = None,
    experts: int | None = None,
    top_k: int | None = None,
    vocab: int | None = None,
    max_len: int | None = None,
    dtype: str | None = None,
) -> Path:
    """Write a checkpoint with tokenizer into a new or empty directory and return its path.

    None keeps the preset's value. The same arguments give the same bytes. Raises UserError for a
    size that cannot be, a directory that holds other files, or a missing transformers.
    """
    family = parse_family(family)
    size = size_for(
        family, preset, layers=layers, hidden=hidden, ffn=ffn, experts=experts, top_k=top_k,
        vocab=vocab, max_len=max_len, dtype=dtype,
    )  # fmt: skip
    target = Path(directory).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists already; name a new or empty directory")
    try:
        model = _skeleton(family, size)
    except ImportError as error:
        raise UserError(f"writing a checkpoint needs torch and transformers ({error})") from None
    _fill(model, seed, in_out=family == "gpt-oss")
    target.mkdir(parents=True, exist_ok=True)
    _save(model, target)
    write_tokenizer(target, vocab=size.vocab, max_len=size.max_len)
    return target


def _skeleton(family: Family, size: Size) -> Any:
    """A transformers model with memory for its weights, but nothing in it yet."""
    import torch
    import transformers

    prefix, arguments = config_arguments(family, size)
    dtype = getattr(torch, size.dtype)
    config = getattr(transformers, f"{prefix}Config")(**arguments, dtype=dtype)
    model_class = getattr(transformers, f"{prefix}ForCausalLM")
    with torch.device("meta"):
        model = model_class(config)
    return model.to(dtype).to_empty(device="cpu")


def _fill(model: Any, seed: int, *, in_out: bool) -> None:
    """Random weights: norms 1, offsets small, matrices normal with gain / sqrt(fan-in).

    `in_out`: experts are stored as [experts, in, out] and not as [experts, out, in].
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if name.endswith("norm.weight"):
                tensor.fill_(1.0)
                continue
            fan_in = tensor.shape[1 if in_out and tensor.dim() == 3 else -1]
            if tensor.dim() < 2 or name.endswith("bias"):
                std = _OFFSET_STD
            else:
                std = 1.0 if "embed_tokens" in name else _GAIN / math.sqrt(fan_in)
            for part in tensor if tensor.dim() == 3 else [tensor]:  # by expert: less memory
                part.copy_(torch.randn(part.shape, generator=generator) * std)


def _save(model: Any, directory: Path) -> None:
    from transformers.utils import logging

    total = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    talkative = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(directory, max_shard_size=math.ceil(total / _SHARDS))
    finally:
        if talkative:
            logging.enable_progress_bar()
