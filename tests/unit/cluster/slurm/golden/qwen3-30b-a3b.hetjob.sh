#!/bin/bash
#SBATCH --job-name=tarragon-qwen3-30b-a3b
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
#SBATCH --nodes=5
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --no-requeue
#SBATCH --no-kill

exec /opt/tarragon/bin/python -u -m tarragon_hpc.cli head --new - <<'CONFIG'
model:
  path: qwen3-30b-a3b
  max_model_len: 16384
attention:
  max_num_seqs: 128
experts:
  workers: 4
cluster:
  backend: slurm
  slurm:
    topology: hetjob
gateway:
  port: 8000
CONFIG
