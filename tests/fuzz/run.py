"""Coverage-guided fuzzing of every target: `python -m tests.fuzz.run SECONDS [TARGET …]`.

Each target runs in a process of its own for its share of the time, from its seeds and its corpus.
What reaches new code is kept in build/fuzz/TARGET, so that the next run goes on from there; an
input that a parser does not bear is written to build/fuzz/findings. The native module runs as it
was built: one built with CXXFLAGS=-fsanitize=address needs LD_PRELOAD=libasan.so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "fuzz"
FINDINGS = WORK / "findings"
CORPUS = Path(__file__).with_name("corpus")
MAX_BYTES = 4096


def fuzz_all(seconds: float, names: list[str]) -> int:
    """Number of targets with a finding."""
    FINDINGS.mkdir(parents=True, exist_ok=True)
    share = max(1, round(seconds / len(names)))
    failed = []
    for name in names:
        log = WORK / f"{name}.log"
        with log.open("wb") as output:
            command = [sys.executable, "-m", "tests.fuzz.run", "--one", name, str(share)]
            done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        lines = log.read_text(errors="replace").splitlines()
        runs = next((line for line in reversed(lines) if line.startswith(("Done ", "#"))), "")
        print(f"{name}: {'ok' if done.returncode == 0 else 'FINDING'}: {runs}", flush=True)
        if done.returncode:
            failed.append(name)
            print("\n".join(f"  | {line}" for line in lines[-40:]), flush=True)
    print(f"{len(names)} targets, {len(failed)} with findings {' '.join(failed)}")
    return len(failed)


def fuzz_one(name: str, seconds: str) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["tarragon_hpc"]):
        from tests.fuzz.target import all_targets

        target = all_targets()[name]
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed{number}").write_bytes(seed)
    folders = [str(folder)] + [str(p) for p in [CORPUS / name] if p.is_dir()]
    limits = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-timeout=10"]
    limits += ["-rss_limit_mb=4096", f"-artifact_prefix={FINDINGS}/{name}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *folders], target.run)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Exit status: 1 if there was a finding."""
    if arguments[:1] == ["--one"]:
        fuzz_one(*arguments[1:3])
    from tests.fuzz.target import all_targets

    known = list(all_targets())
    if not arguments or not arguments[0].isdecimal() or not int(arguments[0]):
        print("usage: python -m tests.fuzz.run SECONDS [TARGET …]", file=sys.stderr)
        return 2
    wrong = [name for name in arguments[1:] if name not in known]
    if wrong:
        print(f"{wrong[0]}: no such target; there are {', '.join(known)}", file=sys.stderr)
        return 2
    os.environ.setdefault("PYTHONHASHSEED", "0")
    return 1 if fuzz_all(int(arguments[0]), arguments[1:] or known) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
