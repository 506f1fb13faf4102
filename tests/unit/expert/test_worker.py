"""The EW as a process: joins, loads, serves over shared memory, leaves in good order."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tarragon_hpc.expert.weights import load_experts
from tarragon_hpc.models.describe import describe
from tarragon_hpc.models.presets import FAMILIES
from tarragon_hpc.wire.common import Peer
from tarragon_hpc.wire.to_head import Heartbeat, Holding, Ready, Stopping
from tarragon_hpc.wire.to_worker import Drain, Load, Shutdown, Table, Unload, Welcome

pytestmark = pytest.mark.native


def reference(spec, tensors, layer, hidden, ids, weights):
    """The routed experts' output in float64."""
    out = np.zeros(hidden.shape)
    for row, (chosen, factors) in enumerate(zip(ids, weights, strict=True)):
        for expert, factor in zip(chosen, factors, strict=True):
            t = tensors[layer, int(expert)]
            x = hidden[row].astype(np.float64)
            gate, up = t.gate.astype(np.float64) @ x, t.up.astype(np.float64) @ x
            if spec.shape.bias:
                gate, up = gate + t.gate_bias, up + t.up_bias
            if spec.shape.activation == "swigluoai":
                gate = np.minimum(gate, spec.shape.limit)
                up = np.clip(up, -spec.shape.limit, spec.shape.limit)
                inner = (up + 1) * gate / (1 + np.exp(-spec.shape.alpha * gate))
            else:
                inner = gate / (1 + np.exp(-gate)) * up
            y = t.down.astype(np.float64) @ inner
            out[row] += factor * (y + t.down_bias if spec.shape.bias else y)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_serves_every_family(family, tiny_models, cluster, routing):
    model = tiny_models(family)
    spec = describe(model)
    placement = {"ew0": list(range(spec.experts))}
    cluster.serve(model, placement, experts={"workers": 1})
    refe = cluster.refe("aw0", model, placement)
    tensors = load_experts(spec, range(spec.experts))
    for layer in spec.moe_layers[:2]:
        hidden, ids, weights = routing(spec, 70, layer)
        out = np.empty_like(hidden)
        refe.expert_io(layer, hidden, ids, weights, out)
        expected = reference(spec, tensors, layer, hidden, ids, weights)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_tells_what_it_loaded_and_what_it_does(tiny_models, cluster, routing):
    model = tiny_models("mixtral")
    spec = describe(model)
    detection = {"heartbeat_ms": 20}
    cluster.start("ew0", model, detection=detection, experts={"workers": 1, "shadows": 0})
    cluster.head.send("ew0", Welcome(1, [1, 2], [5]))
    ready = cluster.head.take("ew0", Ready)
    shape = spec.shape
    size = 3 * len(spec.moe_layers) * 3 * shape.hidden * shape.ffn * 4
    assert ready.detail["experts"] == [1, 2]
    assert ready.detail["shadows"] == [5]
    assert (ready.detail["nbytes"], ready.detail["copied"]) == (size, 0)
    assert ready.detail["load_s"] < 5
    assert cluster.head.take("ew0", Heartbeat).stats["requests"] == 0
    process = cluster.processes["ew0"].pid
    assert f"{model}/model-00001" in Path(f"/proc/{process}/maps").read_text()


def test_experts_come_and_go_while_it_serves(tiny_models, cluster, routing):
    """Also asked for before it is ready; the outputs are those of an EW that had them at once."""
    model = tiny_models("mixtral")
    spec = describe(model)
    everything = list(range(spec.experts))
    cluster.serve(model, {"ew1": everything}, experts={"workers": 1})
    cluster.peers["ew0"] = as_peer(cluster.start("ew0", model, experts={"workers": 1}))
    cluster.head.send("ew0", Welcome(1, [0, 1, 2]))
    cluster.head.send("ew0", Load([3, 4]))
    assert cluster.head.take("ew0", Ready).detail["experts"] == [0, 1, 2]
    assert cluster.head.take("ew0", Holding) == Holding("ew0", 1, [0, 1, 2, 3, 4])
    calls = [(layer, *routing(spec, 5, layer)) for layer in spec.moe_layers[:2]]
    alone = []
    for layer, hidden, ids, weights in calls:
        out = np.empty_like(hidden)
        cluster.refe("aw9", model, {"ew1": everything}).expert_io(layer, hidden, ids, weights, out)
        alone.append(out.tobytes())
    refe = cluster.refe("aw0", model, {"ew0": everything})
    few = [(layer, hidden, ids % 3, weights) for layer, hidden, ids, weights in calls]
    answers = []
    with ThreadPoolExecutor(1) as pool:
        stop = threading.Event()
        busy = pool.submit(keep_asking, refe, few, stop)
        for order in (Load([5, 6, 7]), Load([0, 7]), Unload([7]), Unload([6, 7]), Load([6, 7])):
            cluster.head.send("ew0", order)
        for _ in range(5):
            answers.append(cluster.head.take("ew0", Holding).experts)
        stop.set()
        assert busy.result(30) > 0
    assert answers == [everything, everything, everything[:7], everything[:6], everything]
    assert hammer(refe, calls, alone) == []
    cluster.head.send("ew0", Load([99]))
    refused = cluster.head.take("ew0", Holding)
    assert refused.experts == everything
    assert "experts [99] of a model with 8" in refused.error


def keep_asking(refe, calls, stop):
    """Ask until `stop`; every answer must be the first one again."""
    first = []
    number = 0
    while not stop.is_set() or number <= len(calls):
        layer, hidden, ids, weights = calls[number % len(calls)]
        out = np.empty_like(hidden)
        refe.expert_io(layer, hidden, ids, weights, out)
        if number < len(calls):
            first.append(out)
        np.testing.assert_array_equal(out, first[number % len(calls)])
        number += 1
    return number


def as_peer(register):
    return Peer(register.worker, register.incarnation, register.address)


def test_imports_no_torch_and_drains_when_its_aws_leave(tiny_models, cluster, routing):
    model = tiny_models("mixtral")
    spec = describe(model)
    placement = {"ew0": list(range(spec.experts))}
    cluster.serve(model, placement, experts={"backend": "native", "workers": 1})
    refe = cluster.refe("aw0", model, placement)
    hidden, ids, weights = routing(spec, 3, 0)
    before, after = np.empty_like(hidden), np.empty_like(hidden)
    refe.expert_io(0, hidden, ids, weights, before)
    cluster.head.send("ew0", Table(2, [], []))  # not for an EW: ignored
    cluster.head.send("ew0", Drain("scale down"))
    refe.expert_io(0, hidden, ids, weights, after)  # still served
    np.testing.assert_array_equal(before, after)
    refe.close()
    assert cluster.head.take("ew0", Stopping).reason == "scale down"
    status, out, err = cluster.end("ew0")
    assert (status, out) == (0, "no torch\n"), err


@pytest.mark.parametrize("how", ["shutdown", "sigterm"])
@pytest.mark.parametrize("loaded", [True, False])
def test_leaves_when_it_is_told_to(how, loaded, tiny_models, cluster):
    model = tiny_models("mixtral")
    if loaded:
        cluster.serve(model, {"ew0": [0]}, experts={"workers": 1})
    else:
        cluster.start("ew0", model)
    if how == "shutdown":
        cluster.head.send("ew0", Shutdown("stop"))
    else:
        cluster.processes["ew0"].send_signal(signal.SIGTERM)
    reason = cluster.head.take("ew0", Stopping).reason
    assert not loaded or reason == {"shutdown": "stop", "sigterm": "SIGTERM"}[how]
    status, _, err = cluster.end("ew0")
    assert status == 0, err


def test_importing_the_worker_imports_no_torch():
    code = (
        "import sys, tarragon_hpc.expert.worker;"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Invariant 2: whatever batch a row rides in and whichever EW computes it, the same bits

PLACEMENTS = [
    {"ew0": [0, 1, 2, 3, 4, 5, 6, 7]},
    {"ew1": [0, 1, 2, 3, 4, 5, 6, 7]},
    {"ew0": [0], "ew2": [1, 2, 3, 4, 5, 6, 7]},
    {"ew0": [7, 2], "ew1": [0, 4, 5], "ew2": [1, 3, 6]},
]


def in_dtype(hidden, dtype):
    return hidden if dtype == "float32" else (hidden.view(np.uint32) >> 16).astype(np.uint16)


def hammer(refe, calls, alone):
    """Run all calls; returns those whose output differs from that of the rows alone."""
    different = []
    for i, (layer, hidden, ids, weights) in enumerate(calls):
        out = np.empty_like(hidden)
        refe.expert_io(layer, hidden, ids, weights, out)
        if out.tobytes() != alone[i]:
            different.append(i)
    return different


@pytest.mark.parametrize(("family", "dtype"), [("mixtral", "bfloat16"), ("gpt-oss", "float32")])
def test_outputs_are_bitwise_the_same(family, dtype, tiny_models, cluster, routing):
    model = tiny_models(family, dtype=dtype)
    spec = describe(model)
    calls = []
    for rows, skew in ((1, 1.0), (2, 3.0), (7, 1.0), (33, 2.0), (100, 1.0)):
        for layer in spec.moe_layers:
            hidden, ids, weights = routing(spec, rows, 10 * rows + layer, skew=skew)
            calls.append((layer, in_dtype(hidden, dtype), ids, weights))
    everything = list(range(spec.experts))
    cluster.serve(model, dict.fromkeys(("ew0", "ew1", "ew2"), everything), experts={"workers": 3})
    first = cluster.refe("aw0", model, PLACEMENTS[0])
    alone = []
    for layer, hidden, ids, weights in calls:
        out = np.empty_like(hidden)
        for row in range(len(hidden)):  # nobody rides along
            one = slice(row, row + 1)
            first.expert_io(layer, hidden[one], ids[one], weights[one], out[one])
        alone.append(out.tobytes())
    for number, placement in enumerate(PLACEMENTS):
        refes = [cluster.refe(f"aw{number}{a}", model, placement) for a in (1, 2)]
        with ThreadPoolExecutor(2) as pool:  # two AWs at once, in step and out of step
            straight = pool.submit(hammer, refes[0], calls * 2, alone * 2)
            backward = pool.submit(hammer, refes[1], calls[::-1] * 2, alone[::-1] * 2)
            together = straight.result(), backward.result()
        assert together == ([], []), placement
