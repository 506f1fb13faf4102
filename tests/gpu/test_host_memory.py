"""CUDA tensors on their way to the REFE and back."""

import pytest

pytestmark = pytest.mark.gpu


def test_rows_go_to_pinned_memory_and_come_back_in_stream_order():
    import torch

    from tarragon_hpc.attention.host_memory import PinnedMemory

    memory = PinnedMemory(max_rows=64, hidden=32, top_k=2, dtype=torch.bfloat16)
    for rows in (1, 48, 64):  # the buffers are reused
        hidden = torch.randn(64, 32, dtype=torch.bfloat16, device="cuda")
        ids = torch.randint(0, 8, (64, 2), device="cuda")
        weights = torch.rand(64, 2, device="cuda")
        staged = memory.stage(hidden, ids, weights, rows)
        assert torch.equal(staged.hidden, hidden[:rows].cpu())
        assert torch.equal(staged.topk_ids, ids[:rows].to(torch.int32).cpu())
        assert torch.equal(staged.topk_weights, weights[:rows].cpu())
        staged.out.copy_(2 * staged.hidden)
        out = memory.deliver(staged, hidden, rows)
        assert torch.equal(out[:rows], 2 * hidden[:rows])
        assert not out[rows:].any()
