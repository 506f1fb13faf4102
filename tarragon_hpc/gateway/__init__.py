"""The OpenAI-compatible HTTP front door: sessions, token log, text. No torch, no engine."""
