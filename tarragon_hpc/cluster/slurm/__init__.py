"""Workers as steps and jobs of Slurm: submission, allocation, replacement, the way to the end."""
