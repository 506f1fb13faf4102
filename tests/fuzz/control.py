"""Control connections: frames for the head, for workers, for clients; the challenge."""

from __future__ import annotations

from tarragon_hpc.errors import AuthError, FrameError
from tarragon_hpc.wire import auth, codec
from tarragon_hpc.wire.common import (
    Peer,
    Resumption,
    SamplingSpec,
    StructureSpec,
    TokenDelta,
    TokenLogprobs,
)
from tarragon_hpc.wire.to_client import Done, Error, StatusReply
from tarragon_hpc.wire.to_head import Heartbeat, Ready, Register, Resumed, StopRun, Tokens
from tarragon_hpc.wire.to_worker import Abort, Stores, Submit, Welcome
from tests.fuzz.target import Family

family = Family()


def _frames(*messages):
    """Each behind a byte that says how it is cut; see `_feed`."""
    return [b"\x05" + codec.encode(m) for m in messages]


def _to_head():
    delta = TokenDelta("r", 3, [1, 2], [TokenLogprobs([1], [-0.5], 1)], "stop", 2, 1, 2)
    return _frames(
        Register("aw0", 1, 77, "host", {"kind": "shm"}),
        Ready("ew0", 2, {"experts": [0, 1], "a": 1, "b": 0.5, "c": "x"}),
        Heartbeat("aw0", 1, {"beat": 1.0}),
        Tokens("aw0", 1, [delta]),
        Resumed("aw0", 1, Resumption("r", 2, 3, 0, 1, 64, 0.5, "why")),
        StopRun(1.5),
    )


def _to_worker():
    spec = SamplingSpec(5, seed=7, stop_token_ids=[1], structure=StructureSpec("regex", "a+"))
    return _frames(
        Submit("r", [1, 2, 3], spec),
        Abort(["r", "s"]),
        Stores([Peer("cs0", 1, {"kind": "tcp", "host": "h", "port": "1"})]),
        Welcome([0, 1], [2]),
    )


def _feed(decoder, data):
    """In two pieces; what comes out can be sent on."""
    cut = data[0] if data else 0
    for piece in (data[1 : 1 + cut], data[1 + cut :]):
        for message in decoder.feed(piece):
            codec.encode(message)


@family.add(_to_head, FrameError)
def control_to_head(data):
    _feed(codec.head_decoder(), data)


@family.add(_to_worker, FrameError)
def control_to_worker(data):
    _feed(codec.worker_decoder(), data)


@family.add(lambda: _frames(Done(), Error("no"), StatusReply({"a": [1, {}]})), FrameError)
def control_to_client(data):
    _feed(codec.client_decoder(), data)


SECRET = bytes(32)


def _challenges():
    return [bytes(auth.CHALLENGE_BYTES), auth.MAGIC + bytes(auth.NONCE + auth.PROOF_BYTES)]


@family.add(_challenges)
def challenge(data):
    """Whatever the other end says, it does not know the secret."""
    hello, proof = data[: auth.HELLO_BYTES], data[auth.HELLO_BYTES :]
    server = auth.ServerHandshake(SECRET, b"control")
    client = auth.ClientHandshake(SECRET, b"control")
    for step, said in ((client.proof, data), (server.challenge, hello), (server.verify, proof)):
        try:
            step(said)
        except AuthError:
            continue
        assert step == server.challenge, f"{step} took {said!r}"
