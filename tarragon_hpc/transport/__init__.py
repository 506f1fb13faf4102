"""Point-to-point data plane between workers. The contract is in `base.py`."""
