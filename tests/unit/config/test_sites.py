"""What a site needs comes from a file of its own, under what the user says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tarragon_hpc.config import dump_config, load_config
from tarragon_hpc.errors import ConfigError

OURS = Path(__file__).parents[3] / "slurm" / "sites"
MODEL = {"model": {"path": "m"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's sites."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TARRAGON_SITES", raising=False)
    folder = tmp_path / ".config/tarragon/sites"
    folder.mkdir(parents=True)
    return folder


def write(folder, name, text):
    (folder / name).write_text(text)


@pytest.mark.parametrize("path", sorted(OURS.iterdir()), ids=lambda p: p.stem)
def test_those_in_the_checkout_are_whole(path, folder, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    config = load_config(MODEL, site=path.stem)
    assert config.cluster.backend == "slurm"
    assert config.cluster.slurm.site is None
    said = yaml.safe_load(path.read_text())
    assert said["cluster"]["slurm"]["nodes"].keys() <= config.cluster.slurm.nodes.model_fields_set


def test_the_user_counts_more_and_sections_are_merged(folder):
    write(
        folder,
        "home.yaml",
        "cluster: {slurm: {account: a, nodes: {partition: p, gpus_per_node: 4},"
        " directives: {nice: 1, comment: x}, modules: [cuda]}}\n"
        "gateway: {port: 9}\n",
    )
    user = {
        **MODEL,
        "cluster": {"slurm": {"site": "home", "nodes": {"partition": "q"}, "modules": []}},
    }
    config = load_config(user, ["cluster.slurm.directives.nice=2"])
    slurm = config.cluster.slurm
    assert (slurm.account, slurm.nodes.partition, slurm.nodes.gpus_per_node) == ("a", "q", 4)
    assert (slurm.directives, slurm.modules) == ({"nice": 2, "comment": "x"}, [])
    assert "port" in config.gateway.model_fields_set
    assert load_config(yaml.safe_load(dump_config(config))) == config


def test_the_option_counts_more_than_the_file_and_set_is_as_good(folder):
    write(folder, "one.yaml", "cluster: {slurm: {account: one}}")
    write(folder, "two.yaml", "cluster: {slurm: {account: two}}")
    user = {**MODEL, "cluster": {"slurm": {"site": "one"}}}
    assert load_config(user, site="two").cluster.slurm.account == "two"
    assert load_config(MODEL, ["cluster.slurm.site=two"]).cluster.slurm.account == "two"


def test_where_a_name_is_looked_up(folder, tmp_path, monkeypatch):
    write(folder, "a.yaml", "cluster: {slurm: {account: home}}")
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    write(chosen, "a.yaml", "cluster: {slurm: {account: chosen}}")
    assert load_config(MODEL, site="a").cluster.slurm.account == "home"
    monkeypatch.setenv("TARRAGON_SITES", str(chosen))
    assert load_config(MODEL, site="a").cluster.slurm.account == "chosen"
    assert load_config(MODEL, site=str(folder / "a.yaml")).cluster.slurm.account == "home"


def test_the_environment_is_in_the_path_of_runs(folder, monkeypatch):
    write(folder, "a.yaml", "run: {root: '$SCRATCH/x/${USERNAME}'}")
    monkeypatch.setenv("SCRATCH", "/fast")
    monkeypatch.delenv("USERNAME", raising=False)
    with pytest.raises(ConfigError) as caught:
        load_config(MODEL, site="a")
    assert str(caught.value) == (
        "a.yaml: run.root: '$SCRATCH/x/${USERNAME}': $USERNAME is not set here"
    )
    monkeypatch.setenv("USERNAME", "me")
    assert load_config(MODEL, site="a").run.root == "/fast/x/me"


@pytest.mark.parametrize(
    ("site", "words"),
    [
        ("nowhere", "cluster.slurm.site: 'nowhere': no file nowhere.yaml in ~/.config/tarragon"),
        ("./no.yaml", "cluster.slurm.site: './no.yaml': there is no such file"),
        ("typo", "typo.yaml: cluster.slurm.acount: unknown key; did you mean 'account'?"),
        (
            "nodes",
            "nodes.yaml: cluster.slurm.aw_nodes.gputype: unknown key; did you mean 'gpu_type'?",
        ),
        ("value", "value.yaml: cluster.slurm.nodes.gpus_per_node: 'many': "),
        ("nested", "nested.yaml: cluster.slurm.site: is not for the file of a site itself"),
        ("empty", "empty.yaml: must hold sections of a configuration"),
    ],
)
def test_mistakes_name_the_file_and_the_key(folder, site, words):
    write(folder, "typo.yaml", "cluster: {slurm: {acount: x}}")
    write(folder, "nodes.yaml", "cluster: {slurm: {aw_nodes: {gputype: x}}}")
    write(folder, "value.yaml", "cluster: {slurm: {nodes: {gpus_per_node: many}}}")
    write(folder, "nested.yaml", "cluster: {slurm: {site: typo}}")
    write(folder, "empty.yaml", "# nothing\n")
    with pytest.raises(ConfigError) as caught:
        load_config(MODEL, site=site)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_there_is_said(folder):
    with pytest.raises(ConfigError, match="there are: cpu-test, gpus-per-node, gres, "):
        load_config(MODEL, site="nowhere")


def test_a_site_that_is_no_name_is_refused():
    with pytest.raises(ConfigError, match=r"cluster\.slurm\.site: 5: "):
        load_config(MODEL, ["cluster.slurm.site=5"])
