"""What sbatch says, as errors that name a key: texts of Slurm 22.05 to 24.11."""

from __future__ import annotations

import pytest

from tarragon_hpc.cluster.slurm.refusals import explain, never, slurms_words
from tarragon_hpc.config import load_config
from tarragon_hpc.errors import ClusterError, ConfigError, UserError

FAILED = "sbatch: error: Batch job submission failed: "


def config(**slurm):
    return load_config({"model": {"path": "m"}, "cluster": {"slurm": slurm}})


@pytest.mark.parametrize(
    ("slurm", "stderr", "line"),
    [
        (
            {"nodes": {"partition": "nope"}},
            "sbatch: error: invalid partition specified: nope\n"
            f"{FAILED}Invalid partition name specified\n",
            "cluster.slurm.nodes.partition: 'nope': Slurm says: invalid partition specified: nope;"
            " Invalid partition name specified",
        ),
        (
            {"account": "me"},
            f"{FAILED}Invalid account or account/partition combination specified",
            "cluster.slurm.account: 'me': Slurm says: Invalid account or account/partition"
            " combination specified",
        ),
        (
            {"qos": "x"},
            f"{FAILED}Invalid qos specification",
            "cluster.slurm.qos: 'x': Slurm says: Invalid qos specification",
        ),
        (
            {},
            f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)",
            "cluster.slurm.time: '24:00:00': Slurm says: Requested time limit is invalid (missing"
            " or exceeds some limit)",
        ),
        (
            {"nodes": {"constraint": "foo"}},
            f"{FAILED}Invalid feature specification",
            "cluster.slurm.nodes.constraint: 'foo': Slurm says: Invalid feature specification",
        ),
        (
            {"nodes": {"memory": "9T"}},
            "sbatch: error: Memory specification can not be satisfied\n"
            f"{FAILED}Requested node configuration is not available",
            "cluster.slurm.nodes.memory: '9T': Slurm says: Memory specification can not be"
            " satisfied; Requested node configuration is not available",
        ),
        (
            {"nodes": {"gpus_per_node": 8, "gpu_type": "h100", "partition": "gpu"}},
            f"{FAILED}Requested node configuration is not available",
            "cluster.slurm.nodes: 1 node with 8 x 4 CPUs and 8 GPUs (h100), partition gpu: Slurm"
            " says: Requested node configuration is not available",
        ),
        (
            {},
            f"{FAILED}Requested node configuration is not available",
            "cluster.slurm.nodes: 5 nodes with 1 x 4 CPUs: Slurm says: Requested node configuration"
            " is not available; nodes.slots_per_node puts more than one worker on a node",
        ),
        (
            {"nodes": {"gpus_per_node": 2}},
            f"{FAILED}Invalid generic resource (gres) specification",
            "cluster.slurm.nodes.gpus_per_node: 2: Slurm says: Invalid generic resource (gres)"
            " specification",
        ),
        (
            {},
            f"{FAILED}Node count specification invalid",
            "cluster.slurm.nodes.nodes: None: Slurm says: Node count specification invalid",
        ),
        (
            {},
            f"{FAILED}User's group not permitted to use this partition",
            "cluster.slurm.nodes.partition: None: Slurm says: User's group not permitted to use"
            " this partition",
        ),
        (
            {"directives": {"foo": 1}},
            "sbatch: unrecognized option '--foo=1'\nTry \"sbatch --help\" for more information\n",
            "cluster.slurm.directives: {'foo': 1}: Slurm says: unrecognized option '--foo=1'",
        ),
        (
            {},
            "sbatch: lua: welcome to the site\nsbatch: error: lua: please say --mem\n"
            f"{FAILED}Unspecified error",
            "cluster.slurm.nodes.memory: None: Slurm says: please say --mem; Unspecified error",
        ),
        (
            {},
            f"{FAILED}Job violates accounting/QOS policy (job submit limit, user's size and/or"
            " time limits)",
            "cluster.slurm.qos: None: Slurm says: Job violates accounting/QOS policy (job submit"
            " limit, user's size and/or time limits)",
        ),
        ({}, "sbatch: error: no, today not", "cluster.slurm: Slurm says: no, today not"),
    ],
)
def test_a_request_at_fault(slurm, stderr, line):
    error = explain(stderr, config(**slurm))
    assert isinstance(error, UserError)
    assert str(error) == line


@pytest.mark.parametrize(
    "words",
    [
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
        "Zero Bytes were transmitted or received",
        "Protocol authentication error",
        "Slurm temporarily unable to accept job, sleeping and retrying",
    ],
)
def test_slurm_at_fault(words):
    error = explain(f"sbatch: error: Batch job submission failed: {words}\n", config())
    assert type(error) is ClusterError
    assert str(error) == f"sbatch: {words}"


def test_no_configuration_of_slurm():
    stderr = (
        "sbatch: error: s_p_parse_file: cannot stat file /x: No such file or directory, retrying\n"
        "sbatch: error: ClusterName needs to be specified\n"
        "sbatch: fatal: Unable to process configuration file\n"
    )
    assert isinstance(explain(stderr, config()), ClusterError)


def test_of_several_kinds_of_nodes_the_one_that_slurm_names():
    slurm = {
        "topology": "pool",
        "nodes": {"partition": "a"},
        "aw_nodes": {"partition": "b"},
        "ew_nodes": {"partition": "ab"},
    }
    for name, section in {"a": "nodes", "b": "aw_nodes", "ab": "ew_nodes"}.items():
        error = explain(f"sbatch: error: invalid partition specified: {name}", config(**slurm))
        assert isinstance(error, ConfigError)
        assert error.key == f"cluster.slurm.{section}.partition"


def test_what_will_never_be_possible():
    assert never("allocation failure: Requested node configuration is not available")
    assert not never("allocation failure: Required node not available (down, drained or reserved)")
    assert not never("")


def test_words_are_told_once_and_on_one_line():
    assert slurms_words("sbatch: error: a\nsbatch: error: a\n\nsbatch: error: b\n") == "a; b"
    assert slurms_words("something\nelse") == "something; else"
