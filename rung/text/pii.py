"""Personal data and keys in text, replaced by placeholders: <EMAIL>, <CARD>, <KEY> ...

Checksums (Luhn, mod 97) and address ranges decide where they exist. A telephone number has no
checksum, so it needs a leading +, a usual national shape, or a word such as "phone" shortly
before it; names and street addresses are not covered: they need a model.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Finding(NamedTuple):
    """text[start:end] is personal data of `kind`."""

    start: int
    end: int
    kind: str


def redact(text: str) -> tuple[str, dict[str, int]]:
    """`text` with placeholders, and the number of findings by kind."""
    findings = find_personal_data(text)
    if not findings:
        return text, {}
    parts: list[str] = []
    at = 0
    for finding in findings:
        parts += [text[at : finding.start], f"<{finding.kind.upper()}>"]
        at = finding.end
    return "".join([*parts, text[at:]]), dict(sorted(Counter(f.kind for f in findings).items()))


def find_personal_data(text: str) -> list[Finding]:
    """Findings in text order, without overlaps; the more certain kind wins."""
    taken: list[Finding] = []
    for kind, needed, pattern, check in _DETECTORS:
        if not needed(text):
            continue
        for match in pattern.finditer(text):
            start, end = match.span()
            free = all(end <= other.start or start >= other.end for other in taken)
            if free and check(match):
                taken.append(Finding(start, end, kind))
    return sorted(taken)


def _always(match: re.Match[str]) -> bool:
    return True


def _digits(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match[0])


def _is_card(match: re.Match[str]) -> bool:
    digits = _digits(match)
    if not _ISSUER.match(digits):
        return False
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _is_iban(match: re.Match[str]) -> bool:
    code = match[0].replace(" ", "").upper()
    if _IBAN_LENGTHS.get(code[:2]) != len(code):
        return False
    return int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1


def _is_public_address(match: re.Match[str]) -> bool:
    if match[0].count(":") and len([g for g in match[0].split(":") if g]) < 4:
        return False  # "1::2" is a slice or a scope more often than an address
    try:
        return ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return False


def _is_personal_email(match: re.Match[str]) -> bool:
    user, _, host = match[0].lower().rpartition("@")
    reserved = host.split(".")[-1] in ("example", "invalid", "test", "localhost")
    return user != "git" and not reserved and not re.search(r"(^|\.)example\.\w+$", host)


def _is_phone(match: re.Match[str]) -> bool:
    return 8 <= len(_digits(match)) <= 15


def _is_phone_in_context(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 60) : match.start()]
    return 7 <= len(_digits(match)) <= 12 and bool(_PHONE_WORD.search(before))


def _has(part: str) -> Callable[[str], bool]:
    return lambda text: part in text


def _has_digits(text: str) -> bool:
    return bool(_TWO_DIGITS.search(text))


def _has_long_number(text: str) -> bool:
    return bool(_LONG_NUMBER.search(text))


def _has_long_address(text: str) -> bool:
    return bool(_HEX_GROUPS.search(text))


def _speaks_of_phones(text: str) -> bool:
    return _has_digits(text) and bool(_PHONE_WORD.search(text))


_TWO_DIGITS = re.compile(r"\d\d")
_LONG_NUMBER = re.compile(r"\d(?:[ -]?\d){11}")
_HEX_GROUPS = re.compile(r"[0-9A-Fa-f]:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]")
_PHONE_WORD = re.compile(
    r"\b(phone|telephone|tel|mobile|cell|fax|whatsapp|sms|dial(led)?|text me|number is"
    r"|(call(ed|ing)?|reach(ed)?|ring|contact(ed)?) (me|us|him|her|them|at|on))\b",
    re.IGNORECASE,
)
# Issuer ranges: Visa, Mastercard (old and new), Amex, Diners, Discover, JCB, Maestro.
_ISSUER = re.compile(
    r"4(\d{12}|\d{15}|\d{18})$|5[1-5]\d{14}$|2(22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}$"
    r"|3[47]\d{13}$|3(0[0-5]|[68]\d)\d{11}$|6(011|5\d\d|4[4-9]\d)\d{12,15}$|35\d{14,17}$"
    r"|(1800|2131)\d{11}$|(50|5[6-9]|6\d)\d{10,17}$"
)
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI NL", 19: "SI", 20: "AT BA EE KZ LT LU",
        21: "CH HR LI LV", 22: "BG DE GB GE IE ME RS", 23: "AE GI IL",
        24: "AD CZ ES PK RO SA SE SK",
        25: "PT", 26: "IS TR", 27: "FR GR IT MC SM", 28: "AL AZ CY DO GT HU LB PL", 29: "BR QA UA",
        31: "MT SC",
    }.items()
    for country in countries.split()
}  # fmt: skip
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_SECRET = (
    r"\b(?:sk-[A-Za-z0-9_-]{20,}|(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}"
    r"|glpat-[\w-]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{40,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})(?![\w-])"
)
_PRIVATE_KEY = (
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[\s\S]{20,}?"
    r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
)

_Detector = tuple[str, Callable[[str], bool], re.Pattern[str], Callable[[re.Match[str]], bool]]


def _detectors() -> Iterator[_Detector]:
    """In order of certainty: kind, a cheap test of the whole text, shape, check of one match."""
    yield "private_key", _has("PRIVATE KEY"), re.compile(_PRIVATE_KEY), _always
    yield "key", lambda text: True, re.compile(_SECRET), _always
    email = r"(?<![\w.%+-])[\w.%+'-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
    yield "email", _has("@"), re.compile(email), _is_personal_email
    iban = r"\b[A-Za-z]{2}\d{2}(?: ?[A-Za-z0-9]{4}){2,7}(?: ?[A-Za-z0-9]{1,3})?\b"
    yield "iban", _has_digits, re.compile(iban), _is_iban
    card = r"(?<![\w.,+-])\d(?:[ -]?\d){11,18}(?![\w-]|[.,]\d)"
    yield "card", _has_long_number, re.compile(card), _is_card
    ssn = r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"
    yield "ssn", _has_digits, re.compile(ssn), _always
    ipv4 = rf"(?<![\w.])(?<!version )(?:{_BYTE}\.){{3}}{_BYTE}(?![\w.]*\w)"
    yield "ip", _has_digits, re.compile(ipv4), _is_public_address
    ipv6 = r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])"
    yield "ip", _has_long_address, re.compile(ipv6), _is_public_address
    plus = r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    plus += r"(?:x\d{1,6})?(?!\w)"
    yield "phone", _has("+"), re.compile(plus), _is_phone
    national = r"(?<![\w.-])(?:\(\d{2,4}\) ?\d{3,4}[ -]\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
    yield "phone", _has_digits, re.compile(national), _is_phone
    loose = r"(?<![\w.+-])\(?\d{2,12}\)?(?:(?:[ .-]|(?<=\)))\(?\d{2,7}\)?){0,5}"
    loose += r"(?:x\d{1,6})?(?!\w|\.\d)"
    yield "phone", _speaks_of_phones, re.compile(loose), _is_phone_in_context


_DETECTORS = tuple(_detectors())
