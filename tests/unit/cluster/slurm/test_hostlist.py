"""Slurm's notation for host names."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.hostlist import compress, expand
from tarragon_hpc.errors import ClusterError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n0", ["n0"]),
        ("n[0-3,7]", ["n0", "n1", "n2", "n3", "n7"]),
        ("n[0-1],login", ["n0", "n1", "login"]),
        ("gpu-[01-03]", ["gpu-01", "gpu-02", "gpu-03"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("r[1-2]n[0-1]", ["r1n0", "r1n1", "r2n0", "r2n1"]),
        ("gpu-[01-02]-ib[1-2]", ["gpu-01-ib1", "gpu-01-ib2", "gpu-02-ib1", "gpu-02-ib2"]),
        ("[1-3]", ["1", "2", "3"]),
        ("a.b-c_d", ["a.b-c_d"]),
        ("n1,n1,n[0-1]", ["n1", "n0"]),
    ],
)
def test_names(text, names):
    assert list(expand(text)) == names


@pytest.mark.parametrize(
    "text",
    ["", "n[", "n]", "n[1", "n[]", "n[3-1]", "n[a-b]", "n[1-]", "n[-3]", "n 1", "a,,b", ",a",
     "n[1]]", "n[[1]]", "(null)", "n[0-99999999]", "a[0-999]b[0-999]", "$HOME", "n[1,]"],
)  # fmt: skip
def test_nonsense_is_an_error_and_never_this_host(text):
    with pytest.raises(ClusterError, match="node list"):
        expand(text)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["n0"], "n0"),
        (["n0", "n1", "n2", "n7"], "n[0-2,7]"),
        (["n9", "n10"], "n[9-10]"),
        (["gpu01", "gpu02", "gpu10"], "gpu[01-02,10]"),
        (["login", "n1"], "login,n1"),
        (["a1", "b1"], "a1,b1"),
        (["n2", "n1", "n2"], "n[1-2]"),
    ],
)
def test_names_in_one_text(names, text):
    assert compress(names) == text
    assert set(expand(text)) == set(names)
