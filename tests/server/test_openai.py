"""Every inference route and option, by the stock client at its strictest, on a real engine."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from draftsmith.server.openai.schemas import ChatRequest
from tests.server.processes import MODEL, GatewayProcess

CHAT: Any = [{"role": "user", "content": "Name three colours."}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
CITIES = ({"city": "Rome"}, {"city": "Oslo"})
FUNCTION = {"name": "weather", "description": "Weather of a city.", "parameters": SCHEMA}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
JSON_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}


@pytest.fixture
def client(gateway: GatewayProcess) -> openai.OpenAI:
    return gateway.strict()


def chat(client: openai.OpenAI, **options: Any) -> Any:
    values = {"messages": CHAT, "temperature": 0, "max_completion_tokens": 400} | options
    return client.chat.completions.create(model=MODEL, **values)


def test_chat_options(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"n": 2, "seed": 3, "temperature": 1.0, "max_completion_tokens": 8}
    options |= {"frequency_penalty": 0.5, "presence_penalty": -0.5, "top_p": 0.9}
    options |= {"logprobs": True, "top_logprobs": 3, "parallel_tool_calls": True}
    answer = chat(client, **options)
    assert [one.index for one in answer.choices] == [0, 1]
    tokens = [one.logprobs.content for one in answer.choices]
    assert sum(map(len, tokens)) == answer.usage.completion_tokens
    assert len(tokens[0][0].top_logprobs) == 3
    again = chat(client, **options)
    assert [one.message for one in again.choices] == [one.message for one in answer.choices]

    streamed = list(chat(client, **options, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1].usage.completion_tokens == answer.usage.completion_tokens
    for choice in answer.choices:
        pieces = [c for one in streamed for c in one.choices if c.index == choice.index]
        assert "".join(one.delta.content or "" for one in pieces) == choice.message.content


def test_penalties_change_the_answer(client: openai.OpenAI) -> None:
    plain = chat(client, max_completion_tokens=40).choices[0].message.content
    other = chat(client, max_completion_tokens=40, frequency_penalty=2.0)
    assert other.choices[0].message.content != plain


def test_stop(client: openai.OpenAI) -> None:
    text = client.completions.create(model=MODEL, prompt="A", max_tokens=24, temperature=0)
    said = text.choices[0].text
    stop = said[6:9]
    cut = client.completions.create(
        model=MODEL, prompt="A", max_tokens=24, temperature=0, stop=[stop, "never said"]
    )
    assert cut.choices[0].text == said[: said.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_schema(client: openai.OpenAI, temperature: float) -> None:
    """A grammar restricts drafts and target alike."""
    answer = chat(client, response_format=JSON_SCHEMA, temperature=temperature)
    assert json.loads(answer.choices[0].message.content) in CITIES
    stream = chat(client, response_format=JSON_SCHEMA, temperature=temperature, stream=True)
    text = "".join(one.choices[0].delta.content or "" for one in stream)
    assert json.loads(text) in CITIES


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_tools(client: openai.OpenAI, choice: Any) -> None:
    # An untrained model may go on and on with white space between two parts of the JSON.
    options: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "frequency_penalty": 2.0}
    message = chat(client, **options).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) in CITIES

    name = arguments = ""
    for chunk in chat(client, **options, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or []:
            name += piece.function.name or ""
            arguments += piece.function.arguments or ""
    assert name == "weather"
    assert json.loads(arguments) in CITIES

    # The next turn: the call goes back as it came, with its result.
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    after = chat(client, messages=[*CHAT, message, result], tools=TOOLS, max_completion_tokens=4)
    assert after.usage.completion_tokens <= 4


def test_a_client_that_wants_loose_arguments_is_left_alone() -> None:
    def sent(choice: Any, **function: Any) -> Any:
        tools = [{"type": "function", "function": {"name": "f"} | function}]
        body = {"model": MODEL, "messages": CHAT, "tools": tools, "tool_choice": choice}
        return ChatRequest.model_validate(body).for_engine()["tools"][0]["function"]

    assert sent("required", parameters=SCHEMA)["strict"] is True
    assert sent("required") == {"name": "f", "strict": True, "parameters": {"type": "object"}}
    assert sent("required", strict=False)["strict"] is False
    assert sent("auto", parameters=SCHEMA) == {"name": "f", "parameters": SCHEMA}


def test_tools_are_shown_to_the_model_and_may_stay_unused(client: openai.OpenAI) -> None:
    without = chat(client, max_completion_tokens=4)
    auto = chat(client, tools=TOOLS, max_completion_tokens=4)
    assert auto.usage.prompt_tokens > without.usage.prompt_tokens + 20
    assert auto.choices[0].message.content
    assert not auto.choices[0].message.tool_calls
    empty = chat(client, tools=[], max_completion_tokens=4)
    assert empty.usage.prompt_tokens == without.usage.prompt_tokens


def test_template_variables(client: openai.OpenAI) -> None:
    without = chat(client, max_completion_tokens=1)
    variables = {"chat_template_kwargs": {"enable_thinking": True}}
    thinking = chat(client, max_completion_tokens=1, extra_body=variables)
    assert thinking.usage.prompt_tokens > without.usage.prompt_tokens


WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": NAMED | {"function": {"name": "no"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": "two words"}}]}, "tools.0.function.name"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"speculation": {"num_tokens": 99}}, "speculation.num_tokens"),
    ({"speculation": {"num_tokens": -1}}, "speculation.num_tokens"),
    ({"speculation": {"enabled": False, "num_tokens": 2}}, "speculation"),
    ({"speculation": {"lookahead": 2}}, "speculation.lookahead"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), WRONG_CHAT, ids=lambda value: str(value)[:40])
def test_wrong_chat_fields(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "messages": CHAT, "max_tokens": 4} | fields
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert caught.value.param == param
    assert caught.value.code == "invalid_value"


def test_a_schema_that_is_none(client: openai.OpenAI) -> None:
    schema = {"name": "x", "schema": {"type": "no such type"}}
    with pytest.raises(openai.BadRequestError):
        chat(client, response_format={"type": "json_schema", "json_schema": schema})
    assert chat(client, max_completion_tokens=2).choices


def test_tokens_there_and_back(gateway: GatewayProcess) -> None:
    with gateway.client() as http:
        said = http.post("/tokenize", json={"model": MODEL, "prompt": "The draft"}).json()
        assert said["count"] == len(said["tokens"]) > 1
        back = http.post("/detokenize", json={"model": MODEL, "tokens": said["tokens"]}).json()
        assert "The draft" in back["prompt"]
        rendered = http.post("/tokenize", json={"model": MODEL, "messages": CHAT}).json()
        with_tools = {"model": MODEL, "messages": CHAT, "tools": TOOLS}
        assert http.post("/tokenize", json=with_tools).json()["count"] > rendered["count"]
        wrong: list[Any] = [{}, {"prompt": "a", "messages": CHAT}, {"prompt": "a", "x": 1}]
        for fields in wrong:
            answer = http.post("/tokenize", json={"model": MODEL} | fields)
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_value"
        negative = http.post("/detokenize", json={"model": MODEL, "tokens": [-1]})
        assert negative.status_code == 400
        unknown = http.post("/tokenize", json={"model": "no", "prompt": "a"})
        assert unknown.json()["error"]["code"] == "model_not_found"


def test_responses(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "max_output_tokens": 16, "temperature": 0}
    whole = client.responses.create(input="Name three colours.", **options)
    said = chat(client, max_completion_tokens=16)
    assert whole.output_text == said.choices[0].message.content
    assert whole.status in ("completed", "incomplete")
    assert whole.usage is not None
    assert whole.usage.input_tokens == said.usage.prompt_tokens
    assert whole.usage.output_tokens == said.usage.completion_tokens

    text, last = "", None
    for event in client.responses.create(input="Name three colours.", stream=True, **options):
        if event.type == "response.output_text.delta":
            text += event.delta
        last = event
    assert text == whole.output_text
    assert last is not None
    assert last.type in ("response.completed", "response.incomplete")

    turns: Any = [
        {"role": "user", "content": "Name three colours."},
        {"role": "assistant", "content": whole.output_text},
        {"role": "user", "content": [{"type": "input_text", "text": "Go on."}]},
    ]
    longer = client.responses.create(input=turns, instructions="Be short.", **options)
    assert longer.usage is not None
    assert longer.usage.input_tokens > whole.usage.input_tokens


def test_responses_with_schema_and_tools(client: openai.OpenAI) -> None:
    options: Any = {"model": MODEL, "max_output_tokens": 400, "temperature": 0}
    # Without a place for white space, which an untrained model may go on and on with.
    cities = {"type": "json_schema", "name": "city", "schema": {"enum": ["Rome", "Oslo"]}}
    form: Any = {"format": cities}
    answer = client.responses.create(input="Where?", text=form, **options)
    assert json.loads(answer.output_text) in ("Rome", "Oslo")
    options |= {"tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"}
    options |= {"extra_body": {"frequency_penalty": 2.0}}
    called = client.responses.create(input="Where?", **options)
    (call,) = [one for one in called.output if one.type == "function_call"]
    assert call.name == "weather"
    assert json.loads(call.arguments) in CITIES

    arguments = ""
    for event in client.responses.create(input="Where?", stream=True, **options):
        if event.type == "response.function_call_arguments.delta":
            arguments += event.delta
    assert json.loads(arguments) in CITIES


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"previous_response_id": "resp_1"},
        {"background": True},
        {"conversation": "c"},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"type": "item_reference", "id": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
    ],
    ids=str,
)
def test_responses_that_would_need_more_than_the_request(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body={"model": MODEL, "input": "a"} | fields, cast_to=object)
    assert caught.value.code == "invalid_value"
    assert (caught.value.param or "").startswith(next(iter(fields)))
