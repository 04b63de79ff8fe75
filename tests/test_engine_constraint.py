"""Constrained output: random weights write valid JSON, and masks equal brute force."""

import gc
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokens_template import KINDS, write
from tokenizers import decoders, models, pre_tokenizers

from rung.engine import constraint as module
from rung.engine.constraint import (
    Constraint,
    choice_constraint,
    grammar_constraint,
    json_schema_constraint,
    regex_constraint,
)
from rung.errors import ConfigError, DataError, ResourceError
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

pytest.importorskip("llguidance")
STORIES = Path(__file__).parent.parent.parent / "shared/data/model_tinystories656k"
TEXTS = ['{"name": "value", "items": [1, 2, 3]}', "true false null", "a plain sentence. "] * 20


@pytest.fixture(scope="module", params=["rung", *KINDS])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Byte-level and sentencepiece vocabularies."""
    return make_tokenizer(request.param, tmp_path_factory.mktemp(request.param))


def make_tokenizer(kind: str, folder: Path) -> Tokenizer:
    if kind == "rung":
        write_tokenizer(train_bpe(TEXTS, vocab_size=420), folder)
    else:
        write(folder, template=None, kind=kind)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer("rung", tmp_path_factory.mktemp("ours"))


def spelling(tokenizer: Tokenizer) -> list[bytes | None]:
    """What each token spells, from tokenizer.json, without llguidance; None of a special one."""
    content = json.loads(tokenizer.to_json())
    # GPT-2's table of bytes: printable ones stand for themselves, the others come from 256 on
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    table |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in plain)}
    found: list[bytes | None] = [None] * tokenizer.vocab_size
    for piece, index in content["model"]["vocab"].items():
        if index in tokenizer.special_ids:
            continue
        if not content["model"]["byte_fallback"]:
            found[index] = bytes(table[c] for c in piece)
        elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
            found[index] = bytes([int(piece[3:5], 16)])
        else:
            found[index] = piece.replace("\u2581", " ").encode()
    return found


def walk(
    tokenizer: Tokenizer, start: Constraint, *, seed: int, calm: int = 60
) -> tuple[bytes, list[int]]:
    """A random sample: every allowed token is equally likely; after `calm` tokens those that end
    something are preferred, as a string of unbounded length would not end by chance."""
    draw = np.random.default_rng(seed)
    spelt, constraint, ids = spelling(tokenizer), start.clone(), []
    closing = {i for i, b in enumerate(spelt) if b in (b'"', b"]", b"}")} | set(tokenizer.stop_ids)
    while True:
        allowed = np.flatnonzero(constraint.mask())
        preferred = [i for i in allowed if len(ids) >= calm and i in closing]
        token = int(draw.choice(preferred or allowed))
        if token in tokenizer.stop_ids:
            return b"".join(spelt[i] or b"?" for i in ids), ids
        constraint.accept(token)
        ids.append(token)
        assert len(ids) < 3000


# JSON schemas, each with a check of its own that knows nothing of llguidance.


class Person(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    name: str
    age: int = pydantic.Field(ge=0, le=130)
    email: str | None
    tags: list[Literal["red", "green", "blue"]] = pydantic.Field(max_length=3)


class Tree(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    value: bool
    children: "list[Tree]" = pydantic.Field(max_length=2)


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = pydantic.Field(max_length=1)


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


def obj(required: bool = True, **properties: Any) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return schema | {"additionalProperties": False, "required": list(properties) * required}


SHORT = {"type": "string", "maxLength": 4}
SCHEMAS: dict[str, tuple[Any, Callable[[Any], bool]]] = {
    "any object": (None, lambda v: isinstance(v, dict)),
    "integer": ({"type": "integer"}, lambda v: type(v) is int),
    "bounds": (
        {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
        lambda v: -1.5 <= v < 2,
    ),
    "enum": ({"enum": ["a\u00e9", "b", 3, None]}, lambda v: v in ["a\u00e9", "b", 3, None]),
    "unicode const": (
        {"const": "\u4e2d\u6587 \U0001f642"},
        lambda v: v == "\u4e2d\u6587 \U0001f642",
    ),
    "unicode string": (
        {"type": "string", "minLength": 3, "maxLength": 6},
        lambda v: isinstance(v, str) and 3 <= len(v) <= 6,
    ),
    "pattern": (
        {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
        lambda v: re.fullmatch("[A-Z]{2}-[0-9]{3}", v) is not None,
    ),
    "date": (
        {"type": "string", "format": "date"},
        lambda v: re.fullmatch(r"\d{4}-\d\d-\d\d", v) is not None,
    ),
    "array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
        lambda v: 2 <= len(v) <= 4 and all(type(x) is bool for x in v),
    ),
    "tuple": (
        {"type": "array", "prefixItems": [SHORT, {"type": "null"}], "items": False, "minItems": 2},
        lambda v: len(v) == 2 and isinstance(v[0], str) and v[1] is None,
    ),
    "optional keys": (
        obj(False, a={"type": "null"}, b={"type": "null"}),
        lambda v: set(v) <= {"a", "b"} and set(v.values()) <= {None},
    ),
    "nested": (
        obj(a=obj(b={"type": "array", "items": obj(c=SHORT), "maxItems": 2})),
        lambda v: all(set(x) == {"c"} and len(x["c"]) <= 4 for x in v["a"]["b"]),
    ),
    "any of": (
        {"anyOf": [{"type": "null"}, obj(x={"type": "integer", "minimum": 7, "maximum": 12})]},
        lambda v: v is None or (list(v) == ["x"] and 7 <= v["x"] <= 12),
    ),
    "values": (
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        lambda v: all(type(x) is bool for x in v.values()),
    ),
    "model": (Person.model_json_schema(), lambda v: bool(Person.model_validate(v))),
    "recursive": (Tree.model_json_schema(), lambda v: bool(Tree.model_validate(v))),
    "union": (Owner.model_json_schema(), lambda v: bool(Owner.model_validate(v))),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_tokens_make_json_of_the_schema(tokenizer: Tokenizer, name: str) -> None:
    schema, fits = SCHEMAS[name]
    start = json_schema_constraint(tokenizer, schema)
    for seed in range(4):
        text, _ = walk(tokenizer, start, seed=seed, calm=40)
        value = json.loads(text.decode("utf-8"))
        assert fits(value), text


@pytest.mark.parametrize(
    "pattern",
    [
        "[a-z]{2,5}",
        "(yes|no)[.!]?",
        "\u4e2d+\u00e9{1,2}|\U0001f642x",
        r"\d{4}-[A-F]",
        "[^a]{3}",
        "a?",
        r"a/\\\D",
    ],
)
def test_random_tokens_match_a_pattern_as_a_whole(tokenizer: Tokenizer, pattern: str) -> None:
    start = regex_constraint(tokenizer, pattern)
    texts = {walk(tokenizer, start, seed=seed, calm=12)[0].decode("utf-8") for seed in range(12)}
    assert all(re.fullmatch(pattern, text) for text in texts), texts
    assert len(texts) > 1


def test_a_character_can_come_byte_by_byte(tokenizer: Tokenizer) -> None:
    by_byte = {b: i for i, b in enumerate(spelling(tokenizer)) if b is not None and len(b) == 1}
    constraint = regex_constraint(tokenizer, "[\u00e9\u4e2d\U0001f642]")
    for part in "\u4e2d".encode():
        assert constraint.mask()[by_byte[bytes([part])]]
        constraint.accept(by_byte[bytes([part])])
    assert constraint.done


def test_a_grammar_nests_and_names_special_tokens(ours: Tokenizer) -> None:
    start = grammar_constraint(ours, 'start: "(" start ")" | "x"')
    texts = [walk(ours, start, seed=seed)[0].decode() for seed in range(20)]
    assert all(re.fullmatch(r"(\(*)x(\)*)", t) and t.count("(") == t.count(")") for t in texts)
    assert len(set(texts)) > 2
    constraint = grammar_constraint(ours, "start: /[0-9]/ <|pad|>")
    constraint.accept(int(ours.encode("7")[0]))
    assert np.flatnonzero(constraint.mask()).tolist() == [ours.pad]


def brute_force(
    language: set[bytes], prefix: bytes, spelt: list[bytes | None], stops: tuple[int, ...]
) -> set[int]:
    """Tokens that keep `prefix` the beginning of a word of the language; the ends of a word."""
    viable = {word[: len(prefix) + n] for word in language for n in range(1, 99)} - {prefix}
    found = {i for i, b in enumerate(spelt) if b and prefix + b in viable}
    return found | (set(stops) if prefix in language else set())


def check_every_mask(tokenizer: Tokenizer, start: Constraint, language: set[bytes]) -> None:
    """On two random samples: each mask is what brute force finds. Where the next tokens are
    forced, it is the first of those alone, and brute force has it, too."""
    spelt = spelling(tokenizer)
    for seed in range(2):
        constraint, prefix = start.clone(), b""
        draw = np.random.default_rng(seed)
        while True:
            allowed = np.flatnonzero(constraint.mask()).tolist()
            wanted = brute_force(language, prefix, spelt, tokenizer.stop_ids)
            forced = constraint.forced()
            assert set(allowed) == wanted if not forced else allowed == forced[:1]
            assert set(allowed) <= wanted
            assert constraint.done == (wanted == set(tokenizer.stop_ids))
            token = int(draw.choice(allowed))
            if token in tokenizer.stop_ids:
                assert prefix in language
                break
            constraint.accept(token)
            prefix += spelt[token] or b""


WORDS = st.sets(st.text("ab \u00e9n\u4e2d", min_size=1, max_size=5), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(words=WORDS)
def test_masks_of_choices_equal_brute_force(tokenizer: Tokenizer, words: set[str]) -> None:
    start = choice_constraint(tokenizer, sorted(words))
    check_every_mask(tokenizer, start, {word.encode() for word in words})


def test_masks_of_json_equal_brute_force(ours: Tokenizer) -> None:
    schema = {"anyOf": [{"enum": [1, 12, "a", "an"]}, {"type": "array", "maxItems": 0}]}
    language = {b"1", b"12", b'"a"', b'"an"', b"[]"}
    # white space may stand inside the brackets: told to leave it out, the language is finite
    start = json_schema_constraint(ours, {**schema, "x-guidance": {"whitespace_flexible": False}})
    check_every_mask(ours, start, language)


def test_without_forcing_every_cut_of_the_text_is_allowed(ours: Tokenizer) -> None:
    start = grammar_constraint(ours, '%llguidance {"no_forcing": true}\nstart: "true"')
    allowed = np.flatnonzero(start.mask()).tolist()
    assert set(allowed) == brute_force({b"true"}, b"", spelling(ours), ours.stop_ids)
    assert len(allowed) > 1
    assert np.flatnonzero(choice_constraint(ours, ["true"]).mask()).tolist() == [
        ours.encode("true")[0]
    ]


def test_white_space_has_a_bound(ours: Tokenizer) -> None:
    start = json_schema_constraint(ours, {"type": "array", "items": {"type": "null"}})
    constraint = start.clone()
    space, bracket = int(ours.encode(" ")[0]), int(ours.encode("[")[0])
    constraint.accept(bracket)
    constraint.accept(space)
    assert not constraint.mask()[space]
    with pytest.raises(AssertionError, match="is not allowed here"):
        constraint.accept(space)


def test_forced_tokens_are_those_of_the_tokenizer(ours: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "null"}}, "required": ["name"]}
    tight = {**schema, "additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    constraint = json_schema_constraint(ours, tight)
    forced = constraint.forced()
    whole = ours.encode('{"name":null}').tolist()
    assert forced == whole[: len(forced)]
    assert len(forced) >= 3
    for token in forced:
        assert constraint.mask()[token]
        constraint.accept(token)


def test_a_clone_goes_its_own_way(ours: Tokenizer) -> None:
    one = choice_constraint(ours, ["ax", "by"])
    a, b = (int(ours.encode(c)[0]) for c in "ab")
    other = one.clone()
    one.accept(a)
    assert other.mask()[b]
    assert not one.mask()[b]
    other.accept(b)
    assert not other.done
    other.accept(int(ours.encode("y")[0]))
    assert other.done
    assert not one.done
    assert set(np.flatnonzero(other.mask())) == set(ours.stop_ids)


def test_rows_of_the_model_above_the_tokenizer_are_never_allowed(ours: Tokenizer) -> None:
    plain = regex_constraint(ours, ".*")
    padded = regex_constraint(ours, ".*", vocab_size=ours.vocab_size + 92)
    assert plain.mask().shape == (ours.vocab_size,)
    assert padded.mask().dtype == np.bool_
    assert padded.mask()[: ours.vocab_size].tolist() == plain.mask().tolist()
    assert not padded.mask()[ours.vocab_size :].any()
    assert padded.mask()[list(ours.stop_ids)].all()
    with pytest.raises(ValueError, match="read-only"):
        padded.mask()[0] = True


def test_no_special_token_but_a_stop_is_text(tokenizer: Tokenizer) -> None:
    allowed = set(np.flatnonzero(regex_constraint(tokenizer, "(?s:.*)").mask()).tolist())
    assert allowed & tokenizer.special_ids == set(tokenizer.stop_ids) & tokenizer.special_ids


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda t: json_schema_constraint(t, {"type": "objct"}),
            ConfigError,
            "Invalid type: objct",
        ),
        (
            lambda t: json_schema_constraint(t, {"type": "array", "uniqueItems": True}),
            ConfigError,
            r'JSON schema cannot be enforced.*uniqueItems.*"lenient": true',
        ),
        (
            lambda t: json_schema_constraint(t, {"type": "integer", "minimum": 3, "maximum": 1}),
            ConfigError,
            r"minimum \(3\) is greater than maximum \(1\)",
        ),
        (
            lambda t: json_schema_constraint(t, {"$ref": "http://a/b"}),
            ConfigError,
            "does not fetch",
        ),
        (lambda t: json_schema_constraint(t, []), ConfigError, r"an object, not \[\]"),  # type: ignore[arg-type]
        (lambda t: json_schema_constraint(t, {"const": {1}}), ConfigError, "not JSON"),
        (lambda t: regex_constraint(t, "(?=a)"), ConfigError, "look-around"),
        (lambda t: regex_constraint(t, "(" * 300_000), ConfigError, "300,000 characters"),
        (lambda t: grammar_constraint(t, "start: foo"), ConfigError, 'unknown name: "foo"'),
        (lambda t: choice_constraint(t, []), ConfigError, "at least one text"),
        (lambda t: choice_constraint(t, ["a", ""]), ConfigError, "empty text"),
    ],
)
def test_what_cannot_be_enforced_is_refused(ours, make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make(ours)


def test_a_vocabulary_that_cannot_spell_json_is_refused() -> None:
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not here")
    stories = load_tokenizer(STORIES)
    with pytest.raises(DataError, match=r"cannot write JSON: .*no token for '\{'"):
        json_schema_constraint(stories, None)
    with pytest.raises(DataError, match=r"allows only b'\{a' here"):
        regex_constraint(stories, r"\{a")
    late = choice_constraint(stories, ["a{", "b{"])
    late.accept(int(np.flatnonzero(late.mask())[0]))
    with pytest.raises(DataError, match=r"allows only b'\{' here"):
        late.mask()
    start = regex_constraint(stories, "Once upon a time, [a-z]{3,8} [a-z]{3,8}[.]")
    text, _ = walk_stories(stories, start)
    assert re.fullmatch(rb"Once upon a time, [a-z]{3,8} [a-z]{3,8}[.]", text)


def walk_stories(tokenizer: Tokenizer, start: Constraint) -> tuple[bytes, list[int]]:
    text, ids = walk(tokenizer, start, seed=1)
    assert tokenizer.decode(ids).strip() == text.decode()
    return text, ids


def test_a_sentencepiece_vocabulary_without_bytes(tmp_path: Path) -> None:
    pieces = [("</s>", 0.0), ("\u2581", -1.0), ("\u2581he", -2.0), ("llo", -3.0), ("h", -4.0)]
    bpe = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    bpe.add_special_tokens(["</s>"])
    (tmp_path / "tokenizer.json").write_text(bpe.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    constraint = regex_constraint(tokenizer, "h?( h|llo| hello)*")
    # by hand: "h", " " and " he" begin such a text, and so does nothing at all
    assert np.flatnonzero(constraint.mask()).tolist() == [0, 1, 2, 3, 4]
    constraint.accept(4)
    assert np.flatnonzero(constraint.mask()).tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="cannot write JSON"):
        json_schema_constraint(tokenizer, None)


def test_a_vocabulary_of_words_is_refused(tmp_path: Path) -> None:
    bpe = tokenizers.Tokenizer(models.WordPiece({"[E]": 0, "a": 1, "##b": 2}, unk_token="[E]"))
    bpe.decoder = decoders.WordPiece()
    bpe.add_special_tokens(["[E]"])
    (tmp_path / "tokenizer.json").write_text(bpe.to_str())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[E]"}')
    with pytest.raises(DataError, match=r"cannot tell what the tokens.*leave out the schema"):
        regex_constraint(load_tokenizer(tmp_path), "a")


def test_a_tokenizer_is_read_once_and_let_go(tmp_path: Path, monkeypatch) -> None:
    tokenizer = make_tokenizer("rung", tmp_path)
    read = []
    real = module._Vocabulary.__init__
    monkeypatch.setattr(
        module._Vocabulary, "__init__", lambda self, t: (read.append(1), real(self, t))[1]
    )
    for _ in range(3):
        regex_constraint(tokenizer, "a+")
    assert read == [1]
    known = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert known() is None


def test_without_llguidance_the_extra_is_named(ours: Tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"pip install 'rung\[serve\]'"):
        json_schema_constraint(ours, None)
