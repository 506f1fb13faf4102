"""Plain vLLM in a process of its own: the baseline of the benches. Nothing of ours is loaded.

Reads one JSON object a line, `{"prompts": [[ids]], "new_tokens": n}`, and answers each with
`{"seconds": s, "tokens": n, "token_ids": [[ids]]}`: all prompts at once, greedy, end-of-sequence
ignored. The first line it prints is `{"ready": seconds}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Entry point of `python -m tarragon_hpc.attention.plain`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cpus", help="CPUs to run on, e.g. 0,1")
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--kv-cache-bytes", type=int, default=512 << 20)
    options = parser.parse_args()
    if options.cpus:
        cpus = [int(c) for c in options.cpus.split(",")]
        os.sched_setaffinity(0, cpus)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = options.cpus
        os.environ["OMP_NUM_THREADS"] = str(len(cpus))
    # Protocol on the real stdout; whatever the engine prints goes to stderr.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    start = time.perf_counter()
    engine = _engine(options)
    print(json.dumps({"ready": time.perf_counter() - start}), file=out)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_run(engine, **request)), file=out)  # noqa: T201


def _engine(options: argparse.Namespace) -> Any:
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    from vllm import EngineArgs, LLMEngine

    return LLMEngine.from_engine_args(
        EngineArgs(
            model=options.model,
            dtype=options.dtype,
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_num_seqs=options.max_num_seqs,
            kv_cache_memory_bytes=options.kv_cache_bytes,
            compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
            disable_log_stats=True,
        )
    )


def _run(engine: Any, *, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    for i, ids in enumerate(prompts):
        engine.add_request(str(i), {"prompt_token_ids": ids}, params)
    done: dict[int, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                done[int(output.request_id)] = list(output.outputs[0].token_ids)
    seconds = time.perf_counter() - start
    token_ids = [done[i] for i in range(len(prompts))]
    return {"seconds": seconds, "tokens": sum(map(len, token_ids)), "token_ids": token_ids}


if __name__ == "__main__":
    main()
