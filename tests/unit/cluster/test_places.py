"""Workers that are added while a run serves get their share of the machine."""

from __future__ import annotations

from tarragon_hpc.cluster.places import Places
from tarragon_hpc.cluster.spec import plan_workers
from tarragon_hpc.config import load_config


def places(
    aws: int, ews: int, gpus: list[str], fraction: float = 0.4, **prefix: list[str]
) -> Places:
    config = load_config(
        {
            "model": {"path": "m"},
            "attention": {"workers": aws, "gpu_memory_fraction": fraction},
            "experts": {"workers": ews},
            "cluster": {"prefix": prefix},
        }
    )
    return Places(config, plan_workers(config, [0, 1, 2, 3], gpus), gpus)


def test_added_workers_share_the_cpus_of_the_first_in_turns():
    here = places(1, 2, [])
    assert here.prepare(["ew2", "ew3", "ew4"], here.keys()) is None
    assert [here[f"ew{n}"].cpus for n in range(5)] == [(0, 1), (2, 3), (0, 1), (2, 3), (0, 1)]
    assert (here["ew3"].worker, here["ew3"].env) == ("ew3", here["ew1"].env)
    assert here["ew3"].shares_cpus


def test_added_workers_get_the_gpus_that_the_fewest_use():
    here = places(1, 1, ["0", "1", "2"])
    assert here.prepare(["aw1", "aw2", "ew1"], ["aw0", "ew0"]) is None
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in here.values()] == ["0", "1", "2", "0", "1"]
    assert here.prepare(["ew2"], ["aw0", "ew0", "aw2", "ew1"]) is None  # aw1 has left
    assert here["ew2"].env["CUDA_VISIBLE_DEVICES"] == "2"


def test_aws_that_would_not_fit_on_a_gpu_are_refused_and_nothing_is_changed():
    here = places(1, 1, ["7"], fraction=0.85)
    before = dict(here)
    assert here.prepare(["aw1"], here.keys()) == (
        "attention.gpu_memory_fraction: 0.85: 2 AWs would share GPU 7; at most 0.50 each"
    )
    assert here == before
    assert here.prepare(["ew1"], here.keys()) is None


def test_stores_take_no_place_from_others_and_can_be_added_where_there_were_none():
    here = places(1, 1, ["0", "1"])
    assert here.prepare(["cs0", "cs1"], here.keys()) is None
    assert [here[w].env["CUDA_VISIBLE_DEVICES"] for w in ("cs0", "cs1")] == ["", ""]
    assert (here["cs1"].worker, here["cs1"].cpus) == ("cs1", None)
    assert here.prepare(["ew1"], here.keys()) is None
    assert here["ew1"].env["CUDA_VISIBLE_DEVICES"] == "0"
    assert places(1, 1, []).prepare(["cs0"], []) is None


def test_added_workers_have_their_own_prefix_or_their_role_s():
    prefix = {"aw0": ["nice"], "ew": ["env"], "ew2": ["env", "X=1"], "cs": ["chrt", "-i", "0"]}
    here = places(1, 1, [], **prefix)
    assert here.prepare(["aw1", "ew1", "ew2", "cs0", "cs1"], here.keys()) is None
    assert {name: list(spec.prefix) for name, spec in here.items()} == {
        "aw0": ["nice"], "aw1": [],
        "ew0": ["env"], "ew1": ["env"], "ew2": ["env", "X=1"],
        "cs0": ["chrt", "-i", "0"], "cs1": ["chrt", "-i", "0"],
    }  # fmt: skip
