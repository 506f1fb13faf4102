"""The head's decisions: journal → apply → plan → actions. Pure but for `journal` and `service`."""
