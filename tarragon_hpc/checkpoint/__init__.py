"""KV segments off the AWs: ledger, store, and the AW's side of both."""
