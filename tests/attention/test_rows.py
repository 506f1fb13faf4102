"""Which rows of a step are real, told from vLLM's forward context."""

from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"layer.0": SimpleNamespace(num_actual_tokens=5)}, 5),
        ({"layer.0": SimpleNamespace(num_actual_tokens=8)}, 8),
        (None, 0),  # vLLM profiles, warms up or captures
        ({}, 0),
    ],
)
def test_padding_is_not_real(metadata, expected):
    from vllm.forward_context import ForwardContext, override_forward_context

    from tarragon_hpc.attention.engine import _real_rows

    context = ForwardContext(no_compile_layers={}, attn_metadata=metadata, slot_mapping={})
    with override_forward_context(context):
        assert _real_rows(8) == expected


def test_every_row_of_every_layer_goes_out_once(tiny_models, ours):
    from tests.attention.conftest import Case

    aw = ours(tiny_models("deepseek-v3"))
    aw.experts.calls.clear()
    aw.generate([Case([5, 6, 7], {"max_tokens": 3}), Case([8], {"max_tokens": 3})])
    layers = sorted({layer for layer, _ in aw.experts.calls})
    assert layers == [1, 2, 3], "layer 0 of this family is dense"
    for layer in layers:
        assert [rows for i, rows in aw.experts.calls if i == layer] == [4, 2, 2]
