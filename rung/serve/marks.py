"""What makes an exchange an edge case: worth a look, worth a place in the next training data."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rung.tasks.grade import is_admission

if TYPE_CHECKING:
    from rung.serve.traffic import Exchange

MARKS = ("low_reward", "refusal", "slow", "flag")

# Only the beginning counts: an answer may well explain how to say that one cannot.
_REFUSAL = re.compile(
    r"(i'?m sorry|sorry|i apologi[sz]e|unfortunately)[,.!]?\s+(but\s+)?(i|that|this|there)\b"
    r"|(i|we)\s+(can'?t|cannot|can not|won'?t|am not able|am unable|'?m not able|'?m unable"
    r"|don'?t know|do not know)\b"
    r"|i'?m (not able|unable)\b|as an ai\b"
)


def is_refusal(answer: str) -> bool:
    """Whether an answer begins by saying that it will not, cannot, or does not know."""
    begin = answer.strip().lower().replace("\u2019", "'")
    return _REFUSAL.match(begin) is not None or is_admission(answer)


def find_marks(
    exchange: "Exchange",
    rewards: Sequence[float] | None,
    *,
    slow_seconds: float,
    low_reward: float,
) -> list[str]:
    """The marks that hold, in the order of MARKS; "flag" comes later, from a user."""
    holds = {
        "low_reward": rewards is not None and any(reward < low_reward for reward in rewards),
        "refusal": any(map(is_refusal, exchange.answers)),
        "slow": exchange.seconds > slow_seconds,
    }
    return [mark for mark in MARKS if holds.get(mark)]
