"""Mistakes of the person at the keyboard: exit status 2 and one line that says what is allowed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path


def serve(directory: Path, config: object, *extra: str) -> str:
    """Run `tarragon serve`; assert exit status 2 and return its one line."""
    file = directory / "config.yaml"
    file.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    command = [sys.executable, "-m", "tarragon_hpc.cli", "serve", str(file), *extra]
    command += ["--set", f"run.root={directory / 'runs'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def model(tiny_models):
    return tiny_models("mixtral")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modle": {}}, ["modle", "unknown key", "model"]),
        ({"attention": {"worker": 2}}, ["attention.worker", "'workers'", "max_num_seqs"]),
        ({"attention": {"workers": "many"}}, ["attention.workers", "many", "integer"]),
        ({"attention": {"workers": 0}}, ["attention.workers", "0", "1"]),
        ({"model": {"dtype": "fp8"}}, ["model.dtype", "fp8", "bfloat16"]),
        ({"experts": {"workers": 9}}, ["experts.workers", "9", "8"]),
        ({"experts": {"workers": 1, "placement": {"ew0": [0, 1]}}}, ["experts.placement", "2"]),
        ({"experts": {"workers": 1, "placement": {"ew0": [99]}}}, ["experts.placement", "99"]),
        ({"experts": {"workers": 1, "placement": {"xx": [0]}}}, ["experts.placement", "xx"]),
        ({"checkpoint": {"stores": 65}}, ["checkpoint.stores", "65", "64"]),
        ({"checkpoint": {"stores": 1, "replicas": 2}}, ["checkpoint.replicas", "stores", "1"]),
        ({"transport": {"kind": "carrier-pigeon"}}, ["transport.kind", "shm"]),
        ({"gateway": {"port": 70000}}, ["gateway.port", "70000", "65535"]),
    ],
)
def test_bad_configuration(change, words, model, tmp_path):
    config = {"model": {"path": str(model)}}
    for section, values in change.items():
        config[section] = {**config.get(section, {}), **values}
    line = serve(tmp_path, config)
    assert all(word in line for word in words), line


def test_bad_model_directories(model, tmp_path):
    assert "nowhere" in serve(tmp_path, {"model": {"path": str(tmp_path / "nowhere")}})
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "config.json" in serve(tmp_path, {"model": {"path": str(empty)}})
    dense = tmp_path / "dense"
    dense.mkdir()
    (dense / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    line = serve(tmp_path, {"model": {"path": str(dense)}})
    assert "llama" in line
    assert "mixtral" in line


def test_not_a_configuration(tmp_path):
    assert "YAML" in serve(tmp_path, "model: [unclosed")
    assert "model" in serve(tmp_path, "just text")
    assert "--set" in serve(tmp_path, {"model": {"path": "x"}}, "--set", "no-equals-sign")


def test_port_in_use(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = serve(tmp_path, {"model": {"path": str(model)}, "gateway": {"port": port}})
    assert "gateway.port" in line
    assert str(port) in line
    assert "in use" in line
