"""Personal data and keys: hand cases, checksums, and labelled sentences."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.text.pii import find_personal_data, redact

LABELLED = Path(__file__).parents[2] / "shared/data/pii_presidio/synth_dataset_v2.json"

AKIA = "AKIA" + "ABCDEFGHIJKLMNOP"
BLOCK = "-----BEGIN RSA PRIVATE KEY-----\n" + "Q" * 64 + "\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("Mail ann.lee@posteo.net now.", "Mail <EMAIL> now."),
        ("card 4111 1111 1111 1111, exp", "card <CARD>, exp"),  # the well-known Visa test number
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN <IBAN>."),  # the example of the standard
        ("from 93.184.216.34 to", "from <IP> to"),
        ("at 2606:2800:220:1:248:1893:25c8:1946 today", "at <IP> today"),
        ("call +49 30 901820 or", "call <PHONE> or"),
        ("(212) 555-0187 is", "<PHONE> is"),
        ("My phone: 0489 25 37 29", "My phone: <PHONE>"),
        ("ssn 078-05-1120", "ssn <SSN>"),
        (f"export KEY={AKIA}", "export KEY=<KEY>"),
        ("token sk-" + "a1" * 16, "token <KEY>"),
        (f"a\n{BLOCK}\nb", "a\n<PRIVATE_KEY>\nb"),
    ],
)
def test_found(text, redacted):
    assert redact(text)[0] == redacted
    assert sum(redact(text)[1].values()) == 1
    assert redact(redacted) == (redacted, {})  # placeholders are stable


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112",  # Luhn fails
        "IBAN DE88 3704 0044 0532 0130 00",  # mod 97 fails
        "id 4111111111111111222222",
        "0.4111111111111111 of it",
        "x[1::2], a::b, 12:30:45, std::vector::size",
        "127.0.0.1 and 192.168.1.7 and 10.0.0.1 and ::1",
        "version 1.21.6.2",
        "user@example.com, git@github.com:a/b.git, @decorator",
        "array([[ 5.8182e-18,  4.5765e-41, -1.0545e+30], [100 200 300 400]])",
        "2024-01-31 12:00:00, 1024 2048 4096, 1_000_000",
        "sk-learn and hf_hub_download and AKIAXX",
        "00 01 02 03 04 05 06 07",
    ],
)
def test_left_alone(text):
    assert redact(text) == (text, {})


def test_counts_by_kind():
    text = f"a@b.org c@d.org {AKIA}"
    assert redact(text) == ("<EMAIL> <EMAIL> <KEY>", {"email": 2, "key": 1})


@given(st.text(alphabet="0123456789 -.@abc+()\n:", max_size=200))
def test_findings_are_ordered_and_apart(text):
    findings = find_personal_data(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(findings))
    assert all(0 <= f.start < f.end <= len(text) for f in findings)


@given(st.integers(min_value=10**14, max_value=10**15 - 1), st.integers(0, 9))
def test_one_check_digit_in_ten_is_a_card(body, digit):
    """Luhn by a second formula: the doubled digits are the odd positions from the left here."""
    number = f"4{body}"[:15] + str(digit)
    total = sum(int(d) for i, d in enumerate(number) if i % 2)
    total += sum(
        divmod(2 * int(d), 10)[0] + 2 * int(d) % 10 for i, d in enumerate(number) if not i % 2
    )
    assert ("card" in redact(f"no {number}")[1]) == (total % 10 == 0)


@pytest.mark.skipif(not LABELLED.exists(), reason="labelled sentences are not on this machine")
def test_precision_and_recall_on_labelled_sentences():
    """Measured: all kinds but phone 1.00 / 1.00; phone recall about 0.65 by design."""
    kinds = {
        "CREDIT_CARD": "card",
        "PHONE_NUMBER": "phone",
        "EMAIL_ADDRESS": "email",
        "IBAN_CODE": "iban",
        "IP_ADDRESS": "ip",
        "US_SSN": "ssn",
    }
    hits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    false: Counter[str] = Counter()
    for row in json.loads(LABELLED.read_text()):
        findings = find_personal_data(row["full_text"])
        spans = [
            (kinds[s["entity_type"]], s["start_position"], s["end_position"])
            for s in row["spans"]
            if s["entity_type"] in kinds
        ]
        for kind, start, end in spans:
            labels[kind] += 1
            hits[kind] += any(
                f.kind == kind and f.start <= start and f.end >= end for f in findings
            )
        for f in findings:
            false[f.kind] += not any(k == f.kind and f.start < e and f.end > s for k, s, e in spans)
    recall = {kind: hits[kind] / labels[kind] for kind in labels}
    precision = {kind: hits[kind] / (hits[kind] + false[kind]) for kind in labels}
    assert all(recall[kind] >= 0.95 for kind in ("card", "email", "iban", "ip", "ssn")), recall
    assert all(precision[kind] >= 0.95 for kind in ("card", "email", "iban", "ip", "ssn"))
    assert recall["phone"] >= 0.5, recall
    assert precision["phone"] >= 0.9, precision
