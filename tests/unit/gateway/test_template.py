"""Chat templates: what transformers allows, in a sandbox."""

from __future__ import annotations

import json
import re

import jinja2
import pytest

from tarragon_hpc.errors import ModelError, RequestError
from tarragon_hpc.gateway.template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a<b"}]


def render(source, messages=TALK, **options):
    return ChatTemplate(source, TOKENS).render(messages, **options)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>hi</s>"),
        ("{{ messages[1]['content'] | tojson }}", '"a<b"'),
        ("{{ {'b': 1, 'a': 'é'} | tojson(indent=1, sort_keys=true) }}",
         '{\n "a": "é",\n "b": 1\n}'),
        ("{% if add_generation_prompt %}go{% endif %}", "go"),
        ("{{ tools is none }} {{ documents is none }}", "True True"),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{%- for m in messages %}\n    {% generation %}\n{{ m.role }};\n{% endgeneration %}\n"
         "{%- endfor %}", "user;\nassistant;\n"),
        ("{{ missing is defined }}", "False"),
        ("  {% if true %}\nline\n  {% endif %}\n", "line\n"),
    ],
)  # fmt: skip
def test_what_templates_use(source, text):
    assert render(source) == text


def test_variables_of_the_request():
    assert render("{{ enable_thinking }}", variables={"enable_thinking": False}) == "False"
    assert render("{{ add_generation_prompt }}", add_generation_prompt=False) == "False"
    assert re.fullmatch(r"\d{4}", render("{{ strftime_now('%Y') }}"))
    template = ChatTemplate("{% set x = 1 %}{{ x }}{{ reasoning_effort }}", TOKENS)
    assert template.uses("reasoning_effort")
    assert not template.uses("x")
    with pytest.raises(RequestError, match="'messages' is set") as error:
        render("", variables={"messages": []})
    assert error.value.param == "chat_template_kwargs"


def test_developer_is_system_to_a_template_that_does_not_know_it():
    talk = [{"role": "developer", "content": "x"}]
    assert render("{{ messages[0].role }}", talk) == "system"
    assert render("{% if messages[0].role == 'developer' %}yes{% endif %}", talk) == "yes"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0]['content'] | map('nothing') | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ nothing.x }}",
    ],
)
def test_whatever_goes_wrong_in_a_template_is_an_error_of_the_request(source):
    with pytest.raises(RequestError, match="chat template refuses") as error:
        render(source)
    assert error.value.param == "messages"


def test_the_reason_of_a_template_is_told():
    with pytest.raises(RequestError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_where_templates_are_found(tmp_path):
    settings = tmp_path / "tokenizer_config.json"
    assert ChatTemplate.load(tmp_path) is None
    settings.write_text(json.dumps(TOKENS))
    assert ChatTemplate.load(tmp_path) is None
    settings.write_text(json.dumps(TOKENS | {"chat_template": "one {{ bos_token }}"}))
    assert ChatTemplate.load(tmp_path).render([]) == "one <s>"
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "two"}]
    settings.write_text(json.dumps({"chat_template": several}))
    assert ChatTemplate.load(tmp_path).render([]) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert ChatTemplate.load(tmp_path).render([]) == "three"


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", 5])
def test_a_broken_template_names_its_file(tmp_path, template):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ModelError, match=r"tokenizer_config.json: chat.template"):
        ChatTemplate.load(tmp_path)


def test_the_sandbox_is_jinjas():
    with pytest.raises(jinja2.TemplateSyntaxError):
        ChatTemplate("{% include 'x' %}{% nothing %}", {})
