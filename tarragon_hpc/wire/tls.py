"""TLS of control connections: one certificate a run, signed by itself and known to both ends.

The certificate lies in the run directory, so a peer either has it or does not belong to the run;
names and authorities play no part. The challenge of `auth.py` goes on inside, and shows the server
in turn that the client belongs here.
"""

from __future__ import annotations

import os
import ssl

from tarragon_hpc.errors import AuthError

NAME = "tarragon-head"  # whatever the host is called


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """The head's end, from PEM texts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # OpenSSL reads keys from files only; this one has no name and no place on a disk.
    fd = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(fd, (key + certificate).encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    return context


def client_context(certificate: str) -> ssl.SSLContext:
    """The end of workers and clients, from the run's certificate (PEM). Raises ValueError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=certificate)
    except ssl.SSLError as error:
        raise ValueError(f"no certificate: {error.reason}") from None
    return context


def refusal(error: ssl.SSLError) -> AuthError:
    """What an error of TLS says about the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthError("the server does not have the run's certificate")
    return AuthError(f"the peer does not speak TLS 1.3 ({error.reason or error})")
