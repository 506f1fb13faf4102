"""The certificate of a run (`cluster.tls`): made by the head, which alone has the key, in memory.

`wire/tls.py` says how it is used.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from tarragon_hpc.cluster.directory import Directory
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.wire import tls

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

CERTIFICATE = "certificate.pem"

# It is known by its key, not by its dates; no clock is as wrong as that.
_BEFORE = datetime.timedelta(days=365)
_AFTER = datetime.timedelta(days=3650)


def make_certificate() -> tuple[str, str]:
    """A certificate and its key, both PEM."""
    # Only the head of a run with TLS needs them.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, tls.NAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _AFTER)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(tls.NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), secret.decode()


def issue(run_dir: Path) -> ssl.SSLContext:
    """Make a run's certificate, put it into the run directory; returns the head's end of TLS."""
    certificate, key = make_certificate()
    Directory(run_dir).write(CERTIFICATE, certificate.encode())
    return tls.server_context(certificate, key)


def run_tls(run_dir: Path, *, required: bool = False) -> ssl.SSLContext | None:
    """How to talk to the head of a run in TLS, None if it has no certificate.

    Raises ConfigError if the file cannot be used, or is missing though `required`.
    """
    path = run_dir / CERTIFICATE
    try:
        return tls.client_context(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        if required:
            raise ConfigError(str(path), "is missing, and cluster.tls is on") from None
        return None
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from None
    except ValueError:
        raise ConfigError(str(path), "does not hold a certificate") from None
