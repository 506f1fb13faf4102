"""Attention workers (AW): vLLM with KV cache, its experts elsewhere (DESIGN §7)."""
