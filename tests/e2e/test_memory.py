"""Experts really live elsewhere: the AW never holds them, an EW maps only its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tarragon_hpc.bench.service import serving
from tarragon_hpc.models.tiny import write_tiny

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

LAYERS, HIDDEN, FFN, EXPERTS = 4, 512, 2048, 8
EXPERT_BYTES = LAYERS * EXPERTS * 3 * HIDDEN * FFN * 4


def resident(pid: int) -> int:
    """Bytes of a process that are not shared with a file that others could map as well."""
    memory = psutil.Process(pid).memory_full_info()
    return memory.uss


def weight_pages(pid: int, model: Path) -> int:
    """Resident bytes of the checkpoint's files in a process."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = str(model) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def test_memory_of_each_role(tmp_path):
    model = tmp_path / "model"
    write_tiny("mixtral", model, layers=LAYERS, hidden=HIDDEN, ffn=FFN, experts=EXPERTS)
    command = [sys.executable, "-m", "tarragon_hpc.attention.plain", str(model)]
    command += ["--dtype", "float32", "--kv-cache-bytes", str(128 << 20)]
    plain = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        plain.stdout.readline()
        plain.stdin.write('{"prompts": [[1, 2, 3]], "new_tokens": 8}\n')
        plain.stdin.flush()
        plain.stdout.readline()
        monolithic = resident(plain.pid)
    finally:
        plain.stdin.close()
        plain.wait(30)
        plain.stdout.close()
    config = {
        "model": {"path": str(model), "served_name": "m", "dtype": "float32"},
        "attention": {"workers": 1, "kv_cache": "128MiB"},
        "experts": {"workers": 2, "placement": {"ew0": [0, 1, 2, 3, 4, 5], "ew1": [6, 7]}},
        "gateway": {"port": 0},
    }
    with serving(config, tmp_path / "service") as service:
        body = {"model": "m", "prompt": list(range(3, 203)), "max_tokens": 8, "ignore_eos": True}
        httpx.post(f"{service.endpoint}/completions", json=body, timeout=60).raise_for_status()
        pids = {w["id"]: w["pid"] for w in service.status()["workers"]}
        attention = resident(pids["aw0"])
        pages = {name: weight_pages(pids[name], model) for name in ("ew0", "ew1")}
    assert monolithic - attention >= 0.9 * EXPERT_BYTES
    for name, share in (("ew0", 6 / 8), ("ew1", 2 / 8)):
        assert pages[name] <= 1.05 * share * EXPERT_BYTES, pages
        assert pages[name] >= 0.9 * share * EXPERT_BYTES, pages
