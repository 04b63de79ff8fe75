"""Text assembly: however an answer is cut into pieces, a client reads the same."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.serve.assembly import (
    CLOSE,
    OPEN,
    TokenTexts,
    ToolCall,
    ToolCallReader,
    parse_call,
    read_answer,
    shown_bytes,
)

CALL = f'{OPEN}\n{{"name": "f", "arguments": {{"a": 1}}}}\n{CLOSE}'
PIECES = st.sampled_from(
    ["a", " ", "\n", "<", "<tool", OPEN, CLOSE, CALL, '{"name": "f"}', "\u20ac", "</tool_call", ">"]
)


@st.composite
def cut_texts(draw):
    text = "".join(draw(st.lists(PIECES, max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return text, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(cut_texts())
def test_a_stream_of_calls_is_the_whole_whatever_the_pieces(case):
    text, pieces = case
    reader = ToolCallReader()
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    content, calls = read_answer(text)
    assert "".join(p for p in parts if isinstance(p, str)) == (content or "")
    assert [p for p in parts if isinstance(p, ToolCall)] == calls
    assert reader.num_calls == len(calls)


@given(st.text(alphabet=" \nab<>tol_cal/", max_size=40))
def test_text_without_a_call_comes_through_unchanged(text):
    assert read_answer(text) == (text, [])


def test_a_call_and_what_is_around_it():
    call = ToolCall("f", '{"a": 1}')
    assert read_answer(CALL) == (None, [call])
    assert read_answer(f"Look: \n{CALL}\n") == ("Look:", [call])
    assert read_answer(f"{CALL}\n{CALL} done") == (" done", [call, call])
    assert read_answer(CALL.removesuffix(CLOSE)) == (None, [call])  # many models stop there
    assert read_answer(CALL[:-20]) == (CALL[:-20], [])


@pytest.mark.parametrize(
    "body",
    ["", "f()", "[1]", '{"arguments": {}}', '{"name": 3}', '{"name": "f", "arguments": [1]}',
     '{"name": "f", "name": "g"}', "[" * 5000],
)  # fmt: skip
def test_what_is_no_call(body):
    assert parse_call(body) is None


def test_a_call_may_lack_arguments_or_call_them_parameters():
    assert parse_call('{"name": "f"}') == ToolCall("f", "{}")
    found = parse_call('{"name": "f", "parameters": {"x": "\u00e9"}}')
    assert found is not None
    assert json.loads(found.arguments) == {"x": "\u00e9"}


@given(st.text(max_size=12), st.data())
def test_token_texts_joined_are_the_text(text, data):
    """Cut anywhere, within characters too: nothing is lost, nothing comes twice."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    texts = TokenTexts()
    bounds = list(zip([0, *cuts], [*cuts, len(raw)], strict=True))
    told = [texts.push(raw[a:b], last=b == len(raw)) for a, b in bounds]
    assert "".join(told) == text


def test_a_part_of_a_character_by_itself_shows_its_bytes():
    assert shown_bytes(b"ab") == "ab"
    assert shown_bytes("\u20ac".encode()[:2]) == "bytes:\\xe2\\x82"
