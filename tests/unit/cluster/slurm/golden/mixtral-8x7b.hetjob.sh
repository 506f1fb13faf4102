#!/bin/bash
#SBATCH --job-name=tarragon-mixtral-8x7b-instruct
#SBATCH --output=tarragon-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR2@180
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --no-requeue
#SBATCH --no-kill
#SBATCH hetjob
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --no-requeue
#SBATCH --no-kill
#SBATCH hetjob
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --no-requeue
#SBATCH --no-kill

exec /opt/tarragon/bin/python -u -m tarragon_hpc.cli head --new - <<'CONFIG'
model:
  path: mixtral-8x7b-instruct
  max_model_len: 8192
cluster:
  backend: slurm
  slurm:
    topology: hetjob
gateway:
  port: 8000
CONFIG
