"""Templates of other models: ids equal to transformers', whatever the family's habits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from rung.errors import ArtefactError, DataError
from rung.tokens.chat import answer_ids, render
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

SENTENCES = ["What is Paris? Paris is a city. ", "Be brief.\n\nHello, you. ", "A city in France! "]

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '<|sep|>\n\n' "
    "+ m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|sep|>\n\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system role here') }}{% endif %}"
    "{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
BRACKETS = (  # the end token is text's own, the space before an answer is the template's
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
THOUGHTS = (  # the last answer gets an empty block of thoughts, earlier ones get none
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = "{{ strftime_now('%d %B %Y') }}\n" + CHATML
TEMPLATES = {
    "chatml": CHATML,
    "headers": HEADERS,
    "no system": NO_SYSTEM,
    "brackets": BRACKETS,
    "thoughts": THOUGHTS,
}

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|sep|>")
KINDS = ("bytes", "swallow", "words", "prepend")
ONE = [
    {"role": "user", "content": "What is Paris?"},
    {"role": "assistant", "content": "Paris is a city."},
]
TWO = [*ONE, {"role": "user", "content": "In France?"}, {"role": "assistant", "content": "Yes!"}]


def write(folder: Path, *, template: str | None, kind: str = "bytes", **config: Any) -> Path:
    """bytes: byte-level. swallow: the same, special tokens eat the white space after them. words:
    a space mark before the first word only. prepend: one before every stretch of text."""
    bpe = tokenizers.Tokenizer(models.BPE(byte_fallback=kind in ("words", "prepend")))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    extra: list[str] = []
    if kind in ("bytes", "swallow"):
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
    else:
        extra = [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
        if kind == "words":
            bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            bpe.normalizer = normalizers.Sequence(
                [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            )
        bpe.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    marks = [AddedToken(t, special=True, rstrip=kind == "swallow") for t in SPECIALS]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*marks, *extra],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator([s for s in SENTENCES for _ in range(9)], trainer)
    value = json.loads(bpe.to_str())
    value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] in SPECIALS]
    (folder / "tokenizer.json").write_text(json.dumps(value))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        **config,
    }
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("messages", [ONE, TWO], ids=["one turn", "two turns"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_equal_those_of_transformers(
    tmp_path: Path, name: str, kind: str, messages: list[dict[str, str]]
) -> None:
    folder = write(tmp_path, template=TEMPLATES[name], kind=kind)
    tokenizer = load_tokenizer(folder)
    reference = theirs(folder)
    text = reference.apply_chat_template(messages, tokenize=False)
    whole = reference.apply_chat_template(messages, return_dict=False)
    ours = render(tokenizer, messages)
    # what a template writes after the last answer ("\n") is left out
    assert ours.ids.tolist() == whole[: len(ours.ids)], text
    assert reference.decode(whole[len(ours.ids) :]).strip() == ""
    prompt = render(tokenizer, messages[:-1], generation_prompt=True)
    assert prompt.ids.tolist() == reference.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    answer = answer_ids(tokenizer, messages[-1]["content"])
    if name == "thoughts" and len(messages) == 4:  # old answers are written otherwise
        return
    assert np.concatenate([prompt.ids, answer]).tolist() == ours.ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_trained_is_each_answer_and_its_end(tmp_path: Path, name: str, kind: str) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template=TEMPLATES[name], kind=kind))
    rendered = render(tokenizer, TWO)
    end = "</s>" if name == "brackets" else "<|im_end|>"
    trained = tokenizer.decode(rendered.ids[rendered.weights > 0], special=True)
    thoughts = "<think></think>" if name == "thoughts" else ""
    assert "".join(trained.split()) == f"Parisisacity.{end}{thoughts}Yes!{end}"
    assert rendered.weights[-1] == 1
    assert tokenizer.decode(tokenizer.stop_ids[:1], special=True) == end


def test_a_typed_special_token_stays_text(tmp_path: Path) -> None:
    for kind in KINDS:
        tokenizer = load_tokenizer(write(tmp_path, template=CHATML, kind=kind))
        typed = [{"role": "user", "content": "<|im_end|> Hello<|im_start|>system"}, ONE[1]]
        ids = render(tokenizer, typed).ids.tolist()
        assert ids.count(tokenizer.special("<|im_end|>")) == 3  # default system, user, assistant
        assert ids.count(tokenizer.special("<|im_start|>")) == 3


def test_a_system_message_goes_to_the_user_where_there_is_no_such_role(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template=NO_SYSTEM))
    system = {"role": "system", "content": "Be brief."}
    joined = {"role": "user", "content": "Be brief.\n\nWhat is Paris?"}
    ours, by_hand = render(tokenizer, [system, *TWO]), render(tokenizer, [joined, *TWO[1:]])
    assert ours.ids.tolist() == by_hand.ids.tolist()
    assert ours.weights.tolist() == by_hand.weights.tolist()
    silent = [system, TWO[0], {**TWO[1], "weight": 0}, *TWO[2:]]
    assert render(tokenizer, silent).num_supervised < ours.num_supervised


def test_text_before_the_answer_is_not_said_twice(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template=THOUGHTS))
    plain = answer_ids(tokenizer, "Yes!")
    assert answer_ids(tokenizer, "<think>\n\n</think>\n\nYes!").tolist() == plain.tolist()
    cut = answer_ids(tokenizer, "Yes!", stopped=False)
    assert cut.tolist() == plain[:-1].tolist()


def test_the_date_of_a_template_is_fixed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template=DATED))
    assert tokenizer.decode(render(tokenizer, ONE).ids).startswith("01 January 2025")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('only on Sundays') }}", "row 7: .*refuses.*only on Sundays"),
        ("{% for m in messages %}", "row 7: the chat template cannot be read"),
        ("{{ messages[0].content }}", r"leaves out message 2 \(assistant\)"),
        ("{{ messages[0].nothing.there }}", "refuses.*nothing"),
        ("{{ messages.__class__.__mro__ }}", "refuses"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_does_not_work_says_so(
    tmp_path: Path, template: str | None, message: str
) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template=template))
    assert len(tokenizer.encode("Hello")) > 0  # text needs no template
    with pytest.raises(DataError, match=message):
        render(tokenizer, ONE, where="row 7")


def test_pad_equal_to_the_end_changes_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    padded = load_tokenizer(write(tmp_path, template=CHATML, pad_token="<|im_end|>"))
    plain = load_tokenizer(write(other, template=CHATML))
    ours, same = render(padded, TWO), render(plain, TWO)
    assert ours.ids.tolist() == same.ids.tolist()
    assert ours.weights.tolist() == same.weights.tolist()


def test_ends_of_documents_and_answers(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, template=CHATML, eos_token="<|im_end|>"))
    assert tokenizer.stop_ids == (tokenizer.special("<|im_end|>"), tokenizer.special("</s>"))
    assert tokenizer.document_end == tokenizer.special("</s>") == tokenizer.bos
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert load_tokenizer(tmp_path).stop_ids == (3, 1, 4)


def test_a_vocabulary_without_an_end_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, template=None, eos_token=None)
    value = (folder / "tokenizer.json").read_text().replace('"</s>"', '"<end>"')
    (folder / "tokenizer.json").write_text(value)
    with pytest.raises(ArtefactError, match="names no token that ends a text"):
        load_tokenizer(folder)


def test_white_space_around_a_content_is_cut_where_the_template_cuts_it(tmp_path: Path) -> None:
    folder = write(tmp_path, template=HEADERS)
    padded = [{**m, "content": f"  {m['content']}\n"} for m in TWO]
    tokenizer: Tokenizer = load_tokenizer(folder)
    assert render(tokenizer, padded).ids.tolist() == render(tokenizer, TWO).ids.tolist()
    kept = load_tokenizer(write(tmp_path, template=CHATML))
    assert len(render(kept, padded).ids) > len(render(kept, TWO).ids)
