"""The renderer: ids and weights by hand, and equal to the template other programs use."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.errors import DataError
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.chat import answer_ids, check_messages, render
from rung.tokens.special import END, ROLES, SPECIAL_TOKENS
from rung.tokens.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    texts = ["What does os.path.join do? It joins paths. ", "Paris is the capital of France. "] * 9
    write_tokenizer(train_bpe(texts, vocab_size=320), path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_layout_by_hand(tokenizer: Tokenizer) -> None:
    rendered = render(
        tokenizer,
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Capital?"},
            {"role": "assistant", "content": "Paris"},
        ],
    )
    system, user, answer = (
        tokenizer.encode(t).tolist() for t in ("Be brief.", "Capital?", "Paris")
    )
    # ids by rung/tokens/special.py: 0 bos, 2 system, 3 user, 4 assistant, 5 end
    assert rendered.ids.tolist() == [0, 2, *system, 5, 3, *user, 5, 4, *answer, 5]
    trained = len(answer) + 1  # the answer and its end; neither the role token nor the prompt
    assert rendered.weights.tolist() == [0.0] * (len(rendered.ids) - trained) + [1.0] * trained
    assert rendered.num_supervised == trained
    assert (rendered.ids.dtype, rendered.weights.dtype) == (np.int32, np.float32)


def test_a_message_weight_scales_its_answer_only(tokenizer: Tokenizer) -> None:
    rendered = render(
        tokenizer,
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c", "weight": None},
            {"role": "assistant", "content": "d", "weight": 0.5},
        ],
    )
    # bos | user a end | assistant b end | user c end | assistant d end
    assert rendered.weights.tolist() == [0.0] * 11 + [0.5, 0.5]


CONTENT = st.one_of(
    st.text(min_size=1, max_size=30),
    st.sampled_from([" x", "x\n", "\n\nx  \n", "{{ 1 }}", "{% raw %}", "'\"\\", "don't"]),
).filter(str.strip)


@st.composite
def conversations(draw: st.DrawFn, content: st.SearchStrategy[str] = CONTENT) -> list[dict]:
    messages = [{"role": "system", "content": draw(content)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(1, 5))):
        role = ("user", "assistant")[turn % 2]
        messages.append({"role": role, "content": draw(content)})
    return messages


def no_special(messages: list[dict]) -> bool:
    return not any(token in m["content"] for m in messages for token in SPECIAL_TOKENS)


@settings(max_examples=200, deadline=None)
@given(messages=conversations().filter(no_special))
def test_ids_and_mask_equal_the_chat_template(
    tokenizer: Tokenizer, theirs: Any, messages: list[dict]
) -> None:
    ours = render(tokenizer, messages)
    template = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True)
    assert ours.ids.tolist() == template["input_ids"]
    assert ours.weights.tolist() == template["assistant_masks"]
    prompt = render(tokenizer, messages, generation_prompt=True)
    template = theirs.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt.ids.tolist() == template["input_ids"]


@settings(max_examples=100, deadline=None)
@given(messages=conversations(st.one_of(CONTENT, st.sampled_from(SPECIAL_TOKENS))))
def test_typed_special_tokens_stay_text(
    tokenizer: Tokenizer, theirs: Any, messages: list[dict]
) -> None:
    ids = render(tokenizer, messages).ids
    assert (ids == tokenizer.special(END)).sum() == len(messages)
    assert (ids == tokenizer.bos).sum() == 1
    assert (ids == tokenizer.pad).sum() == 0
    for role, index in ((r, tokenizer.special(t)) for r, t in ROLES.items()):
        assert (ids == index).sum() == sum(m["role"] == role for m in messages)
    template = theirs.apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
    # ids may be cut differently around a typed token (rung/tokens/special.py), the text may not
    assert tokenizer.decode(template, special=True) == tokenizer.decode(ids, special=True)
    assert [i for i in template if i < 6] == [i for i in ids if i < 6]


@settings(max_examples=100, deadline=None)
@given(messages=conversations(), answer=CONTENT)
def test_prompt_and_answer_make_the_whole(
    tokenizer: Tokenizer, messages: list[dict], answer: str
) -> None:
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    prompt = render(tokenizer, messages, generation_prompt=True).ids
    whole = render(tokenizer, [*messages, {"role": "assistant", "content": answer}])
    ids = answer_ids(tokenizer, answer)
    assert np.concatenate((prompt, ids)).tolist() == whole.ids.tolist()
    assert answer_ids(tokenizer, answer, stopped=False).tolist() == ids[:-1].tolist()


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "row 7: messages must be a list with at least one"),
        ("text", "row 7: messages must be a list"),
        (["text"], "row 7: message 1 is 'text', not an object"),
        ([{"role": "asistant", "content": "a"}], r"role 'asistant'; did you mean 'assistant'\?"),
        ([{"content": "a"}], "message 1 has role None"),
        ([{"role": "assistant", "content": "a"}], "'assistant' where 'user' is due"),
        ([USER, USER], "message 2 is of role 'user' where 'assistant' is due"),
        ([USER, {"role": "system", "content": "a"}], "message 2 is a system message"),
        ([{"role": "user", "content": " \n"}], r"message 1 \(user\) is empty"),
        ([{"role": "user", "content": ["a"]}], r"content \['a'\], not a string"),
        ([USER, {"role": "assistant", "content": ""}], r"message 2 \(assistant\) is empty"),
        ([{**USER, "weight": 1}], "only answers are trained"),
        ([USER, {"role": "assistant", "content": "b", "weight": -1}], "must be 0 or more"),
        ([USER, {"role": "assistant", "content": "b", "weight": "x"}], "not a number"),
    ],
)
def test_malformed_conversations_name_the_row(messages: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_messages(messages, where="row 7")


def test_an_empty_answer_may_be_history_but_not_a_target(tokenizer: Tokenizer) -> None:
    silent = [USER, {"role": "assistant", "content": ""}, USER]
    render(tokenizer, silent, generation_prompt=True)
    render(tokenizer, [USER, {"role": "assistant", "content": "", "weight": 0}, USER])
    with pytest.raises(DataError, match="is empty"):
        render(tokenizer, silent)
