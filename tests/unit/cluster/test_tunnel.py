from __future__ import annotations

import pytest

from tarragon_hpc.cluster.tunnel import is_loopback, tunnel

LOGIN = "ann@login1.example.org"


@pytest.mark.parametrize(
    ("endpoint", "line"),
    [
        # The loopback of a compute node: only from that node itself.
        (
            "http://127.0.0.1:40123/v1",
            f"ssh -N -L 40123:127.0.0.1:40123 -J {LOGIN} ann@n7",
        ),
        ("http://localhost:8000/v1", f"ssh -N -L 8000:localhost:8000 -J {LOGIN} ann@n7"),
        ("http://[::1]:8000/v1", f"ssh -N -L 8000:[::1]:8000 -J {LOGIN} ann@n7"),
        # An address of the cluster's network: the login node reaches it.
        ("http://n7:8000/v1", f"ssh -N -L 8000:n7:8000 {LOGIN}"),
        ("https://10.1.0.7:8443/v1", f"ssh -N -L 8443:10.1.0.7:8443 {LOGIN}"),
        ("https://[fd00::7]:8443/v1", f"ssh -N -L 8443:[fd00::7]:8443 {LOGIN}"),
        ("https://n7/v1", f"ssh -N -L 443:n7:443 {LOGIN}"),
    ],
)
def test_lines(endpoint, line):
    assert tunnel(endpoint, "n7", LOGIN) == line


def test_without_a_user_and_on_this_machine():
    assert (
        tunnel("http://127.0.0.1:80/v1", "n7", "login") == "ssh -N -L 80:127.0.0.1:80 -J login n7"
    )
    assert tunnel("http://127.0.0.1:80/v1", "n7", LOGIN, here=True) == (
        f"ssh -N -L 80:127.0.0.1:80 {LOGIN}"
    )


@pytest.mark.parametrize(
    ("host", "is_one"),
    [("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("localhost", True),
     ("10.0.0.1", False), ("n7", False), ("localhost.example.org", False), ("", False)],
)  # fmt: skip
def test_loopback(host, is_one):
    assert is_loopback(host) is is_one
