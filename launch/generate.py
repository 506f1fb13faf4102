"""Answer files of requests on Slurm, a job each: copy this file and change what you like.

    python launch/generate.py my-model requests/*.jsonl --out results --site my-cluster

It does what `tarragon generate CONFIG -i FILE -o FILE` does, for many files. Jobs that meet their
time limit are followed by the next one, which goes on; call it again for what is not done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tarragon_hpc.cli.batch import make_work
from tarragon_hpc.cli.head import run_head
from tarragon_hpc.cluster.slurm.begin import begin
from tarragon_hpc.cluster.slurm.checks import prepared
from tarragon_hpc.config import load_config
from tarragon_hpc.generate.inputs import read_requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory of the checkpoint")
    parser.add_argument("files", type=Path, nargs="+", help="requests, as JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--site", help="name or file, see slurm/sites")
    parser.add_argument("--time", default="4:00:00")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    for file in args.files:
        count = len(read_requests(str(file)))
        target = args.out / file.name
        config = load_config(
            {
                "model": {"path": args.model},
                "experts": {"shadows": 1},
                "checkpoint": {"stores": 1, "memory": "4GiB"},
                "gateway": {"host": "127.0.0.1", "port": 0},
                "cluster": {
                    "backend": "slurm",
                    "slurm": {"time": args.time, "on_timelimit": "chain"},
                },
                "run": {"name": file.stem},
            },
            site=args.site,
        )
        run_dir, job = begin(prepared(config), make_work(str(file), str(target)), run_head)
        print(f"{file}: {count} requests, job {job.job}, run {run_dir.name}")


if __name__ == "__main__":
    main()
