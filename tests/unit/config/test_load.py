"""Reading a configuration: every mistake names its key, its value and what is allowed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarragon_hpc.config import Config, dump_config, load_config, parse_override
from tarragon_hpc.errors import ConfigError

MINIMAL = {"model": {"path": "some-model"}}


def test_model_path_alone_is_complete():
    config = load_config({"model": {"path": "some-model"}})
    assert (config.attention.workers, config.experts.workers) == (2, 2)
    assert (config.gateway.port, config.cluster.backend) == (8000, "local")


def test_file_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: {path: a}\nattention: {workers: 1, kv_cache: 2 GiB}\n")
    overrides = ["attention.workers=3", "gateway.port=0", "model.served_name=x", "run.name="]
    config = load_config(path, overrides)
    assert config.attention.workers == 3
    assert config.attention.kv_cache == 2 << 30
    assert config.gateway.port == 0
    assert config.model.served_name == "x"
    assert config.run.name is None


def test_override_creates_sections_and_reads_yaml():
    config = load_config({}, ["model.path=m", "experts.placement={ew0: [0], ew1: [1]}"])
    assert config.experts.placement == {"ew0": [0], "ew1": [1]}
    assert parse_override("a.b=[1, 2]") == (["a", "b"], [1, 2])
    assert parse_override("a.b=c=d") == (["a", "b"], "c=d")


def test_what_is_written_reads_back_equal(tmp_path):
    config = load_config(MINIMAL, ["attention.kv_cache=64MiB", "gateway.api_keys=[a, b]"])
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("268435456", 1 << 28), ("256MiB", 1 << 28), ("1.5 gib", 3 << 29), ("7b", 7)],
)
def test_bytes(text, value):
    config = load_config({"model": {"path": "m"}, "gateway": {"max_body": text}})
    assert config.gateway.max_body == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {}}, "modle: unknown key; did you mean 'model'? allowed: model, attention"),
        ({"model": {"path": "x", "dtyp": "auto"}}, "model.dtyp: unknown key; did you mean 'dtype'"),
        ({"model": {}}, "model.path: is required"),
        ({"model": {"path": "x", "dtype": "fp8"}}, "model.dtype: 'fp8': "),
        ({"attention": {"workers": "many"}}, "attention.workers: 'many': "),
        ({"attention": {"workers": 0}}, "attention.workers: 0: "),
        ({"attention": {"kv_cache": "lots"}}, "attention.kv_cache: 'lots': expected a number of"),
        ({"attention": 5}, "attention: 5: "),
        ({"gateway": {"port": 70000}}, "gateway.port: 70000: "),
        ({"gateway": {"api_keys": []}}, "gateway.api_keys: "),
        ({"checkpoint": {"stores": 1, "replicas": 2}}, "checkpoint.replicas: 2: needs as many"),
        ({"experts": {"batching": {"min_rows": 0}}}, "experts.batching.min_rows: 0: "),
        ({"run": {"name": "../x"}}, "run.name: '../x': "),
        ({"cluster": {"prefix": {"ew": []}}}, "cluster.prefix.ew: []: "),
        ({"cluster": {"prefix": {"ew": [""]}}}, "cluster.prefix.ew.0: '': "),
        ({"cluster": {"prefix": {"ew": ["nice", 5]}}}, "cluster.prefix.ew.1: 5: "),
        (
            {"cluster": {"prefix": {"ewx": ["nice"]}}},
            "cluster.prefix: {'ewx': ['nice']}: 'ewx' is neither a role (aw, ew, cs) nor a worker",
        ),
    ],
)
def test_mistakes_name_the_key(changes, message):
    with pytest.raises(ConfigError) as caught:
        load_config(MINIMAL | changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_counted():
    with pytest.raises(ConfigError, match=r"\(and 1 more\)"):
        load_config({"model": {"path": "x"}, "attention": {"workers": 0, "threads": 0}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"model: {path: x", "is not valid YAML (line 1)"),
        (b"- a\n- b\n", "must hold sections, at least `model: {path: DIR}`"),
        (b"", "must hold sections"),
        (b"\xff\xfe", "is not a UTF-8 text file"),
    ],
)
def test_unreadable_files(tmp_path, content, words):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["x", "=1", "a..b=1", ".a=1", "a.=1", ""])
def test_malformed_overrides(text):
    with pytest.raises(ConfigError, match="expected KEY.SUBKEY=VALUE"):
        parse_override(text)


def test_override_under_a_value():
    with pytest.raises(ConfigError, match=r"model\.path: is a value, not a section"):
        load_config({"model": {"path": "x"}}, ["model.path.y=1"])


def test_override_with_invalid_yaml():
    with pytest.raises(ConfigError, match="is not a YAML value"):
        load_config({"model": {"path": "x"}}, ["model.path=[1"])


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from([*Config.model_fields, "path", "x"]) | st.text(max_size=4) | st.integers()


@given(st.dictionaries(KEYS, YAML | st.dictionaries(KEYS, YAML, max_size=3), max_size=4))
def test_anything_is_a_configuration_or_a_mistake_that_is_explained(data):
    with contextlib.suppress(ConfigError):
        assert isinstance(load_config(data), Config)


def test_the_input_is_not_changed():
    data = {"model": {"path": "x"}}
    load_config(data, ["model.seed=5"])
    assert data == {"model": {"path": "x"}}


@pytest.mark.parametrize("keys", ["a-key", [""], [5], ["a-key", None]])
def test_a_mistake_in_the_keys_is_explained_without_them(keys):
    with pytest.raises(ConfigError, match=r"gateway\.api_keys") as mistake:
        load_config({"model": {"path": "x"}, "gateway": {"api_keys": keys}})
    assert "a-key" not in str(mistake.value)
