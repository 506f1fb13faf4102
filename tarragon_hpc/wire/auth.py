"""Mutual challenge with the run's secret, before a byte of payload is parsed (DESIGN invariant 8).

Three fixed-size messages, the same on control connections and on the data plane's sockets:

    client → server   MAGIC ‖ nonce_c (32)
    server → client   nonce_s (32) ‖ HMAC(secret, "server" ‖ purpose ‖ nonce_c ‖ nonce_s)
    client → server   HMAC(secret, "client" ‖ purpose ‖ nonce_c ‖ nonce_s)
    server → client   OK (1 byte)

Both sides contribute a fresh nonce, so a recorded handshake cannot be replayed; the role is in the
MAC, so a reflected one cannot either; `purpose` keeps a control handshake from opening a data
channel. HMAC is SHA-256 (RFC 2104). Sans-IO: the glue is in `stream.py` and `transport/`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from typing import TYPE_CHECKING

from tarragon_hpc.errors import AuthError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

MAGIC = b"TARRAGN1"
SECRET = 32
NONCE = 32
MAC = 32
HELLO_BYTES = len(MAGIC) + NONCE
CHALLENGE_BYTES = NONCE + MAC
PROOF_BYTES = MAC
OK = b"\x01"


def new_secret() -> bytes:
    """A fresh secret for a run."""
    return secrets.token_bytes(SECRET)


def write_secret(path: Path, secret: bytes) -> None:
    """Store the secret so that only its owner can read it (mode 0600, refuses to overwrite)."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(secret.hex().encode())
        file.flush()
        os.fsync(fd)


def read_secret(path: Path) -> bytes:
    """Read a secret; refuses a file that others could read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4 * SECRET)
    except OSError as error:
        raise ConfigError(str(path), error.strerror or "cannot be read") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(str(path), "holds a secret and must have mode 0600")
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != SECRET:  # an empty one, of a file cut short, would open every door
        raise ConfigError(str(path), "does not hold a secret")
    return secret


def session_key(secret: bytes, purpose: bytes, nonce_c: bytes, nonce_s: bytes) -> bytes:
    """A key (32 bytes) that only the two ends of one handshake know, and only they, once."""
    return _mac(secret, b"key", purpose, nonce_c, nonce_s)


def _mac(secret: bytes, who: bytes, purpose: bytes, nonce_c: bytes, nonce_s: bytes) -> bytes:
    text = who + len(purpose).to_bytes(2, "big") + purpose + nonce_c + nonce_s
    return hmac.digest(secret, text, hashlib.sha256)


class ClientHandshake:
    """The connecting side. Call `hello`, feed the challenge to `proof`, then expect OK.

    key: of the session, after `proof`
    """

    def __init__(self, secret: bytes, purpose: bytes) -> None:
        self._secret = secret
        self._purpose = purpose
        self._nonce = secrets.token_bytes(NONCE)
        self.key = b""

    def hello(self) -> bytes:
        """The first message, HELLO_BYTES long."""
        return MAGIC + self._nonce

    def proof(self, challenge: bytes) -> bytes:
        """Check the server's CHALLENGE_BYTES and answer them. Raises AuthError."""
        nonce_s, mac = challenge[:NONCE], challenge[NONCE:]
        expected = _mac(self._secret, b"server", self._purpose, self._nonce, nonce_s)
        if not hmac.compare_digest(mac, expected):
            raise AuthError("the server does not know the run's secret")
        self.key = session_key(self._secret, self._purpose, self._nonce, nonce_s)
        return _mac(self._secret, b"client", self._purpose, self._nonce, nonce_s)


class ServerHandshake:
    """The accepting side. Feed the hello to `challenge` and the proof to `verify`, then send OK.

    key: of the session, after `verify`
    """

    def __init__(self, secret: bytes, purpose: bytes) -> None:
        self._secret = secret
        self._purpose = purpose
        self._nonce = secrets.token_bytes(NONCE)
        self.key = b""
        self._nonce_c = b""

    def challenge(self, hello: bytes) -> bytes:
        """Answer a hello of HELLO_BYTES. Raises AuthError."""
        if len(hello) != HELLO_BYTES or not hello.startswith(MAGIC):
            raise AuthError("not a tarragon peer")
        self._nonce_c = hello[len(MAGIC) :]
        mac = _mac(self._secret, b"server", self._purpose, self._nonce_c, self._nonce)
        return self._nonce + mac

    def verify(self, proof: bytes) -> None:
        """Check the client's PROOF_BYTES. Raises AuthError."""
        expected = _mac(self._secret, b"client", self._purpose, self._nonce_c, self._nonce)
        if not hmac.compare_digest(proof, expected):
            raise AuthError("the client does not know the run's secret")
        self.key = session_key(self._secret, self._purpose, self._nonce_c, self._nonce)
