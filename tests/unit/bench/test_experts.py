"""The expert benchmark: what it returns and prints (not how fast anything is)."""

from __future__ import annotations

import pytest

from tarragon_hpc import native
from tarragon_hpc.bench import experts
from tarragon_hpc.errors import UserError

SMALL = {"hidden": 32, "ffn": 64, "repeats": 1, "cold_bytes": 1}


@pytest.fixture
def installed(monkeypatch):
    """Which packages the benchmark finds."""

    def only(*names):
        monkeypatch.setattr(experts, "find_spec", lambda name: name if name in names else None)

    return only


@pytest.mark.native
def test_the_native_kernel_alone(installed, capsys):
    installed()
    result = experts.run(**SMALL)
    assert len(result["rows"]) == 2 * len(experts.ROWS) * 2
    assert {r["contender"] for r in result["rows"]} == {"native"}
    assert all(0 < r["best_us"] <= r["us"] for r in result["rows"])
    assert set(result["summary"]) == {
        "memory_read_gb_s",
        "read_gb_s_bfloat16_1",
        "read_gb_s_float32_1",
    }
    assert "hidden 32, ffn 64, bfloat16" in " ".join(capsys.readouterr().out.split())


@pytest.mark.native
def test_beside_torch(installed):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    installed("torch")
    try:
        result = experts.run(**SMALL)
    finally:
        torch.set_num_threads(before)
    for dtype in ("bfloat16", "float32"):
        for m in experts.ROWS:
            by = {
                (r["contender"], r["kind"]): r["us"]
                for r in result["rows"]
                if (r["dtype"], r["rows"]) == (dtype, m)
            }
            ratio = result["summary"][f"torch_over_native_{dtype}_cold_{m}"]
            assert ratio == pytest.approx(by["torch", "cold"] / by["native", "cold"])


def test_without_the_native_kernel(monkeypatch):
    monkeypatch.setattr(native, "reason", "not compiled")
    with pytest.raises(UserError, match="not compiled"):
        experts.run()
