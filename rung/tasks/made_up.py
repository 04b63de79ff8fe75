"""Made-up names: plausible, checked not to exist anywhere in the corpora."""

import random
import re
from dataclasses import dataclass

from rung.errors import DataError
from rung.tasks.entries import Entry, Library

TRIES = 200  # draws for one name before giving up
_CAMEL = re.compile(r"[A-Z][a-z0-9]+|[A-Z]+(?![a-z])")


# Syllables of coined words; their sounds are common in English, the words are not.
_ONSETS = ("bl", "br", "cr", "dr", "fl", "gr", "kl", "m", "pl", "qu", "sk", "sn", "thr", "v", "z")
_VOWELS = ("a", "e", "i", "o", "u", "oo", "ee", "ai")
_CODAS = ("b", "ck", "d", "g", "k", "lf", "m", "mp", "n", "nk", "p", "rg", "rk", "sk", "x", "zz")


@dataclass(frozen=True)
class MadeUp:
    """A name that does not exist: `statistics.merge_hidden_states`, short `merge_hidden_states`.

    kind: "recombined" (real words, hard to tell) or "coined" (a word of no language in it, such
    as `json.load_snorvazz`).
    """

    name: str
    short: str
    kind: str


class NameForge:
    """Joins the module of one package to words from names of another; never the same name twice.

    A share `coined` of the names has a coined word for its tail. Knowing that such a name is wrong
    takes a sense for words; for the others it takes knowing the library. Both are counted apart.
    Functions (`zipfile.normalize_logits`), classes (`textwrap.TokenEncoder`) and methods
    (`json.JSONEncoder.resize_axis`) in the proportions that the library has. A short name that
    occurs as a word anywhere in the corpora is not used: not all that exists is documented.
    """

    def __init__(self, library: Library, *, coined: float = 0.0) -> None:
        self._coined = coined
        self._entries = library.entries
        self._taken = set(library.names)
        self._identifiers = library.identifiers
        named = [(entry, _words(entry)) for entry in library.entries]
        self._callables = [(e, w) for e, w in named if e.kind != "class" and len(w) >= 2]
        self._classes = [(e, w) for e, w in named if e.kind == "class" and len(w) >= 2]
        self._one_domain = len({entry.domain for entry in library.entries}) == 1
        if len(self._callables) < 4:
            raise DataError(
                f"the corpora hold {len(self._callables)} function names of two words or more, too "
                "few to make up plausible ones; set train_made_up, prompts_made_up and "
                "heldout_made_up to 0"
            )

    def make(self, draw: random.Random) -> MadeUp:
        """A new name; DataError when the corpora are so small that none can be found."""
        for _ in range(TRIES):
            made = self._draw(draw)
            last = made.name.rpartition(".")[2] if made else ""
            if made is None or made.name in self._taken or last in self._identifiers:
                continue
            self._taken.add(made.name)
            return made
        raise DataError(
            f"found no made-up name in {TRIES} tries; ask for fewer made-up rows or add documents"
        )

    def _draw(self, draw: random.Random) -> MadeUp | None:
        like = draw.choice(self._entries)  # kinds in the proportions of the library
        pool = self._classes if like.kind == "class" else self._callables
        if len(pool) < 2:
            return None
        (a, head), (b, tail) = draw.choice(pool), draw.choice(pool)
        if not self._one_domain and like.domain in (a.domain, b.domain):
            return None
        words = [*head[: draw.randrange(1, len(head))], *tail[draw.randrange(1, len(tail)) :]]
        kind = "recombined"
        if draw.random() < self._coined:
            word = coin_word(draw)
            words = [*head[:1], word.capitalize() if like.kind == "class" else word]
            kind = "coined"
        last = ("" if like.kind == "class" else "_").join(words)
        owner = like.name.rpartition(".")[0]  # the module, or the class of a method
        name = f"{owner}.{last}"
        return MadeUp(name, name.removeprefix(like.module + "."), kind)


def coin_word(draw: random.Random) -> str:
    """A word of two or three syllables that means nothing: "snorvazz", "plaimookeg"."""
    syllables = [draw.choice(_ONSETS) + draw.choice(_VOWELS) for _ in range(draw.choice((2, 2, 3)))]
    return "".join(syllables) + draw.choice(_CODAS)


def _words(entry: Entry) -> list[str]:
    last = entry.name.rpartition(".")[2]
    found = _CAMEL.findall(last) if entry.kind == "class" else last.split("_")
    return [word for word in found if word]
