"""What the arguments of chaos, scale and coverage mean, and what is wrong with them."""

from __future__ import annotations

import pytest

from tarragon_hpc.cli import scale as scale_module
from tarragon_hpc.cli.chaos import Aim, read_aim, read_list
from tarragon_hpc.cli.sabotage import read_sabotage
from tarragon_hpc.cli.scale import coverage, read_sizes
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import UserError


@pytest.mark.parametrize(
    ("words", "at_random", "aim"),
    [
        (["kill", "ew1"], False, Aim(None, "kill", "ew1")),
        (["my-run", "slow", "aw0"], False, Aim("my-run", "slow", "aw0")),
        (["kill", "kill", "ew1"], False, Aim("kill", "kill", "ew1")),
        ([], True, Aim(None, None, None)),
        (["my-run"], True, Aim("my-run", None, None)),
    ],
)
def test_aims(words, at_random, aim):
    assert read_aim(words, at_random=at_random) == aim


@pytest.mark.parametrize(
    ("words", "at_random", "message"),
    [
        ([], False, r"expected \[RUN\] FAULT WORKER"),
        (["my-run"], False, r"expected \[RUN\] FAULT WORKER"),
        (["maim", "ew1"], False, "FAULT: 'maim' is not one of kill, stop, cont, slow"),
        (["kill", "ew1"], True, "with --mtbf only RUN may be given"),
    ],
)
def test_mistaken_aims(words, at_random, message):
    with pytest.raises(UserError, match=message):
        read_aim(words, at_random=at_random)


def test_stores_can_be_sabotaged_and_hit():
    config = load_config({"model": {"path": "m"}, "checkpoint": {"stores": 2}})
    assert read_sabotage("kill:cs1", config) == ("kill", "cs1")
    with pytest.raises(UserError, match="'cs2' is not one of aw0, aw1, ew0, ew1, cs0, cs1"):
        read_sabotage("kill:cs2", config)
    assert read_aim(["stop", "cs0"], at_random=False) == Aim(None, "stop", "cs0")


def test_lists():
    assert read_list("--faults", "kill, slow", ("kill", "slow")) == ("kill", "slow")
    with pytest.raises(UserError, match="--faults: 'cont' is not one of kill, slow"):
        read_list("--faults", "kill,cont", ("kill", "slow"))


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["ew=3"], (None, {"ew": 3})),
        (["my-run", "ew=3", "aw=2"], ("my-run", {"ew": 3, "aw": 2})),
        (["cs=0"], (None, {"cs": 0})),
    ],
)
def test_sizes(words, sizes):
    assert read_sizes(words) == sizes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["my-run"], r"expected \[RUN\] ROLE=COUNT"),
        (["ew=0"], "ew=0: must be a number of workers, 1 or more"),
        (["ew=many"], "ew=many: must be a number"),
        (["xs=1"], "'xs=1': expected ROLE=COUNT with a role of aw, ew, cs"),
        (["cs=-1"], "cs=-1: must be a number of workers, 0 or more"),
        (["ew=1", "ew=2"], "ew=2: ew is given twice"),
        (["ew=1", "my-run"], "'my-run': expected ROLE=COUNT"),
    ],
)
def test_mistaken_sizes(words, message):
    with pytest.raises(UserError, match=message):
        read_sizes(words)


@pytest.fixture
def answer(monkeypatch, tmp_path):
    """A run in tmp_path/r whose status is this dict."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").touch()
    status = {"state": "serving", "coverage": {"lines": ["all is well", "really"], "single": []}}

    async def query_status(_):
        return status

    monkeypatch.setattr(scale_module, "query_status", query_status)
    return status


def test_coverage_in_words_and_as_json(answer, tmp_path, capsys):
    coverage(None, tmp_path, as_json=False)
    assert capsys.readouterr().out == "all is well\nreally\n"
    coverage("r", tmp_path, as_json=True)
    assert '"single": []' in capsys.readouterr().out


def test_a_run_that_says_nothing_of_coverage(answer, tmp_path):
    del answer["coverage"]
    answer["state"] = "dead"
    with pytest.raises(UserError, match="RUN: r is dead: it says nothing of coverage"):
        coverage(None, tmp_path, as_json=False)
