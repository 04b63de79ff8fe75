"""Prompts that begin alike are read once: keys and values by the hash of what was read.

Text is cut into blocks of BLOCK tokens. A block's name is a hash of its tokens and of the name of
the block before it, so a name stands for all that was read up to there. The blocks that were not
used for the longest time make room for new ones.
"""

import hashlib
from collections import OrderedDict

import numpy as np

from rung.engine.slots import BLOCK


class PrefixCache:
    """Which blocks are held and where. The tensors are those of `Blocks` (slots.py)."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._place: OrderedDict[bytes, int] = OrderedDict()  # the block used last comes last
        self.hits = 0  # tokens that were not read again

    def match(self, tokens: np.ndarray, *, voice: str | None) -> list[int]:
        """Places of the blocks that `tokens` begin with. voice: the adapter that reads."""
        places = []
        for name in _names(tokens, voice):
            if name not in self._place:
                break
            self._place.move_to_end(name)
            places.append(self._place[name])
        return places

    def insert(self, tokens: np.ndarray, *, voice: str | None) -> list[tuple[int, int]]:
        """(number of the block in `tokens`, place to write it to) of those that were not held."""
        fresh = []
        names = _names(tokens, voice)[: self.num_blocks]
        for number, name in enumerate(names):
            if name in self._place:
                self._place.move_to_end(name)
                continue
            place = len(self._place)
            if place == self.num_blocks:
                oldest = next(iter(self._place))
                if oldest in names:  # a text longer than the cache would push itself out
                    break
                place = self._place.pop(oldest)
            self._place[name] = place
            fresh.append((number, place))
        return fresh

    def clear(self) -> None:
        """Forget all: the weights have changed."""
        self._place.clear()


def _names(tokens: np.ndarray, voice: str | None) -> list[bytes]:
    """Names of the whole blocks of `tokens`."""
    data = np.ascontiguousarray(tokens, dtype=np.int64)
    name = (voice or "").encode()
    names = []
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        name = hashlib.blake2b(name + data[at : at + BLOCK].tobytes(), digest_size=16).digest()
        names.append(name)
    return names
