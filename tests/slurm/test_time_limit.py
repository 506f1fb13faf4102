"""A real time limit under real vLLM: streams go on in the next job, from the KV of the last one."""

from __future__ import annotations

import threading

import pytest

from slurm.testcluster.cluster import wait
from tests.slurm.service import config_for, serving
from tests.slurm.streams import Resumable

pytestmark = [pytest.mark.long, pytest.mark.vllm, pytest.mark.timeout(600)]

PROMPTS = [[5, 6, 7], list(range(20, 110)), [9], list(range(300, 340))]
NEW_TOKENS = 400


class Asking(threading.Thread):
    """A client that asks the same again and again, until it is told to stop."""

    def __init__(self, run, prompt, over):
        super().__init__(daemon=True)
        self.run_, self.prompt, self.over = run, prompt, over
        self.streams = []

    def run(self):
        while not self.over.is_set():
            stream = Resumable(self.run_, self.prompt, NEW_TOKENS, 300)
            self.streams.append(stream)
            stream.run()


def test_streams_over_a_time_limit(cluster, tiny_models, tmp_path):
    config = config_for(
        tiny_models("mixtral"),
        checkpoint={"restore": "always"},
        gateway={"resume_s": 120},
        cluster={
            "drain_timeout_s": 0.3,
            "slurm": {
                # Slurm counts in minutes, and tells of the end up to one earlier than it was asked.
                "time": "3",
                "signal_s": 60,
                "on_timelimit": "chain",
                "standby_head": False,
                "warm_spares": False,
                "nodes": {"gpus_per_node": 2, "cpus_per_slot": 2, "nodes": 2},
                "spares": 0,
            },
        },
    )
    with serving(cluster, config, tmp_path, state=None) as run:
        first = run.job
        over = threading.Event()
        clients = [Asking(run, prompt, over) for prompt in PROMPTS]
        for client in clients:
            client.start()
        wait(lambda: run.told("handover began"), 200, "the limit")
        assert run.told("handover began")[0]["reason"] == "the job's time limit is near"
        over.set()
        for client in clients:
            client.join(200)
        assert run.job != first
        for client in clients:
            assert [stream.problem for stream in client.streams if stream.problem] == []
            # Greedy: the first answer, long before the limit, is what all have to be.
            answers = {tuple(stream.tokens) for stream in client.streams}
            assert {len(tokens) for tokens in answers} == {NEW_TOKENS}
            assert len(answers) == 1
        across = sum(stream.handed_over for client in clients for stream in client.streams)
        assert across, "no stream met the limit"
        (saved,) = run.told("kv saved")
        assert saved["requests"]
        resumed = run.told("request resumed")
        assert [line["restored"] > 0 for line in resumed] == [True] * saved["requests"]
