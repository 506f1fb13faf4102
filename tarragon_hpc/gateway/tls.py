"""https for the gateway: the certificate and key of the configuration, checked before a start."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from tarragon_hpc.errors import ConfigError

if TYPE_CHECKING:
    from tarragon_hpc.config import GatewayConfig

_CERTIFICATE = "gateway.tls_certificate"
_KEY = "gateway.tls_key"


def server_context(config: GatewayConfig) -> ssl.SSLContext | None:
    """What the gateway serves with, None: plain HTTP. Raises ConfigError naming the key."""
    if config.tls_certificate is None or config.tls_key is None:
        return None
    check_pair(config.tls_certificate, config.tls_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except ssl.SSLError as error:
        raise ConfigError(
            _CERTIFICATE, f"{config.tls_certificate}: OpenSSL refuses it: {error.reason}"
        ) from None
    return context


def own_client_context(config: GatewayConfig) -> ssl.SSLContext | None:
    """For a client in the head's own process: that certificate and no other, whatever its name."""
    if config.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(config.tls_certificate)
    return context


def check_pair(certificate: str, key: str) -> None:
    """Whether two files are a PEM certificate and its key. Raises ConfigError saying which is not.

    What OpenSSL itself would say names neither the file nor the mistake.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        first = x509.load_pem_x509_certificates(_read(_CERTIFICATE, certificate))[0]
    except ValueError:
        raise ConfigError(_CERTIFICATE, f"{certificate}: is not a PEM certificate") from None
    data = _read(_KEY, key)
    try:
        private = serialization.load_pem_private_key(data, None)
    except TypeError:
        raise ConfigError(_KEY, f"{key}: is encrypted; a plain PEM key is needed") from None
    except ValueError:
        raise ConfigError(_KEY, f"{key}: is not a PEM private key") from None
    if _public(private) != _public(first):
        raise ConfigError(_KEY, f"{key}: is not the key of {_CERTIFICATE} ({certificate})")


def _public(of: object) -> bytes:
    from cryptography.hazmat.primitives import serialization

    public = of.public_key()  # type: ignore[attr-defined]
    data: bytes = public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data


def _read(key: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(key, f"{path}: {error.strerror or 'cannot be read'}") from None
