"""Reference tokens, from real engines in a process of their own.

    python oracle.py vllm|transformers MODEL PROMPTS.json OUT.json NEW_TOKENS

PROMPTS is a list of token-id lists; OUT gets the list of generated token-id lists: greedy, fp32,
end-of-sequence ignored.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def by_vllm(model: str, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Plain vLLM, nothing of ours loaded."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=model,
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=256 << 20,
        max_num_seqs=64,
        # CPU + MLA + eager: the C++ rotary embedding of vLLM 0.32 gives wrong results.
        compilation_config={"custom_ops": ["all", "-rotary_embedding"]},
        disable_log_stats=True,
    )
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [list(o.outputs[0].token_ids) for o in outputs]


def by_transformers(model: str, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Hugging Face transformers' generate, one prompt at a time (no padding)."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # tiny matrices: a second thread costs more than it does
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    results = []
    for ids in prompts:
        tensor = torch.tensor([ids])
        out = network.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        results.append(out[0, len(ids) :].tolist())
    return results


if __name__ == "__main__":
    which, model, prompts_file, out_file, new_tokens = sys.argv[1:]
    prompts = json.loads(Path(prompts_file).read_text())
    run = {"vllm": by_vllm, "transformers": by_transformers}[which]
    Path(out_file).write_text(json.dumps(run(model, prompts, int(new_tokens))))
