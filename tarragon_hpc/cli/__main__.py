"""`python -m tarragon_hpc.cli` is `tarragon`."""

from tarragon_hpc.cli import main

main()
