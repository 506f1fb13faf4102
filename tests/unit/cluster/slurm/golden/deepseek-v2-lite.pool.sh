#!/bin/bash
#SBATCH --job-name=tarragon-deepseek-v2-lite
#SBATCH --output=tarragon-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR2@180
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --no-requeue
#SBATCH --no-kill

exec /opt/tarragon/bin/python -u -m tarragon_hpc.cli head --new - <<'CONFIG'
model:
  path: deepseek-v2-lite
  max_model_len: 8192
cluster:
  backend: slurm
  slurm:
    topology: pool
gateway:
  port: 8000
CONFIG
