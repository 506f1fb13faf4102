"""https, and connections that never come to a request."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import ssl

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tarragon_hpc.bench.load import stream_completion
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ConfigError
from tarragon_hpc.gateway import protocol
from tarragon_hpc.gateway.tls import own_client_context, server_context
from tarragon_hpc.generate.client import BatchClient
from tarragon_hpc.generate.inputs import Request

PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


def private(key, secrecy=PLAIN):
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, secrecy)


def sign(subject, key, issuer, issuer_key, ca):
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost")]
    name = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (subject, issuer)]
    builder = x509.CertificateBuilder(name[1], name[0], key.public_key(), 1 + ca)
    builder = builder.not_valid_before(now - datetime.timedelta(1))
    builder = builder.not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(PEM)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A site's authority, a certificate of it for localhost, keys."""
    path = tmp_path_factory.mktemp("tls")
    authority, own, other = (rsa.generate_private_key(65537, 2048) for _ in range(3))
    (path / "ca.pem").write_bytes(sign("site", authority, "site", authority, True))
    (path / "cert.pem").write_bytes(sign("localhost", own, "site", authority, False))
    (path / "key.pem").write_bytes(private(own))
    (path / "other.pem").write_bytes(private(other))
    (path / "locked.pem").write_bytes(private(own, serialization.BestAvailableEncryption(b"x")))
    (path / "text").write_text("hello")
    return path


def gateway_config(certificate, key):
    data = {"tls_certificate": certificate and str(certificate), "tls_key": key and str(key)}
    return load_config({"model": {"path": "x"}, "gateway": data}).gateway


@pytest.mark.parametrize(
    ("certificate", "key", "why"),
    [
        ("missing", "key.pem", "gateway.tls_certificate: .*missing: No such file"),
        ("cert.pem", "missing", "gateway.tls_key: .*missing: No such file"),
        (".", "key.pem", "gateway.tls_certificate: .*: Is a directory"),
        ("text", "key.pem", "gateway.tls_certificate: .*text: is not a PEM certificate"),
        ("key.pem", "key.pem", "gateway.tls_certificate: .*key.pem: is not a PEM certificate"),
        ("cert.pem", "text", "gateway.tls_key: .*text: is not a PEM private key"),
        ("cert.pem", "cert.pem", "gateway.tls_key: .*cert.pem: is not a PEM private key"),
        ("cert.pem", "locked.pem", "gateway.tls_key: .*locked.pem: is encrypted"),
        ("cert.pem", "other.pem", "gateway.tls_key: .*other.pem: is not the key of gateway.tls_c"),
    ],
)
def test_files_that_cannot_be_used(files, certificate, key, why):
    with pytest.raises(ConfigError, match=why):
        server_context(gateway_config(files / certificate, files / key))


@pytest.mark.parametrize(("certificate", "key"), [("a", None), (None, "a")])
def test_both_or_neither(certificate, key):
    with pytest.raises(ConfigError, match="gateway.tls_key: .*https needs both"):
        gateway_config(certificate, key)


BODY = {"prompt": "hi", "max_tokens": 3, "stream": True, "return_token_ids": True}


def test_https(start, model_dir, files, monkeypatch):
    pair = {"tls_certificate": str(files / "cert.pem"), "tls_key": str(files / "key.pem")}
    config = gateway_config(*pair.values())
    with start(model_dir, **pair) as gateway:
        port = gateway.url.rpartition(":")[2]
        url = f"https://localhost:{port}"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/health", timeout=10)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}/health", timeout=10)
        monkeypatch.setenv("SSL_CERT_FILE", str(files / "ca.pem"))
        assert httpx.get(f"{url}/health", timeout=10).status_code == 200

        tokens: list[int] = []

        def take(_: str, ids: list[int]) -> None:
            tokens.extend(ids)

        assert asyncio.run(stream_completion(f"{url}/v1", BODY, take)) is None
        assert len(tokens) == 3

        # In the head's own process the name does not matter, only the certificate.
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(ssl.SSLCertVerificationError):
            asyncio.run(stream_completion(f"{url}/v1", BODY, take))
        client = BatchClient(
            f"https://127.0.0.1:{port}/v1", concurrency=1, tls=own_client_context(config)
        )
        outcomes = []
        request = Request("a", 1, "/v1/completions", {"prompt": "hi", "max_tokens": 3})
        asyncio.run(client.run([request], outcomes.append))
        assert [o.status for o in outcomes] == [200]


def closed(sock, within_s=5.0):
    sock.settimeout(within_s)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def dial(gateway):
    return socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])))


@pytest.mark.parametrize(
    "begin",
    [
        b"",
        b"GET /hea",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 100\r\n\r\n{",
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea",
    ],
    ids=["nothing", "half a head", "half a body", "half a second one"],
)
def test_a_request_must_come_some_time(start, model_dir, monkeypatch, begin):
    monkeypatch.setattr(protocol, "REQUEST_S", 0.3)
    with start(model_dir) as gateway, dial(gateway) as sock:
        sock.sendall(begin)
        assert closed(sock)


def test_a_running_answer_may_take_its_time(start, model_dir, monkeypatch):
    monkeypatch.setattr(protocol, "REQUEST_S", 0.2)
    monkeypatch.setattr(protocol, "MAX_IDLE", 1)
    with start(model_dir) as gateway, dial(gateway) as sock:
        gateway.worker.hold = 2
        body = json.dumps({**BODY, "max_tokens": 8, "ignore_eos": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        assert sock.recv(4096).startswith(b"HTTP/1.1 200")
        others = [dial(gateway) for _ in range(5)]
        assert not closed(sock, 0.6)
        for other in others:
            other.close()


def test_idle_connections_make_room(start, model_dir, monkeypatch):
    monkeypatch.setattr(protocol, "MAX_IDLE", 4)
    with start(model_dir) as gateway:
        flood = [dial(gateway) for _ in range(20)]
        with httpx.Client(base_url=gateway.url, timeout=10) as client:
            for _ in range(3):
                assert client.get("/health").status_code == 200
        assert all(closed(sock) for sock in flood[:16])
        for sock in flood:
            sock.close()


def test_heads_have_an_end(start, model_dir):
    with start(model_dir) as gateway, dial(gateway) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        try:
            for _ in range(100):
                sock.sendall(b"x: " + b"y" * 10_000 + b"\r\n")
        except OSError:
            pass
        assert closed(sock)
    with start(model_dir) as gateway:
        answer = httpx.get(f"{gateway.url}/health", headers={"x": "y" * 40_000}, timeout=10)
        assert answer.status_code == 200
