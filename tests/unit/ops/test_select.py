"""Which backend a worker gets, and what it is told if there is none."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tarragon_hpc import native
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.models.spec import ExpertShape
from tarragon_hpc.ops import select
from tarragon_hpc.ops.reference import random_expert

SHAPE = ExpertShape(hidden=16, ffn=32)
TENSORS = {(0, 0): random_expert(SHAPE, "float32", np.random.default_rng(0))}


@pytest.fixture(autouse=True)
def keep_torch_threads():
    if (torch := sys.modules.get("torch")) is None:
        yield
        return
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def machine(monkeypatch):
    """A machine with or without a GPU, the native module and torch."""

    def make(*, cuda=False, compiled=True, torch=True):
        monkeypatch.setattr(select, "has_cuda", lambda: cuda)
        monkeypatch.setattr(native, "reason", None if compiled else "not compiled")
        monkeypatch.setattr(select, "find_spec", lambda _: object() if torch else None)

    return make


def kind(backend, device=None):
    return repr(select.make_bank(backend, TENSORS, SHAPE, 1, device)).partition("(")[0]


@pytest.mark.native
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_native_without_a_gpu(machine, backend):
    machine()
    assert kind(backend) == "NativeBank"


@pytest.mark.native
def test_native_if_asked_for_although_there_is_a_gpu(machine):
    machine(cuda=True)
    assert kind("native") == "NativeBank"


def test_torch_on_the_cpu(machine):
    pytest.importorskip("torch")
    machine()
    assert kind("torch") == "TorchBank"
    assert kind("auto", "cpu") == "TorchBank"


def test_a_pure_install_falls_back_to_torch_and_says_so(machine, caplog):
    pytest.importorskip("torch")
    machine(compiled=False)
    assert kind("auto") == "TorchBank"
    assert "experts run on torch, slowly: not compiled" in caplog.text


def test_native_that_is_not_there(machine):
    machine(compiled=False)
    with pytest.raises(ConfigError, match="^experts.backend: native is not installed"):
        kind("native")


def test_neither(machine):
    machine(compiled=False, torch=False)
    with pytest.raises(ConfigError, match="^experts.backend: auto: torch is not installed, nor"):
        kind("auto")
    with pytest.raises(ConfigError, match="^experts.backend: torch: torch is not installed"):
        kind("torch")


@pytest.mark.native
def test_the_native_backend_imports_no_torch():
    """Nor does the question whether there is a GPU, on a machine without one."""
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from tarragon_hpc.models.spec import ExpertShape\n"
        "from tarragon_hpc.ops.reference import random_expert\n"
        "from tarragon_hpc.ops.select import make_bank\n"
        "Path.exists = lambda self: False\n"
        "shape = ExpertShape(hidden=16, ffn=32)\n"
        "tensors = {(0, 0): random_expert(shape, 'float32', np.random.default_rng(0))}\n"
        "print(make_bank('auto', tensors, shape, 1), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("NativeBank"), done.stderr
    assert done.stdout.split()[-1] == "False"
