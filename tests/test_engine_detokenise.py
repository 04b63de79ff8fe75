"""Pieces of text add up to the whole, and no piece holds half a character."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from rung.engine.detokenise import REPLACEMENT, Detokeniser


def decode_bytes(ids: Sequence[int]) -> str:
    """A byte-level tokenizer with one token a byte: the hardest case for streaming."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(ids: Sequence[int]) -> list[str]:
    stream = Detokeniser(decode_bytes)
    return [*(stream.push(i) for i in ids), stream.finish()]


def test_a_character_comes_out_with_its_last_byte() -> None:
    assert pieces("a\u20acb".encode()) == ["a", "", "", "\u20ac", "b", ""]


def test_half_a_character_at_the_end_is_said_to_be_one() -> None:
    assert pieces("a\u20ac".encode()[:-1]) == ["a", "", "", REPLACEMENT]


def test_a_run_of_broken_bytes_does_not_stall_the_stream() -> None:
    out = pieces([0xFF] * 10)
    assert "".join(out) == REPLACEMENT * 10
    assert all(out[1:-1]), "each further broken byte settles the one before"


@given(st.text())
def test_text_streams_without_a_replacement_character(text: str) -> None:
    out = pieces(text.encode())
    assert "".join(out) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in out)


@settings(max_examples=300)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_bytes_add_up_to_the_decoded_whole(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == decode_bytes(ids)


def test_a_decoder_that_strips_the_first_space_keeps_the_others() -> None:
    words = [" to", " be", " or"]
    stream = Detokeniser(lambda ids: "".join(words[i] for i in ids).removeprefix(" "))
    assert "".join(stream.push(i) for i in range(3)) + stream.finish() == "to be or"


def test_tokens_without_text_are_passed_over() -> None:
    texts = ["a", "", "b"]  # a special token that the decoder leaves out
    stream = Detokeniser(lambda ids: "".join(texts[i] for i in ids))
    assert [stream.push(i) for i in (0, 1, 1, 2)] == ["a", "", "", "b"]
