"""Talking to a model folder, with a real tokenizer and a model that knows one answer."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rung.engine.sampling import Sampling
from rung.engine.talk import Conversation, chat, generate_text, printable, prompt_ids
from rung.errors import DataError
from rung.model.build import build_model
from rung.model.load import load_model, save_model
from rung.model.shape import ModelConfig, resolve
from rung.tokens.bpe import MIN_VOCAB, train_bpe, write_tokenizer
from rung.tokens.chat import render
from rung.tokens.special import END, ROLES
from rung.tokens.tokenizer import load_tokenizer

ANSWER = "It is 4 \u20ac."
CONTEXT = 128
GREEDY = Sampling(max_new_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model taught one answer by heart, so that stops and text are real."""
    path = tmp_path_factory.mktemp("model")
    write_tokenizer(train_bpe(["aaa"], vocab_size=MIN_VOCAB), path)  # a token is a byte
    tokenizer = load_tokenizer(path)
    shape = resolve(ModelConfig(size="1m", width=64, layers=1, context=CONTEXT))
    model = build_model(shape, tokenizer, seed=0)
    model.set_attn_implementation("sdpa")
    prompt = render(tokenizer, [{"role": "user", "content": "price?"}], generation_prompt=True).ids
    answer = np.append(tokenizer.encode(ANSWER), tokenizer.special(END))
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    save_model(model, path)
    return path


def test_a_chat_prompt_is_answered_and_stops(folder: Path) -> None:
    answer = generate_text(folder, ["price?"], chat=True, sampling=GREEDY)[0][0]
    assert (answer.text, answer.stopped) == (ANSWER, True)
    assert answer.num_tokens == len(ANSWER.encode()) + 1


def test_samples_are_listed_by_prompt(folder: Path) -> None:
    sampling = Sampling(max_new_tokens=3, temperature=2.0)
    out = generate_text(folder, ["a", "b"], chat=False, sampling=sampling, num_samples=3)
    assert [len(row) for row in out] == [3, 3]
    assert len({answer.text for answer in out[0]}) > 1


def test_prompt_ids_of_both_kinds(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    plain = prompt_ids(tokenizer, "ab", chat=False)
    assert plain.tolist() == [tokenizer.bos, *tokenizer.encode("ab")]
    framed = prompt_ids(tokenizer, "ab", chat=True, system="s")
    assert framed[-1] == tokenizer.special(ROLES["assistant"])
    assert tokenizer.special(ROLES["system"]) in framed
    with pytest.raises(DataError, match="chat template"):
        prompt_ids(tokenizer, "ab", chat=False, system="s")


def conversation(folder: Path, sampling: Sampling = GREEDY) -> Conversation:
    return Conversation(load_model(folder), load_tokenizer(folder), sampling=sampling)


def test_an_answer_streams_in_pieces_and_is_remembered(folder: Path) -> None:
    talk, pieces = conversation(folder), list[str]()
    assert talk.ask("price?", write=pieces.append) == 0
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)
    assert [m["content"] for m in talk.messages] == ["price?", ANSWER]


def test_a_long_conversation_drops_its_oldest_turns_and_says_so(folder: Path) -> None:
    talk = conversation(folder)
    dropped = [talk.ask("x" * 30, write=lambda piece: None) for _ in range(6)]
    assert dropped[0] == 0
    assert sum(dropped) > 0
    assert sum(dropped) + len(talk.messages) == 12, "each message is kept or counted once"
    roles = [m["role"] for m in talk.messages]
    assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_a_message_beyond_the_context_is_refused_and_forgotten(folder: Path) -> None:
    talk = conversation(folder)
    talk.ask("price?", write=lambda piece: None)
    before = talk.messages
    with pytest.raises(DataError, match="reads at most 104: shorten it"):
        talk.ask("x" * 200, write=lambda piece: None)
    assert talk.messages == before


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(folder: Path) -> None:
    talk, pieces = conversation(folder), list[str]()

    def write(piece: str) -> None:
        pieces.append(piece)
        if "".join(pieces) == "It":
            raise KeyboardInterrupt

    talk.ask("price?", write=write)
    assert talk.messages[-1]["content"] == "It"


def script(*lines: str) -> Callable[[str], str]:
    """A user who types `lines` and then Ctrl-D."""
    said: Iterator[str] = iter(lines)

    def read(prompt: str) -> str:
        for line in said:
            return line
        raise EOFError

    return read


def test_the_chat_loop(folder: Path) -> None:
    out: list[str] = []
    lines = ("price?", "", "/reset", "/rest", "price?", "y" * 300, "/quit", "never read")
    chat(folder, sampling=GREEDY, read=script(*lines), write=out.append)
    text = "".join(out)
    assert text.count(ANSWER + "\n") == 2, "after /reset the prompt is the first one again"
    assert "(forgotten)" in text
    assert "no command /rest" in text
    assert "shorten it" in text


@pytest.mark.parametrize("leave", [EOFError, KeyboardInterrupt])
def test_leaving_by_key(folder: Path, leave: type[BaseException]) -> None:
    def read(prompt: str) -> str:
        raise leave

    chat(folder, read=read, write=lambda piece: None)


def test_a_model_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\tc\n\x9b1m\u20ac") == "a[2Jb\tc\n1m\u20ac"
