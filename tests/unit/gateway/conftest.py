"""A gateway on a real socket in front of a made-up attention worker."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry

from tarragon_hpc.config import load_config
from tarragon_hpc.gateway.app import create_app
from tarragon_hpc.gateway.server import HttpServer, listen
from tarragon_hpc.gateway.sessions import Sessions
from tarragon_hpc.gateway.text import TextCodec
from tarragon_hpc.gateway.tls import server_context
from tarragon_hpc.models.spec import ExpertShape, ModelSpec
from tarragon_hpc.models.tokenizer import write_tokenizer
from tarragon_hpc.wire.common import SamplingSpec, TokenDelta, TokenLogprobs
from tarragon_hpc.wire.to_head import Tokens
from tarragon_hpc.wire.to_worker import Abort, Submit

VOCAB = 512
MAX_LEN = 128
EOS = 1


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A checkpoint directory with a tokenizer and nothing to run."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    write_tokenizer(path, vocab=VOCAB, max_len=MAX_LEN)
    return path


@pytest.fixture(scope="session")
def codec(model_dir):
    return TextCodec.load(model_dir)


def model_spec(path):
    return ModelSpec(
        path=str(path),
        family="mixtral",
        architecture="MixtralForCausalLM",
        dtype="float32",
        layers=1,
        moe_layers=(0,),
        experts=2,
        top_k=1,
        shape=ExpertShape(hidden=8, ffn=8),
        vocab=VOCAB,
        max_len=MAX_LEN,
        eos_token_ids=(EOS,),
        bos_token_id=0,
    )


class FakeWorker:
    """Answers Submit as an AW would, a token per turn of the event loop.

    The output is `script` (token ids) if set, else numbers made from the prompt and the seed. It
    ends at EOS, at a stop token, at max_tokens, or never if `hold` tokens are out. `react` is
    called with every Submit, in the turn after it. Every token left out `masked` expert calls.
    After each of `deaths` more tokens it is lost with all it runs, and replaced.
    """

    def __init__(self):
        self.incarnation = 0
        self.reset()

    def reset(self):
        self.script, self.hold, self.react, self.masked = None, None, None, 0
        self.submitted, self.aborted, self.deaths = [], [], []
        self._running = {}

    def attach(self, sessions):
        self.sessions = sessions
        self.replace()

    def replace(self):
        """This incarnation is lost; the next one serves."""
        self._running.clear()
        self.sessions.on_worker_lost("aw0", self.incarnation, "killed")
        self.incarnation += 1
        self.sessions.on_worker_serving("aw0", self.incarnation)

    def __call__(self, worker, message):
        match message:
            case Submit():
                self.submitted.append(message)
                self._running[message.request] = message
                if self.react is not None:
                    asyncio.get_running_loop().call_soon(self.react, message)
                self._later(message, len(message.tokens))
            case Abort(requests):
                self.aborted += requests
                for request in requests:
                    self._running.pop(request, None)

    def output(self, message):
        if self.script is not None:
            return self.script
        seed = message.sampling.seed or 0
        base = sum(message.prompt) + 31 * seed
        return [3 + (base + 7 * i) % (VOCAB - 3) for i in range(MAX_LEN)]

    def _later(self, message, index):
        asyncio.get_running_loop().call_soon(self._step, message, index)

    def _step(self, message, index):
        sampling, out = message.sampling, self.output(message)
        if self._running.get(message.request) is not message or index == self.hold:
            return
        token = out[index] if index < len(out) else EOS
        finish, reason = None, None
        if index + 1 > sampling.min_tokens:
            if token in sampling.stop_token_ids:
                finish, reason = "stop", token
            elif token == EOS and not sampling.ignore_eos:
                finish = "stop"
        if finish is None and index + 1 == sampling.max_tokens:
            finish = "length"
        scores = None
        if sampling.logprobs is not None:
            others = [(token + 1 + i) % VOCAB for i in range(sampling.logprobs)]
            values = [-0.25, *(-0.5 - i for i in range(sampling.logprobs))]
            scores = [TokenLogprobs([token, *others], values, 1)]
        delta = TokenDelta(
            message.request, index, [token], scores, finish, reason, self.masked, message.attempt
        )
        self.sessions.on_tokens(Tokens("aw0", self.incarnation, [delta]))
        if finish is None:
            self._later(message, index + 1)
        if self.deaths:
            self.deaths[0] -= 1
            if not self.deaths[0]:
                del self.deaths[0]
                self.replace()


class Gateway(SimpleNamespace):
    """url, sessions, worker, registry; `call` runs a function in the gateway's event loop."""

    def call(self, function, *args):
        async def run():
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    @contextmanager
    def full(self):
        """While it lasts every slot is taken."""
        self.worker.hold = 0
        work = [([5], SamplingSpec(max_tokens=1))] * self.sessions.max_requests
        handle = self.call(self.sessions.open, work)
        try:
            yield
        finally:
            self.call(handle.close)
            self.worker.hold = None

    def wait_until(self, condition):
        """Until something holds in the gateway, checked at every turn of its loop."""

        async def run():
            while not condition():
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(run(), 5), self.loop).result(6)


def start_gateway(path, **gateway_config):
    """A context manager: a gateway that serves the checkpoint at `path` on a free port."""
    config = load_config({"model": {"path": str(path)}, "gateway": {"port": 0, **gateway_config}})
    return _Running(path, config)


class _Running:
    def __init__(self, path, config):
        self._path, self._config = path, config
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    async def _serve(self):
        worker, registry = FakeWorker(), CollectorRegistry()
        sessions = Sessions(worker, self._config.gateway.max_requests)
        app = create_app(
            sessions=sessions,
            spec=model_spec(self._path),
            config=self._config,
            status=lambda: {"state": "serving", "epoch": 3},
            registry=registry,
        )
        self._stop = asyncio.Event()
        tls = server_context(self._config.gateway)
        async with HttpServer(app, listen("127.0.0.1", 0), tls=tls) as server:
            worker.attach(sessions)
            sessions.set_serving(True, "")
            self.gateway = Gateway(
                url=f"http://127.0.0.1:{server.port}",
                sessions=sessions,
                worker=worker,
                registry=registry,
                loop=asyncio.get_running_loop(),
            )
            self._up.set()
            await self._stop.wait()

    def __enter__(self):
        self._thread.start()
        assert self._up.wait(10)
        return self.gateway

    def __exit__(self, *_):
        self.gateway.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def start():
    """`with start(path, key=value, …) as gateway:` for a gateway of its own configuration."""
    return start_gateway


@pytest.fixture(scope="session")
def _gateway(model_dir):
    with start_gateway(model_dir, max_requests=16, max_body=200_000) as gateway:
        yield gateway


@pytest.fixture
def gateway(_gateway):
    """A running gateway, idle before and after the test."""
    _gateway.worker.reset()
    yield _gateway
    _gateway.wait_until(lambda: _gateway.sessions.stats().open == 0)


@pytest.fixture(scope="session")
def _client(_gateway):
    with httpx.Client(base_url=_gateway.url, timeout=10) as client:
        yield client


@pytest.fixture
def http(gateway, _client):
    """A client of the running gateway; making one takes longer than most tests."""
    return _client
