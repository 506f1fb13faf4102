"""Workers from fork servers and workers started as programs: the same tokens, the same threads."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tarragon_hpc.bench.service import serving
from tests.e2e.conftest import make_prompts
from tests.e2e.test_identity import complete_all, config_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]


def test_forked_workers_do_what_others_do(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # as in fork servers: threads are counted
    model = tiny_models("mixtral")
    vocab = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = make_prompts(vocab)[:8]
    seen = {}
    for forked in (True, False):
        config = config_for(str(model), 8, 1, 1, None)
        config["cluster"] = {"fork_server": forked}
        config["attention"]["threads"] = 2
        with serving(config, tmp_path / str(forked)) as service:
            tokens = asyncio.run(complete_all(service, prompts))
            status = service.status()
            aw, ew = (Path(f"/proc/{w['pid']}") for w in status["workers"])
            names = [(process / "comm").read_text() for process in (aw, ew)]
            assert (names == ["aw0.1\n", "ew0.1\n"]) == forked
            seen[forked] = tokens, len(list((aw / "task").iterdir()))
        assert not aw.exists()
        assert not ew.exists()
        for log in (service.run_dir / "logs").iterdir():
            assert "Traceback" not in log.read_text()
            assert "WARNING" not in log.read_text()
    assert seen[True] == seen[False]
