"""Constrained output: which tokens a schema, a pattern or a grammar allows next.

The work is llguidance's: it walks a grammar and the trie of the vocabulary at once. A constraint
sees bytes, so half a character, a token that spans two values and a byte token all count as what
they spell. Where the grammar leaves one way to go on, the mask holds the token that the tokenizer
itself would write there, not every other way to cut the same text.
"""

import importlib.util
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from rung.engine.pieces import Pieces
from rung.errors import ConfigError, DataError, ResourceError
from rung.tokens.tokenizer import Tokenizer

MAX_CHARS = 200_000
"""Of a schema or grammar; it comes from whoever may send a request."""
KEPT = 32
"""Compiled grammars kept per tokenizer: many requests send the same schema."""
# A small model that may write any white space writes nothing else; this is what printers write.
WHITE_SPACE = r" |\r?\n[ \t]{0,40}"
_JSON_TEXT = '{}[]":,0123456789-.eE+truefalsn \\'
_WIDER = (
    'write it with other keywords, or put "x-guidance": {"lenient": true} at the top of the schema '
    "to ignore the keywords that are not enforced, and check the result yourself"
)


class Constraint(Protocol):
    """What one sample may say next. Not for two threads at once; `clone` for each sample."""

    def mask(self) -> np.ndarray:
        """bool [vocab], True = allowed next; read-only. DataError where nothing is."""

    def accept(self, token: int) -> None:
        """The sample went on with `token`, which the mask allowed."""

    def forced(self) -> list[int]:
        """Tokens that the grammar dictates from here on; often none. They are not accepted yet."""

    @property
    def done(self) -> bool:
        """Nothing but a stop token may follow."""

    def clone(self) -> "Constraint":
        """The same state, from here on apart."""


def json_schema_constraint(
    tokenizer: Tokenizer, schema: dict[str, Any] | None, *, vocab_size: int | None = None
) -> Constraint:
    """JSON text that fits `schema`; None: any JSON object.

    vocab_size: rows of the model's embedding where they are more than the tokenizer's ids; those
    are never allowed. White space is at most one space, or a line break with its indentation.
    ConfigError: a schema that cannot be enforced as a whole. DataError: a vocabulary that cannot
    spell JSON. ResourceError: llguidance is not installed.
    """
    vocabulary = _vocabulary(tokenizer)
    vocabulary.require_text(_JSON_TEXT, "JSON")
    wanted = {"type": "object"} if schema is None else schema
    if not isinstance(wanted, dict):
        raise ConfigError(f"a JSON schema is an object, not {wanted!r}")
    try:
        text = json.dumps(wanted)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is not JSON: {error}") from None
    _check_size(text, "JSON schema")
    from llguidance import LLMatcher

    own = wanted.get("x-guidance")  # llguidance's options: a pattern of ours would undo theirs
    told = isinstance(own, dict) and "whitespace_flexible" in own
    grammar = LLMatcher.grammar_from_json_schema(
        wanted, defaults=None if told else {"whitespace_pattern": WHITE_SPACE}
    )
    return vocabulary.constraint(grammar, vocab_size, what="JSON schema", way_out=_WIDER)


def regex_constraint(
    tokenizer: Tokenizer, pattern: str, *, vocab_size: int | None = None
) -> Constraint:
    """Text that `pattern` matches from its first to its last character.

    The syntax is that of Rust's regex: no look-around, no back references. "." is no line break,
    and a digit is one of 0 to 9.
    """
    _check_size(pattern, "regular expression")
    vocabulary = _vocabulary(tokenizer)
    from llguidance import LLMatcher, regex_to_lark

    try:
        written = regex_to_lark(pattern, use_ascii="d")
    except ValueError as error:
        raise ConfigError(f"the regular expression cannot be enforced: {error}") from None
    return vocabulary.constraint(
        LLMatcher.grammar_from_lark(f"start: /{written}/"),
        vocab_size,
        what="regular expression",
        way_out="write it without look-around, word boundaries and back references",
    )


def grammar_constraint(
    tokenizer: Tokenizer, grammar: str, *, vocab_size: int | None = None
) -> Constraint:
    """Text of a context-free grammar in llguidance's variant of Lark; its first rule is `start`."""
    _check_size(grammar, "grammar")
    vocabulary = _vocabulary(tokenizer)
    from llguidance import LLMatcher

    return vocabulary.constraint(
        LLMatcher.grammar_from_lark(grammar),
        vocab_size,
        what="grammar",
        way_out='it is a Lark grammar such as: start: "yes" | "no" | /[0-9]+/',
    )


def choice_constraint(
    tokenizer: Tokenizer, choices: Sequence[str], *, vocab_size: int | None = None
) -> Constraint:
    """One of the texts `choices`, whole."""
    if isinstance(choices, str) or not choices or not all(isinstance(c, str) for c in choices):
        raise ConfigError(f"choices = {choices!r}: it must be a list with at least one text")
    if "" in choices:
        raise ConfigError("choices has an empty text, which no token can write: leave it out")
    pattern = "|".join("".join(map(_literal, choice)) for choice in choices)
    return regex_constraint(tokenizer, pattern, vocab_size=vocab_size)


def _literal(character: str) -> str:
    return character if character.isalnum() else f"\\x{{{ord(character):x}}}"


def _check_size(text: str, what: str) -> None:
    if len(text) > MAX_CHARS:
        raise ConfigError(
            f"the {what} has {len(text):,} characters, and at most {MAX_CHARS:,} are read: "
            "make it shorter"
        )


class _Vocabulary:
    """llguidance's view of one tokenizer, and the grammars compiled for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer, TokenizerWrapper

        text, stops = tokenizer.to_json(), list(tokenizer.stop_ids)
        try:
            self.trie = LLTokenizer(text, eos_token=stops)
        except ValueError as error:
            pieces = Pieces.read(tokenizer)
            if pieces is None:
                raise DataError(
                    f"llguidance cannot tell what the tokens of this tokenizer spell ({error}), so "
                    "constrained output does not work with it: leave out the schema or grammar"
                ) from None
            self.trie = LLTokenizer(TokenizerWrapper(pieces), eos_token=stops)
        self.size = self.trie.vocab_size
        self.special = np.zeros(self.size, dtype=bool)  # 1 = special and no stop token
        self.special[sorted(tokenizer.special_ids - set(stops))] = True
        self.stops = np.zeros(self.size, dtype=bool)  # 1 = ends an answer
        self.stops[stops] = True
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._bytes: frozenset[bytes] | None = None

    def require_text(self, text: str, what: str) -> None:
        """DataError where the vocabulary has no token for a character of `text` alone."""
        if self._bytes is None:
            spelt = [self.trie.decode_bytes([i]) for i in range(self.size)]
            self._bytes = frozenset(one for one in spelt if len(one) == 1)
        missing = [c for c in text if c.encode() not in self._bytes]
        if missing:
            raise DataError(
                f"this model cannot write {what}: its vocabulary has no token for "
                f"{' '.join(map(repr, missing[:8]))}; take a model whose tokenizer knows all bytes"
            )

    def constraint(
        self, grammar: str, vocab_size: int | None, *, what: str, way_out: str
    ) -> "GrammarConstraint":
        """A constraint at the beginning of `grammar`; ConfigError with llguidance's reason."""
        rows = self.size if vocab_size is None else vocab_size
        assert rows >= self.size, f"{rows} logits for {self.size} tokens"
        with self._lock:
            matcher = self._compiled.get(grammar)
            if matcher is None:
                matcher = self._compile(grammar, what, way_out)
                self._compiled[grammar] = matcher
                if len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(grammar)
            found = GrammarConstraint(self, matcher.deep_copy(), rows)
        found.mask()  # a grammar that allows nothing is found out before anything runs
        return found

    def _compile(self, grammar: str, what: str, way_out: str) -> Any:
        from llguidance import LLMatcher, LLParserLimits

        # verbose errors carry the whole state of the parser, and with it what was generated
        limits = LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(self.trie, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise ConfigError(f"the {what} cannot be enforced: {_reason(matcher)}; {way_out}")
        return matcher


class GrammarConstraint:
    """A `Constraint` over llguidance's matcher."""

    def __init__(self, vocabulary: _Vocabulary, matcher: Any, rows: int) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._rows = rows
        self._mask: np.ndarray | None = None

    def mask(self) -> np.ndarray:
        if self._mask is None:
            self._mask = self._next()
        return self._mask

    def accept(self, token: int) -> None:
        taken = self._matcher.consume_token(int(token))
        if not taken:
            self._refuse_limits()
        assert taken, f"token {token} is not allowed here: {_reason(self._matcher)}"
        self._mask = None

    def forced(self) -> list[int]:
        tokens = [int(token) for token in self._matcher.compute_ff_tokens()]
        return tokens[: self._matcher.validate_tokens(tokens)]

    @property
    def done(self) -> bool:
        allowed = self.mask()[: self._vocabulary.size]
        return not (allowed & ~self._vocabulary.stops).any()

    def clone(self) -> "GrammarConstraint":
        other = GrammarConstraint(self._vocabulary, self._matcher.deep_copy(), self._rows)
        other._mask = self._mask
        return other

    def _next(self) -> np.ndarray:
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            self._refuse_limits()
            raise DataError(f"the constraint cannot go on: {_reason(self._matcher)}")
        size = self._vocabulary.size
        allowed = np.zeros(self._rows, dtype=bool)
        allowed[:size] = np.unpackbits(packed, count=size, bitorder="little")
        # Text that no token spells comes back as the unknown token, which spells something else.
        for token in np.flatnonzero(allowed[:size] & self._vocabulary.special).tolist():
            allowed[token] = self._matcher.validate_tokens([token]) == 1
        if not allowed.any():
            text = self._matcher.compute_ff_bytes()
            raise DataError(
                f"the constraint allows only {text!r} here, which the model's vocabulary cannot "
                "spell; change the schema or grammar, or take a model whose tokenizer knows all "
                "bytes"
            )
        allowed.flags.writeable = False
        return allowed

    def _refuse_limits(self) -> None:
        reason = self._matcher.stop_reason()
        if reason in ("ParserTooComplex", "LexerTooComplex"):
            raise ConfigError(
                f"the schema or grammar takes too much work for one token ({reason}): make it less "
                "ambiguous, or its repetitions shorter"
            )


def require_llguidance() -> None:
    """ResourceError unless llguidance is installed."""
    if importlib.util.find_spec("llguidance") is None:
        raise ResourceError(
            "constrained output (a JSON schema, regular expression or grammar) needs llguidance, "
            "which is not installed: pip install 'rung[serve]'"
        )


_vocabularies: WeakKeyDictionary[Tokenizer, _Vocabulary] = WeakKeyDictionary()
_lock = threading.Lock()


def _vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    """Built once for each tokenizer: reading 50,000 tokens into a trie takes half a second."""
    require_llguidance()
    with _lock:
        found = _vocabularies.get(tokenizer)
        if found is None:
            found = _vocabularies[tokenizer] = _Vocabulary(tokenizer)
        return found


def _reason(matcher: Any) -> str:
    """llguidance's words on one line, without the picture of the place."""
    lines = [line.strip() for line in matcher.get_error().splitlines()]
    told = [line for line in lines if line and not set(line) <= set("^ ") and "|" not in line[:6]]
    text = " ".join(told)
    return text if len(text) <= 300 else text[:300] + " ..."
