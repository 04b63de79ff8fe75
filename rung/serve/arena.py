"""Blind comparisons: which model stands on which side, known to the server alone until a vote."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from rung.errors import RungError

MAX_COMPARISONS = 4096
SIDES = ("left", "right")


class ComparisonError(RungError):
    """A comparison is unknown, or cannot be voted on any more."""


@dataclass
class Comparison:
    """Two models on one prompt. models, artefacts: left, then right.

    key: of the vote; shown: whether the names were told without one.
    """

    id: str
    models: tuple[str, str]
    artefacts: tuple[str, str]
    key: str = ""
    shown: bool = False


@dataclass
class Arena:
    """Comparisons of this process; the oldest are forgotten. The vote records their sides."""

    _known: OrderedDict[str, Comparison] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, models: Sequence[tuple[str, str]], wanted: Sequence[str]) -> Comparison:
        """A new comparison with sides by chance.

        models: (name, artefact id) of what can chat. wanted: two names, the same one twice for two
        answers of one model; none for any two different models.
        """
        artefacts = dict(models)
        names = list(wanted) or secrets.SystemRandom().sample(list(artefacts), len(artefacts))[:2]
        if len(names) != 2 or any(name not in artefacts for name in names):
            raise ComparisonError(
                f"cannot compare {', '.join(map(repr, names)) or 'no models'}; a comparison takes "
                f"two of: {', '.join(artefacts) or 'none is served'}"
            )
        if secrets.randbits(1):
            names.reverse()
        left, right = names
        new = Comparison(
            secrets.token_urlsafe(12), (left, right), (artefacts[left], artefacts[right])
        )
        with self._lock:
            self._known[new.id] = new
            while len(self._known) > MAX_COMPARISONS:
                self._known.popitem(last=False)
        return new

    def get(self, id: str) -> Comparison:
        found = self._known.get(id)
        if found is None:
            raise ComparisonError(
                f"comparison {id!r:.40} is not known: the server was started anew or it is too "
                "old; send the message again"
            )
        return found

    def claim(self, id: str, key: str, *, retract: bool) -> Comparison:
        """The comparison for the vote `key`; error where the names were known before it.

        retract: a vote that takes back an earlier one, which is possible at any time.
        """
        found = self.get(id)
        with self._lock:
            if found.shown and found.key != key and not retract:
                why = "was voted on" if found.key else "was shown with its names"
                raise ComparisonError(f"comparison {id!r:.40} {why}; a vote must come before")
            found.key = found.key or key
            found.shown = True
        return found
