"""Messages, tool calls, turns in a text and trees: any spelling in, one spelling out."""

import json

import pytest

from rung.errors import DataError
from rung.text.messages import normalise, with_system, with_tools
from rung.text.trees import best_path, ranked_replies
from rung.text.turns import parse_turns

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
RESULT = "<tool_response>\n1\n</tool_response>"
TOOL = {"name": "add", "parameters": {"type": "object"}}


def test_tool_calls_of_every_spelling_are_the_same_text():
    sharegpt = [
        {"from": "human", "value": "Add"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "One."},
    ]
    inner = {"name": "add", "arguments": '{"a": 1}'}
    openai = [
        {"role": "user", "content": [{"type": "text", "text": "Add"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "type": "function", "function": inner}],
        },
        {"role": "tool", "tool_call_id": "x", "content": "1"},
        {"role": "assistant", "content": "One."},
    ]
    old = [*openai[:1], {"role": "assistant", "content": "", "function_call": inner}, *openai[2:]]
    expected = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": CALL},
        {"role": "user", "content": RESULT},
        {"role": "assistant", "content": "One."},
    ]
    for spelling in (sharegpt, openai, old):
        assert normalise(spelling, where="a:1") == expected


def test_calls_made_together_are_one_message_and_their_results_too():
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "Add"},
        {"role": "assistant", "content": "Sure.", "tool_calls": [call, call], "weight": 1},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "1"},
        {"role": "user", "content": "Go on"},
    ]
    read = normalise(messages, where="a:1")
    assert [message["role"] for message in read] == ["user", "assistant", "user"]
    assert read[1] == {"role": "assistant", "content": f"Sure.\n{CALL}\n{CALL}", "weight": 1}
    assert read[2]["content"] == f"{RESULT}\n{RESULT}\nGo on"


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [{"type": "f", "function": TOOL}]])
def test_tools_go_into_the_system_message(tools):
    ask = [{"role": "user", "content": "Add"}]
    system = with_tools(tools, ask, where="a:1")[0]
    assert system["role"] == "system"
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in system["content"]
    both = with_tools(tools, with_system("Be brief.", ask, where="a:1"), where="a:1")
    assert both[0]["content"] == f"Be brief.\n\n{system['content']}"
    assert with_tools("[]", ask, where="a:1") == ask


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"role": "owl", "content": "Hi"}], "role 'owl' is not supported"),
        ([{"role": ["user"], "content": "Hi"}], "is not supported"),
        ([{"from": "function_call", "value": "add(1)"}], "the tool call is not JSON.*for example"),
        ([{"from": "function_call", "value": '{"a": 1}'}], "object with name and arguments"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url'"),
        ([{"role": "user", "content": "Hi", "weight": 1}], "only answers are trained"),
        ([{"role": "assistant", "content": "Hi", "weight": float("nan")}], "must be a number >= 0"),
        (
            [
                {"role": "assistant", "content": "Hi", "weight": 0},
                {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
            ],
            "different weights",
        ),
    ],
)
def test_what_is_no_message_is_named(value, message):
    with pytest.raises(DataError, match=rf"a:1: .*{message}"):
        normalise(value, where="a:1")


@pytest.mark.parametrize(
    ("tools", "message"),
    [("{", "tools is not JSON"), ({"a": 1}, "list of objects"), ([{"a": 1}], "has no name")],
)
def test_what_are_no_tools_is_named(tools, message):
    with pytest.raises(DataError, match=message):
        with_tools(tools, [{"role": "user", "content": "Hi"}], where="a:1")


@pytest.mark.parametrize(
    "text",
    [
        "### Human: Hi ### Assistant: Hello! ### Human: Bye ### Assistant: Bye!",
        "### Instruction:\nHi\n\n### Response:\nHello!\n\n### Human: Bye\n### Assistant: Bye!",
        "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Bye\n\nAssistant: Bye!",
    ],
)
def test_turns_in_a_text_are_messages(text):
    contents = [(message["role"], message["content"]) for message in parse_turns(text)]
    assert contents == [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Bye"),
        ("assistant", "Bye!"),
    ]


def test_a_plain_text_has_no_turns():
    assert parse_turns("A heading\n\nHuman: said so") is None
    assert parse_turns("### Humans and machines") is None


def reply(text, rank=None, *replies, role="assistant"):
    return {"role": role, "text": text, "rank": rank, "replies": list(replies)}


def test_a_tree_gives_its_best_path_and_every_ranking():
    again = reply("And?", None, reply("c", 1), reply("d", 0), role="prompter")
    tree = {"prompt": reply("Hi", None, reply("a", 1), reply("b", 0, again), role="prompter")}
    path = best_path(tree, where="a:1")
    assert [message["content"] for message in path] == ["Hi", "b", "And?", "d"]
    first, second = ranked_replies(tree, where="a:1")
    assert (first.answers, first.ranks) == (["b", "a"], [0, 1])
    assert [message["content"] for message in second.prompt] == ["Hi", "b", "And?"]
    assert second.answers == ["d", "c"]


def test_a_tree_without_ranks_or_answers():
    asked = reply("And?", role="prompter")
    tree = {"prompt": reply("Hi", None, reply("a", None, asked), reply("b"), role="prompter")}
    assert [m["content"] for m in best_path(tree, where="a:1")] == ["Hi", "a"]
    assert ranked_replies(tree, where="a:1") == []
    some = {"prompt": reply("Hi", None, reply("a"), reply("b", 2), role="prompter")}
    assert [m["content"] for m in best_path(some, where="a:1")] == ["Hi", "b"]
    assert len(best_path({"prompt": reply("Hi", role="prompter")}, where="a:1")) == 1
    with pytest.raises(DataError, match="a:1: rank '0' of a reply is no whole number"):
        best_path({"prompt": reply("Hi", None, reply("a", "0"), role="prompter")}, where="a:1")
