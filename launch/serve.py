"""Serve a model on Slurm from a script of your own: copy this file and change what you like.

    python launch/serve.py my-model --site my-cluster --aws 4 --ews 4

It does what `tarragon serve CONFIG --site NAME --wait` does, with the configuration in Python, and
then sends a first request to the service. The run goes on when this program ends.
"""

from __future__ import annotations

import argparse

import httpx

from tarragon_hpc.cli.head import run_head
from tarragon_hpc.cli.waiting import wait
from tarragon_hpc.cluster.slurm.begin import begin
from tarragon_hpc.cluster.slurm.checks import prepared
from tarragon_hpc.cluster.work import Work
from tarragon_hpc.config import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="directory of the checkpoint")
    parser.add_argument("--site", help="name or file, see slurm/sites")
    parser.add_argument("--aws", type=int, default=2, help="attention workers")
    parser.add_argument("--ews", type=int, default=2, help="expert workers")
    parser.add_argument("--time", default="4:00:00")
    args = parser.parse_args()

    config = load_config(
        {
            "model": {"path": args.model},
            "attention": {"workers": args.aws},
            # Every expert is on two EWs: the loss of one is not noticed.
            "experts": {"workers": args.ews, "shadows": 1},
            # What the AWs' requests need is kept elsewhere, too.
            "checkpoint": {"stores": 1, "memory": "4GiB"},
            "gateway": {"host": "0.0.0.0", "port": 0},
            "cluster": {"backend": "slurm", "slurm": {"time": args.time, "spares": 1}},
        },
        site=args.site,
    )
    run_dir, job = begin(prepared(config), Work("serve"), run_head)
    print(f"job {job.job}, run {run_dir}")

    status = wait(run_dir, "serving")
    if status is None:  # Ctrl-C; the job is still there
        return
    print(f"ready: {status['endpoint']}")
    answer = httpx.post(
        f"{status['endpoint']}/completions",
        json={"prompt": "Once upon a time", "max_tokens": 32},
        timeout=120,
    )
    print(answer.raise_for_status().json()["choices"][0]["text"])


if __name__ == "__main__":
    main()
