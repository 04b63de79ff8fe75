"""Tasks of choice: rows that are read, log-probabilities, accuracies and their intervals."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rung.errors import DataError
from rung.evals.choice import Scores, choice_tree, item_row, score_items, summarise_task
from rung.evals.choice_rows import Item, fingerprint_tasks, read_items, read_tasks
from rung.model.build import build_model
from rung.model.shape import ModelConfig, resolve
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

STORIES = Path(__file__).parents[2] / "shared" / "data" / "model_tinystories656k"
TEXTS = ["The cats sleep on the mat. The dogs sleep in the sun, and it is warm. " * 3]
ITEMS = [
    Item("a", "The cats", ("sleep on the mat.", "sun", "warm the dogs sleep"), 0),
    Item("b", "", ("The dogs sleep.", "The dogs sleeps."), 1),
    Item("c", "The dogs sleep in ", ("the sun", "it"), 0),
    Item("d", "It is", ("warm",), 0),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(train_bpe(TEXTS, vocab_size=320), folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Any:
    shape = resolve(ModelConfig(width=32, layers=2, heads=2, kv_heads=2, ffn=64, context=64))
    return build_model(shape, tokenizer, seed=0).eval()


@pytest.fixture(scope="module")
def plain(model: Any) -> Any:
    """The same weights for plain calls, without our attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa")
    return twin


def reference(plain: Any, ids: list[int], tail: int) -> tuple[float, bool]:
    """Log-probability of the last `tail` ids by the plain forward, one text at a time."""
    with torch.inference_mode():
        logits = plain(input_ids=torch.tensor([ids])).logits[0].double()
    logps = torch.log_softmax(logits, -1)[:-1]
    targets = torch.tensor(ids[1:])
    chosen = logps.gather(1, targets[:, None])[:, 0][-tail:]
    return float(chosen.sum()), bool((logps.argmax(-1) == targets)[-tail:].all())


def test_scores_are_those_of_the_plain_forward(
    model: Any, plain: Any, tokenizer: Tokenizer
) -> None:
    texts = [
        [("The cats", " " + choice) for choice in ITEMS[0].choices],
        [("", choice) for choice in ITEMS[1].choices],
        [("The dogs sleep in", " " + choice) for choice in ITEMS[2].choices],
        [("It is", " warm")],
    ]
    for batch in (4096, 1):  # all at once, and item by item
        scores = score_items(model, tokenizer, ITEMS, context=64, tokens_per_batch=batch)
        for found, pairs in zip(scores, texts, strict=True):
            for at, (before, after) in enumerate(pairs):
                head = tokenizer.encode(before).tolist() if before else []
                whole = tokenizer.encode(before + after).tolist()
                tail = len(whole) - len(head)
                total, greedy = reference(plain, [tokenizer.bos, *whole], tail)
                assert found.logps[at] == pytest.approx(total, abs=1e-5)
                assert found.greedy[at] == greedy
                assert found.tokens[at] == tail


def test_a_text_the_model_would_say_is_greedy(model: Any, plain: Any, tokenizer: Tokenizer) -> None:
    """Of all words of the vocabulary exactly the likeliest next one."""
    before = tokenizer.encode("The")
    with torch.inference_mode():
        ids = torch.tensor([[tokenizer.bos, *before.tolist()]])
        order = plain(input_ids=ids).logits[0, -1].argsort(descending=True).tolist()
    words = [
        i for i in order if tokenizer.encode("The" + tokenizer.decode([i])).tolist()[1:] == [i]
    ]
    words = [i for i in words if tokenizer.decode([i]).startswith(" ")]
    items = [Item(str(i), "The", (tokenizer.decode([i])[1:],), 0) for i in words]
    found = score_items(model, tokenizer, items, context=64)
    assert [bool(s.greedy[0]) for s in found] == [i == order[0] for i in words]


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data/model_tinystories656k")
def test_a_token_over_the_border_belongs_to_the_choices() -> None:
    """In this vocabulary blanks end tokens: "of the" is 2 tokens, and "of the " 1."""
    tokenizer = load_tokenizer(STORIES)
    choices = ("cake", "mat.")
    tree, _ = choice_tree(tokenizer, Item("a", "the top of the", choices, 0), context=64)
    shared = tree[0].ids.tolist()
    before = tokenizer.encode("the top of the").tolist()
    assert shared == [tokenizer.bos, *before[:-2]]  # without "of " and "the"
    for child, choice in zip(tree[1:], choices, strict=True):
        whole = tokenizer.encode(f"the top of the {choice}").tolist()
        assert [*shared, *child.ids.tolist()] == [tokenizer.bos, *whole]


def test_a_long_prompt_loses_its_beginning(model: Any, plain: Any, tokenizer: Tokenizer) -> None:
    prompt = " ".join(["The dogs sleep in the sun."] * 30)
    item = Item("long", prompt, ("and it is warm.", "mat"), 0)
    (found,) = score_items(model, tokenizer, [item], context=32)
    head = tokenizer.encode(prompt).tolist()
    tail = tokenizer.encode(prompt + " and it is warm.").tolist()[len(head) :]
    kept = head[-(31 - len(tail)) :]
    assert found.cut == len(head) - len(kept)
    total, _ = reference(plain, [tokenizer.bos, *kept, *tail], len(tail))
    assert found.logps[0] == pytest.approx(total, abs=1e-5)


def test_a_choice_that_fills_the_context_is_refused(model: Any, tokenizer: Tokenizer) -> None:
    item = Item("7", "The", ("the mat " * 40, "b"), 0)
    with pytest.raises(DataError, match=r"item 7: a choice of .* in a context of 32"):
        score_items(model, tokenizer, [item], context=32)


def scored(*logps: float, greedy: bool = False) -> Scores:
    count = len(logps)
    return Scores(np.array(logps), np.ones(count, dtype=np.int64), np.array([greedy] * count))


def test_accuracies_by_hand() -> None:
    # -6 / 2 = -3 a character, -8 / 4 = -2: the sum prefers the first, per character the second
    item = Item("1", "q", ("ab", "abcd"), 1)
    row = item_row("t", item, scored(-6.0, -8.0))
    assert (row["acc"], row["acc_norm"]) == (False, True)
    assert row["characters"] == [2, 4]
    other = item_row("t", Item("2", "q", ("ab", "abcd"), 0), scored(-6.0, -8.0))
    assert (other["acc"], other["acc_norm"]) == (True, False)
    figures = summarise_task([row, other, {**row, "acc": True}, {**row, "acc": True}], seed=0)
    assert figures["acc"]["value"] == 0.75
    assert figures["acc_norm"]["value"] == 0.75
    assert figures["chance"] == 0.5
    assert 0.30 < figures["acc"]["low"] < 0.31  # Wilson, 3 of 4: 0.3006 to 0.9544
    assert 0.95 < figures["acc"]["high"] < 0.96


def test_cloze_by_hand() -> None:
    item = Item("1", "q", ("ring",), 0)
    rows = [item_row("t", item, scored(-2.0, greedy=True)), item_row("t", item, scored(-4.0))]
    figures = summarise_task(rows, seed=0)
    assert figures["acc"]["value"] == 0.5
    assert figures["perplexity"]["value"] == pytest.approx(math.exp(3), abs=1e-5)
    assert "acc_norm" not in figures


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "some.jsonl",
        {"question": "Why?", "choices": ["a", "b"], "answer": 1, "id": "x"},
        {"choices": ["a", "b"], "answer": "b"},
        {"prompt": "p", "choices": ["a", "b", "c"], "answer": 0},
    )
    assert read_items(path) == [
        Item("x", "Why?", ("a", "b"), 1),
        Item("1", "", ("a", "b"), 1),
        Item("2", "p", ("a", "b", "c"), 0),
    ]
    cloze = write(tmp_path / "cloze.jsonl", {"prompt": "the", "answer": "ring"})
    assert list(read_tasks([str(path), str(cloze)])) == ["some", "cloze"]
    before = fingerprint_tasks([str(cloze)])
    write(cloze, {"prompt": "the", "answer": "sword"})
    assert fingerprint_tasks([str(cloze)]) != before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "rows.jsonl:1: list, not an object"),
        ({"question": "q", "prompt": "p", "choices": ["a", "b"], "answer": 0}, "keep one"),
        ({"question": 3, "choices": ["a", "b"], "answer": 0}, "question is a text, found int"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "two texts or more"),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "none of them empty"),
        ({"question": "q", "choices": ["a", "a"], "answer": 0}, "the same text"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "its number from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "`answer` is True"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "`answer` is 'c'"),
        ({"question": "q", "answer": 3}, "without `choices` the `answer` is a text, found 3"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(write(tmp_path / "rows.jsonl", row))


def test_files_that_cannot_be_asked_are_named(tmp_path: Path) -> None:
    choice = {"choices": ["a", "b"], "answer": 0}
    mixed = write(tmp_path / "mixed.jsonl", choice, {"prompt": "p", "answer": "a"})
    with pytest.raises(DataError, match="put them into two files"):
        read_items(mixed)
    with pytest.raises(DataError, match="the id '7' is there twice"):
        read_items(write(tmp_path / "twice.jsonl", {**choice, "id": 7}, {**choice, "id": "7"}))
    with pytest.raises(DataError, match="no rows"):
        read_items(write(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match=r"nowhere.jsonl: `tasks` names .jsonl files"):
        read_tasks([str(tmp_path / "nowhere.jsonl")])
    (tmp_path / "more").mkdir()
    again = write(tmp_path / "more" / "mixed.jsonl", choice)
    with pytest.raises(DataError, match="two of `tasks` are called 'mixed'"):
        read_tasks([str(again), str(again)])
