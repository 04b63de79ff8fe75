"""Text as it becomes final: whole characters, and nothing of what a stop text hides."""

from hypothesis import given
from hypothesis import strategies as st

from rung.engine.textstream import TextStream

ALPHABET = "ab\u00e9\u20ac\U0001f600 "


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


def stream(text: str, stops: list[str]) -> tuple[list[str], list[int], str | None]:
    """Pieces, notes in order, and the stop text; a token is a byte."""
    out: TextStream[int] = TextStream(decode, stops)
    pieces, notes = [], []
    for place, token in enumerate(text.encode()):
        shown = out.push(token, place)
        pieces.append(shown.text)
        notes += shown.notes
        if shown.stop is not None:
            return pieces, notes, shown.stop
    shown = out.finish()
    return [*pieces, shown.text], notes + shown.notes, shown.stop


@given(st.text(ALPHABET, max_size=30), st.lists(st.text(ALPHABET, min_size=1, max_size=4)))
def test_pieces_join_to_the_text_before_the_first_stop(text: str, stops: list[str]) -> None:
    """Which is the first to be complete, character by character: what a reader would cut at."""
    ends = [(at + len(stop), stop) for stop in stops if (at := text.find(stop)) >= 0]
    first = min((end for end, _ in ends), default=None)
    met = max((stop for end, stop in ends if end == first), key=len, default=None)
    expected = text if first is None or met is None else text[: first - len(met)]
    pieces, notes, stop = stream(text, stops)
    assert "".join(pieces) == expected
    assert stop == met
    assert all("\ufffd" not in piece for piece in pieces)
    # notes come with the text of their tokens: those of a byte each, up to the cut
    assert notes == list(range(len(expected.encode())))


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    out: TextStream[None] = TextStream(decode, ["abc"])
    shown = [out.push(token, None).text for token in b"xababd"]
    assert shown == ["x", "", "", "ab", "", "abd"]


def test_a_token_cut_by_a_stop_comes_with_its_text() -> None:
    words = ["ab", "cd", "ef"]
    out: TextStream[int] = TextStream(lambda ids: "".join(words[i] for i in ids), ["de"])
    assert [out.push(n, n).notes for n in range(3)] == [[0], [], [1]]
    out = TextStream(lambda ids: "".join(words[i] for i in ids), ["ef"])
    assert [out.push(n, n) for n in range(3)][2] == ("", [], "ef")


def test_a_character_that_never_ends_is_shown_as_broken() -> None:
    out: TextStream[int] = TextStream(decode, [])
    assert [out.push(token, n).text for n, token in enumerate([97, 0xE2, 0x82])] == ["a", "", ""]
    assert out.finish() == ("\ufffd", [1, 2], None)
