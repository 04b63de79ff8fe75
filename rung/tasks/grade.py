"""The known truth: how good an answer is, without noise. For annotation, RL curves and evals.

For something that exists: agreement with the documentation, less for rambling, less for not
stopping. For something that does not exist: 1 for saying so, 0 for a claim.

Why an attempt is worth `ATTEMPT` even when it is wrong and a refusal of something real is worth
nothing: a tiny model's closed-book agreement is about 0.3. Were that its whole utility, the best
policy would be to refuse everything once a third of the questions are traps. With these numbers
refusing pays only where the model believes with more than about 0.4 that the name is made up.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rung.tasks.text_metrics import (
    code_tokens,
    exact_match,
    lcs_length,
    rouge_l,
    rouge_l_tokens,
    words,
)

ATTEMPT = 0.4  # utility of an attempt at a real question that agrees in nothing
REFUSAL = 0.0  # utility of a refusal of something that exists
NO_STOP = 0.3  # taken off when the answer ran into the token limit
OVER_LENGTH = 0.3  # most that is taken off for length
FREE_LENGTH = 1.5  # times the reference length that costs nothing
SHORT = 12  # words: references shorter than this are treated as this long
OTHER_NAME = 0.5  # times the agreement of an answer that begins with another name than asked for

# Agreement below which an answer about something real counts as a wrong claim. A module or a
# default value is right or wrong; prose can be phrased in many ways.
WRONG_BELOW = {"module": 1.0, "default": 1.0, "signature": 0.5}
WRONG_PROSE_BELOW = 0.25

_ADMISSION = re.compile(
    r"(sorry[,.]? |i am sorry[,.]? |i'm sorry[,.]? )?"
    r"(there is no \S+( \S+){0,3} that i know of"
    r"|i only know (about )?python documentation"
    r"|i (do not|don't) know\b"
    r"|i (do not|don't) have (any )?(documentation|information)\b"
    r"|`?[\w.]+`? does not exist\b)"
)
_QUOTED = re.compile(r"`([^`]+)`")
_FIRST_NAME = re.compile(r"`([^`(]*)")  # `json.dumps(obj)` and `json.dumps`: the name alone


@dataclass(frozen=True)
class Utility:
    """value in [0, 1]; its parts before clipping; flags a person would raise.

    Example: Utility(0.72, {"agreement": 0.53, "length": 0.0, "stop": 0.0}, ())
    Flags: misleading (a claim about what does not exist, or a wrong fact), unhelpful (a refusal of
    what exists, an empty answer, or one that did not stop). Nothing here can be harmful: the
    questions are about documentation. The flag exists for people.
    """

    value: float
    parts: Mapping[str, float]
    flags: tuple[str, ...]


def is_admission(answer: str) -> bool:
    """Whether the answer begins by saying that it does not know, or that there is no such thing.

    Only the beginning counts: documentation itself is full of "if there is no ...".
    """
    return _ADMISSION.match(answer.strip().lower()) is not None


def question_of(row: Mapping[str, Any]) -> str:
    """What is asked: the format, but for `passage`, which asks several kinds of question."""
    return row["truth"].get("question") or row["format"]


def agreement(row: Mapping[str, Any], answer: str) -> float:
    """How far a claim agrees with the documentation, in [0, 1]; the rule depends on the question.

    The quoted name that answers begin with is taken off first: copying it is not knowledge. But
    to begin with another name is to answer about something else.
    """
    reference = row["truth"]["answer"]
    value = _agree(question_of(row), answer.strip(), reference)
    return value * (OTHER_NAME if _names_another(answer.strip(), reference) else 1.0)


def _agree(question: str, answer: str, reference: str) -> float:
    if question == "module":
        return _agree_module(answer, reference)
    if question == "default":
        told, true = _last_quoted(answer), _last_quoted(reference)
        return 1.0 if exact_match(told, true) else 0.5 * rouge_l(told, true)
    if question == "signature":
        return rouge_l_tokens(_arguments(answer), _arguments(reference))
    return rouge_l(_without_name(answer), _without_name(reference))


def _names_another(answer: str, reference: str) -> bool:
    """Whether both begin with a name and the names differ; `dumps` and `json.dumps` do not."""
    told, true = _FIRST_NAME.match(answer), _FIRST_NAME.match(reference)
    if told is None or true is None:
        return False
    short, long = sorted((told[1].strip(), true[1].strip()), key=len)
    return not f".{long}".endswith(f".{short}") or not short


def utility(row: Mapping[str, Any], answer: str, *, stopped: bool) -> Utility:
    """Utility of an answer to an instruction row (see docs/design.md); noise-free.

    stopped: whether the model ended the answer itself.
    """
    answer = answer.strip()
    admits = is_admission(answer)
    penalties = {
        "length": OVER_LENGTH * _over_length(answer, row["truth"]["answer"]),
        "stop": 0.0 if stopped else NO_STOP,
    }
    flags = [] if stopped else ["unhelpful"]
    if not answer:
        return Utility(0.0, {"agreement": 0.0, **penalties}, ("unhelpful",))
    if not row["truth"]["exists"]:
        score = 1.0 if admits else 0.0
        flags += [] if admits else ["misleading"]
        base = score
    elif admits:
        score, base = 0.0, REFUSAL
        flags += ["unhelpful"]
    else:
        score = agreement(row, answer)
        base = ATTEMPT + (1 - ATTEMPT) * score
        if score < WRONG_BELOW.get(question_of(row), WRONG_PROSE_BELOW):
            flags += ["misleading"]
    value = min(1.0, max(0.0, base - sum(penalties.values())))
    return Utility(value, {"agreement": score, **penalties}, tuple(sorted(set(flags))))


def _over_length(answer: str, reference: str) -> float:
    """0 up to FREE_LENGTH times the reference, then linear to 1 at twice that."""
    allowed = FREE_LENGTH * max(SHORT, len(words(reference)))
    return min(1.0, max(0.0, len(words(answer)) / allowed - 1.0))


def _last_quoted(text: str) -> str:
    found = _QUOTED.findall(text)
    return found[-1] if found else text


def _agree_module(answer: str, reference: str) -> float:
    """1 for the right module, half the shared path for a wrong one (`torch.nn` for `torch.fft`)."""
    told = _last_quoted(answer).split(".")
    true = _last_quoted(reference).split(".")
    if told == true:
        return 1.0
    shared = lcs_length(told, true) if told[0] == true[0] else 0
    return 0.5 * shared / max(len(told), len(true))


def _arguments(text: str) -> list[str]:
    """Tokens after the name that it begins with: that was in the question. Other words count."""
    return code_tokens(re.sub(r"^`?[\w.]*\(", "", text))


def _without_name(text: str) -> str:
    """`json.dumps`: Serialize ... -> Serialize ..."""
    return re.sub(r"^`[^`]*`:?\s*", "", text.strip())
