"""Which groups of documents are held out: a pure function of their names, sizes and a seed."""

import hashlib
from collections.abc import Mapping

INSTRUCT, TEXT_ONLY, NOWHERE = "instruct", "text_only", "nowhere"


def draw_order(names: Mapping[str, int], *, seed: int, purpose: str) -> list[str]:
    """The names in an order that depends on each name alone, so that a new one moves few others."""

    def key(name: str) -> str:
        return hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).hexdigest()

    return sorted(names, key=key)


def assign_parts(
    sizes: Mapping[str, int], *, heldout: float, text_only: float, seed: int
) -> dict[str, str]:
    """A part for every group of one domain, by share of its bytes.

    A group that would overshoot its part's share by more than half is passed over, so that one
    huge module does not become the whole held-out set; the smallest is taken when all are too
    large. A single group is not held out: its domain would have no training text.
    """
    parts = dict.fromkeys(sizes, INSTRUCT)
    total = sum(sizes.values())
    for part, share in ((NOWHERE, heldout), (TEXT_ONLY, text_only)):
        free = {name: size for name, size in sizes.items() if parts[name] == INSTRUCT}
        taken = 0
        for name in draw_order(free, seed=seed, purpose="split"):
            if taken < share * total and taken + free[name] <= 1.5 * share * total:
                parts[name] = part
                taken += free[name]
        if not taken and share > 0 and len(free) > 1:
            parts[min(free, key=lambda name: (free[name], name))] = part
    return parts


def fill_budget(sizes: Mapping[str, int], *, budget: int, seed: int) -> set[str]:
    """The groups that stay when the domain may have `budget` bytes; whole groups, drawn by seed."""
    kept: set[str] = set()
    used = 0
    for name in draw_order(sizes, seed=seed, purpose="budget"):
        if used + sizes[name] <= budget:
            kept.add(name)
            used += sizes[name]
    return kept
