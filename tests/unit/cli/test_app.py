"""The command line as a user meets it, in fresh processes where that matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tarragon_hpc.cli import main

HEAVY = {
    "torch",
    "vllm",
    "transformers",
    "numpy",
    "fastapi",
    "httpx",
    "yaml",
    "msgspec",
}


ROOT = Path(__file__).parents[3]


def python(*arguments, cwd=ROOT):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, cwd=cwd)


def tarragon(*arguments, cwd=ROOT):
    return python("-m", "tarragon_hpc.cli", *arguments, cwd=cwd)


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["bench", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    script = (
        f"import sys; sys.argv[1:] = {arguments}\n"
        "from tarragon_hpc.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(); print(end.code, *sys.modules)"
    )
    done = python("-c", script)
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0"
    assert not HEAVY & {m.split(".")[0] for m in modules}


def test_all_commands_are_there():
    text = tarragon("--help").stdout
    commands = (
        "doctor serve generate render resume status logs coverage scale chaos stop model bench"
    )
    for command in commands.split():
        assert f"│ {command} " in text


def test_version():
    from tarragon_hpc import __version__

    assert tarragon("--version").stdout == f"tarragon {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve"], "CONFIG: name a file, or give at least --set model.path=DIR"),
        (["serve", "missing.yaml"], "missing.yaml: No such file or directory"),
        (["serve", "--set", "model.path=missing"], "missing"),
        (["serve", "--set", "modle.path=x"], "modle: unknown key; did you mean 'model'?"),
        (["serve", "--set", "model.path=x", "--set", "a"], "--set: 'a': expected KEY.SUBKEY=VALUE"),
        (["generate", "--set", "model.path=x", "-i", "no.jsonl", "-o", "o"], "no.jsonl: No such"),
        (["generate", "--set", "model.path=x", "-i", "a", "-o", "a"], "is also the input"),
        (["serve", "--set", "model.path=x", "--site", "mars"], "slurm.site: 'mars': no file mars."),
        (["render"], "CONFIG: name a file, or give at least --set model.path=DIR"),
        (["render", "--set", "model.path=missing"], "missing"),
        (["render", "--set", "model.path=x", "-i", "a"], "--input, --output: a batch needs both"),
        (["resume", "--root", "."], "RUN: no run under"),
        (["head"], "head: takes a run's directory, or --new CONFIG"),
        (["head", "--new", "x.yaml"], "head --new: is for a job of Slurm"),
        (["status", "--root", "."], "RUN: no run under"),
        (["logs", "aw0", "--root", "."], "RUN: no run under"),
        (["stop", "some-run", "--root", "."], "RUN: 'some-run' is neither a run under"),
        (["coverage", "--root", "."], "RUN: no run under"),
        (["scale", "ew=3", "--root", "."], "RUN: no run under"),
        (["scale", "some-run", "ew=3", "--root", "."], "RUN: 'some-run' is neither a run under"),
        (["scale", "ew=x"], "ew=x: must be a number of workers, 1 or more"),
        (["chaos", "kill", "ew1", "--root", "."], "RUN: no run under"),
        (["chaos", "maim", "ew1"], "FAULT: 'maim' is not one of kill, stop, cont, slow"),
        (["chaos", "--mtbf", "5", "--faults", "kill,x"], "--faults: 'x' is not one of kill, stop"),
        (["chaos", "--mtbf", "5", "--roles", "xs"], "--roles: 'xs' is not one of aw, ew, cs"),
        (["bench", "failover", "--fault", "x"], "--fault: 'x' is not one of kill, stop, slow"),
        (["model", "tiny", "llama", "dir"], "family 'llama': allowed are mixtral"),
        (
            ["model", "tiny", "mixtral", "d", "--hidden", "7"],
            "--hidden 7: allowed is a multiple of",
        ),
    ],
)
def test_mistakes_are_one_line_and_exit_status_2(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tarragon", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capsys.readouterr()
    assert end.value.code == 2
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = tarragon("serve", "missing.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: missing.yaml: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments", [["serv"], ["serve", "--port", "1"], ["generate"], ["stop", "--drain", "-1"]]
)
def test_unknown_commands_and_options_exit_with_status_2(arguments):
    done = tarragon(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_model_tiny_writes_a_checkpoint(tmp_path):
    target = tmp_path / "model"
    size = ["--layers", "1", "--hidden", "64", "--experts", "2", "--vocab", "512", "--ffn", "32"]
    done = tarragon("model", "tiny", "mixtral", str(target), *size, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{target}: mixtral, ")
    config = json.loads((target / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"], config["dtype"]) == (
        1,
        64,
        "bfloat16",
    )
