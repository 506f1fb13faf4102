"""Structured output: what a request may ask for, and what an AW is told."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from tarragon_hpc.errors import RequestError
from tarragon_hpc.gateway.fields import read_request
from tarragon_hpc.gateway.schema import ChatRequest, CompletionRequest
from tarragon_hpc.gateway.structure import structure_of
from tarragon_hpc.wire.common import StructureSpec
from tarragon_hpc.wire.structure import MAX_TEXT

SCHEMA = {"type": "object", "properties": {"z": {"type": "integer"}, "a": {"const": "\u20ac"}}}
IN_FORMAT = "response_format.json_schema.schema"
BODIES = [
    (ChatRequest, {"messages": [{"role": "user", "content": "hi"}]}),
    (CompletionRequest, {"prompt": "hi"}),
]


def schema_format(schema, **more):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **more}}


@pytest.fixture(params=BODIES, ids=["chat", "completion"])
def ask(request):
    """The structure that a request with these fields asks for."""
    model, body = request.param
    return lambda **fields: structure_of(read_request(model, body | fields))


@pytest.mark.parametrize(
    ("fields", "kind", "text", "param"),
    [
        ({"response_format": schema_format(SCHEMA)}, "json", SCHEMA, IN_FORMAT),
        ({"response_format": schema_format({}, strict=None, description="d")}, "json", {},
         IN_FORMAT),
        ({"response_format": schema_format(SCHEMA, strict=True)}, "json", SCHEMA, IN_FORMAT),
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, "json", {"type": "null"},
         "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "json_object", "",
         "structured_outputs.json_object"),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a", "\u20ac"]}}, "choice", ["a", "\u20ac"],
         "structured_outputs.choice"),
        ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", 'root ::= "a"',
         "structured_outputs.grammar"),
        ({"response_format": {"type": "text"}, "structured_outputs": {"regex": ""}}, "regex", "",
         "structured_outputs.regex"),
        ({"structured_outputs": {  # as vLLM's own client code sends it
            "json": None, "regex": "a", "choice": None, "grammar": None, "json_object": None,
            "disable_any_whitespace": False, "disable_additional_properties": False,
            "whitespace_pattern": None, "structural_tag": None}}, "regex", "a",
         "structured_outputs.regex"),
    ],
)  # fmt: skip
def test_what_is_asked_for(ask, fields, kind, text, param):
    structure = ask(**fields)
    assert (structure.kind, structure.param) == (kind, param)
    if isinstance(text, str):
        assert structure.text == text
    else:  # the order of properties is that of the output
        assert json.dumps(json.loads(structure.text)) == json.dumps(text)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "structured_outputs": None},
    ],
)
def test_nothing_is_asked_for(ask, fields):
    assert ask(**fields) is None


def nested(levels):
    schema = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("fields", "param", "why"),
    [
        ({"response_format": "json"}, "response_format", "must be an object"),
        ({"response_format": {}}, "response_format.type", "is required"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema",
         "is required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, IN_FORMAT,
         "is required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         "response_format.json_schema.name", "is required"),
        ({"response_format": schema_format([1])}, IN_FORMAT, "valid dictionary"),
        ({"response_format": schema_format("{}")}, IN_FORMAT, "valid dictionary"),
        ({"response_format": schema_format(nested(65))}, IN_FORMAT, "at most 64 levels"),
        ({"response_format": schema_format({"const": "x" * MAX_TEXT})}, IN_FORMAT,
         f"more than the {MAX_TEXT}"),
        ({"response_format": schema_format({}), "structured_outputs": {"regex": "a"}},
         "structured_outputs", "cannot be given together"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs",
         "got regex and choice"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object",
         "must be True"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice",
         "at least one string"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]", "valid string"),
        ({"structured_outputs": {"choice": ["a\0"]}}, "structured_outputs.choice", "NUL"),
        ({"structured_outputs": {"regex": "a\0"}}, "structured_outputs.regex", "NUL"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex", "valid string"),
        ({"structured_outputs": {"grammar": " \n"}}, "structured_outputs.grammar",
         "must not be empty"),
        ({"structured_outputs": {"json": "no json"}}, "structured_outputs.json",
         "must be a JSON schema"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json",
         "must be a JSON schema"),
        ({"structured_outputs": {"json": "[" * 10**5}}, "structured_outputs.json",
         "must be a JSON schema"),
        ({"structured_outputs": {"regex": "a", "structural_tag": "x"}},
         "structured_outputs.structural_tag", "must be None"),
        ({"structured_outputs": {"regex": "a", "backend": "x"}}, "structured_outputs.backend",
         "unrecognized"),
        ({"guided_json": {}}, "guided_json", "use structured_outputs.json"),
    ],
)  # fmt: skip
def test_mistakes_are_named(ask, fields, param, why):
    with pytest.raises(RequestError) as error:
        ask(**fields)
    assert error.value.status == 400
    assert error.value.param.startswith(param)  # a union's branches are named behind it
    assert str(error.value).startswith(param)
    assert why in str(error.value)


def test_the_deepest_and_longest_that_may_be(ask):
    assert ask(response_format=schema_format(nested(64))).kind == "json"
    assert len(ask(structured_outputs={"regex": "x" * MAX_TEXT}).text) == MAX_TEXT


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_every_choice_has_it(gateway, http, path):
    body = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "x"}
    choice = {"choice": ["a", "b"]}
    answer = http.post(f"/v1/{path}", json=body | {"n": 2, "structured_outputs": choice})
    assert answer.status_code == 200
    expected = StructureSpec("choice", '["a","b"]', "structured_outputs.choice")
    assert [m.sampling.structure for m in gateway.worker.submitted] == [expected] * 2


class Record(pydantic.BaseModel):
    """What a client of the openai package would parse into."""

    n: int


def test_parsing_with_the_openai_package(gateway, codec):
    gateway.worker.script = codec.encode('{"n": 7}', add_special_tokens=False)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        answer = client.chat.completions.parse(
            model="tiny", messages=[{"role": "user", "content": "hi"}], response_format=Record
        )
    assert answer.choices[0].message.parsed == Record(n=7)
    (submitted,) = gateway.worker.submitted
    structure = submitted.sampling.structure
    assert (structure.kind, structure.param) == ("json", IN_FORMAT)
    schema = json.loads(structure.text)
    assert schema["properties"]["n"]["type"] == "integer"
    assert schema["additionalProperties"] is False
