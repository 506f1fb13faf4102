"""What the steps of these tests run: says who and where it is, then waits for its end.

SIGTERM ends it with status 3. Arguments are those of `tarragon_hpc.cluster.entry`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

signal.signal(signal.SIGTERM, lambda number, frame: os._exit(3))
log = sys.argv[sys.argv.index("--log") + 1]
names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES", "MINE")
told = {name: os.environ.get(name) for name in names}
with open(f"{log}.part", "w") as file:
    json.dump(told | {"pid": os.getpid(), "argv": sys.argv[1:]}, file)
os.rename(f"{log}.part", log)
time.sleep(120)
