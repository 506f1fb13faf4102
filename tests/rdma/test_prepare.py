"""A machine that cannot boot the guest, and what goes into it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.rdma import prepare

PACKAGES = ["qemu-system-x86", "busybox-static", "iproute2"]


def pytest_run(monkeypatch, **env):
    """Of a test that needs the guest, without the programs in PATH."""
    for name, value in ({"PATH": "/nowhere"} | env).items():
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/rdma/test_vm.py",
    ]
    done = subprocess.run([*command, "-k", "status"], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout


def test_without_its_programs_the_tests_fail_and_say_what_to_install(monkeypatch):
    status, output = pytest_run(monkeypatch, TARRAGON_NO_GUEST="")
    assert status == 1
    assert f"Debian's packages {', '.join(PACKAGES)}" in output
    assert "prepare.py --install" in output


def test_they_are_left_out_only_when_told_and_the_summary_says_so(monkeypatch):
    status, output = pytest_run(monkeypatch, TARRAGON_NO_GUEST="1")
    assert status == 0
    assert "TARRAGON_NO_GUEST=1: RDMA, and TCP over a slow wire, were not tested" in output


def test_a_busybox_that_needs_libraries_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "busybox").write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2")
    (tmp_path / "busybox").chmod(0o755)
    assert "busybox-static" in prepare.missing()


def test_pyverbs_of_another_python(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "missing", list)
    monkeypatch.setattr(prepare, "PYVERBS", tmp_path)
    (tmp_path / "device.cpython-399-x86_64-linux-gnu.so").touch()
    with pytest.raises(prepare.Unprepared, match="is for another Python than this one: .*-399-"):
        prepare.prepare()


def test_modules_come_after_those_they_need():
    modules = {
        "rdma_rxe": b"\0license=GPL\0depends=ib_core,udp-tunnel\0name=rdma_rxe\0",
        "ib_core": b"\0depends=\0",
        "udp_tunnel": b"\0depends=ib_core\0",
        "other": b"\0depends=rdma_rxe\0",
    }
    found = prepare._in_order(["rdma_rxe", "built_in"], modules)
    assert found == ["ib_core", "udp_tunnel", "rdma_rxe"]
