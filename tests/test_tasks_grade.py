"""Agreement with the truth, by hand and against a slow reference; what utility rewards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rung.tasks.grade import (
    ATTEMPT,
    NO_STOP,
    OTHER_NAME,
    REFUSAL,
    agreement,
    is_admission,
    utility,
)
from rung.tasks.text_metrics import exact_match, lcs_length, rouge_l, token_f1

SUMMARY = "Serialize `obj` to a JSON formatted `str`."
ADMITS = "There is no `json.frobnicate` that I know of."


def row(format: str, answer: str, *, exists: bool = True, question: str | None = None) -> dict:
    truth = {"name": "json.dumps", "exists": exists, "answer": answer, "passage": None}
    if question:
        truth["question"] = question
    return {"format": format, "truth": truth}


EXPLAIN = row("explain", f"`dumps`: {SUMMARY}")
MADE_UP = row("unknown", ADMITS, exists=False)


def slow_lcs(a: list[str], b: list[str]) -> int:
    """The textbook table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else best
    return table[-1][-1]


TOKENS = st.lists(st.sampled_from("abcd"), max_size=90)  # 90: beyond one machine word


@given(TOKENS, TOKENS)
def test_lcs_by_bits_equals_the_table(a, b):
    assert lcs_length(a, b) == slow_lcs(a, b)


def test_rouge_l_by_hand():
    # answer: the cat sat (3), truth: the black cat sat down (5); common: the cat sat (3)
    assert rouge_l("the cat sat", "The black cat sat down.") == pytest.approx(2 * 3 / (3 + 5))
    # order counts: "sat cat the" shares one word in order
    assert rouge_l("sat cat the", "the cat sat") == pytest.approx(1 / 3)
    assert rouge_l("", "the cat") == 0.0


def test_token_f1_by_hand():
    # bags {a: 2, b: 1} and {a: 1, c: 1}: overlap 1 of 3 and of 2
    assert token_f1("a a b", "a c") == pytest.approx(2 * 1 / (3 + 2))


@pytest.mark.parametrize(
    ("answer", "equal"), [("`None`.", True), (" None ", True), ("none", False), ("0", False)]
)
def test_exact_match_forgives_layout_only(answer, equal):
    assert exact_match(answer, "None") is equal


@pytest.mark.parametrize(
    "answer",
    [
        ADMITS,
        "there is no `Textbox.pager_float` that i know of",
        "I only know Python documentation, so I cannot answer that.",
        "Sorry, I do not know.",
        "`json.frobnicate` does not exist.",
    ],
)
def test_admissions(answer):
    assert is_admission(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "`current`: Return None if there is no running loop that I know of.",
        "There is no difference between the two.",
        "Return True if the path does not exist.",
    ],
)
def test_documentation_is_no_admission(answer):
    assert not is_admission(answer)


def test_the_truth_is_best_and_has_no_flags():
    for true in (
        EXPLAIN,
        row("module", "`dumps` is in `json`."),
        row("signature", "`dumps(obj, *, indent=None)`"),
        row("passage", "The default of `indent` is `None`.", question="default"),
        MADE_UP,
    ):
        graded = utility(true, true["truth"]["answer"], stopped=True)
        assert graded.value == 1.0
        assert graded.flags == ()


def test_claims_about_made_up_names_are_worth_nothing():
    graded = utility(MADE_UP, "`frobnicate`: Serialize the object.", stopped=True)
    assert (graded.value, graded.flags) == (0.0, ("misleading",))


def test_refusing_something_real_is_worse_than_a_wrong_attempt():
    refused = utility(EXPLAIN, ADMITS, stopped=True)
    wrong = utility(EXPLAIN, "`dumps`: Remove every file below.", stopped=True)
    near = utility(EXPLAIN, "`dumps`: Serialize obj to a file.", stopped=True)
    assert (refused.value, refused.flags) == (REFUSAL, ("unhelpful",))
    assert (wrong.value, wrong.flags) == (ATTEMPT, ("misleading",))
    assert refused.value < wrong.value < near.value < 1.0
    assert near.flags == ()


def test_copying_the_name_is_no_agreement():
    long_name = row("explain", "`a.b.c.d.e.f`: Serialize.")
    assert agreement(long_name, "`a.b.c.d.e.f`: Remove.") == 0.0


def test_an_answer_about_another_name_agrees_half_as_much():
    assert agreement(EXPLAIN, f"`json.dumps`: {SUMMARY}") == 1.0  # the longer name is no other
    assert agreement(EXPLAIN, f"`loads`: {SUMMARY}") == OTHER_NAME
    true = row("signature", "`JSONEncoder.encode(self, o)`")
    assert agreement(true, "`encode(self, o)`") == 1.0
    assert agreement(true, "`decode(self, o)`") == OTHER_NAME
    assert agreement(true, "self, o") == 1.0  # names nothing


def test_words_before_a_signature_are_no_arguments():
    true = row("signature", "`dumps(obj)`")
    assert agreement(true, "It is called dumps(obj)") == pytest.approx(2 * 1 / (5 + 1))


def test_not_stopping_and_rambling_cost():
    stopped = utility(EXPLAIN, SUMMARY, stopped=True)
    running = utility(EXPLAIN, SUMMARY, stopped=False)
    assert stopped.value - running.value == pytest.approx(NO_STOP)
    assert running.flags == ("unhelpful",)
    # 7 words count as 12; free up to 18; 27 words are half way to the full penalty, 0.3 / 2
    rambling = utility(EXPLAIN, " ".join([SUMMARY] + ["word"] * 20), stopped=True)
    assert rambling.parts["length"] == pytest.approx(0.15)
    assert rambling.value < stopped.value


def test_saying_nothing_is_worth_nothing():
    for of_row in (EXPLAIN, MADE_UP):
        graded = utility(of_row, " ", stopped=True)
        assert (graded.value, graded.flags) == (0.0, ("unhelpful",))


def test_module_is_right_or_shares_a_path():
    true = row("module", "`relu` is in `torch.nn.functional`.")
    assert agreement(true, "It is in `torch.nn.functional`.") == 1.0
    assert agreement(true, "`relu` is in `torch.nn.init`.") == pytest.approx(0.5 * 2 / 3)
    assert agreement(true, "`relu` is in `numpy`.") == 0.0
    assert utility(true, "`relu` is in `torch.nn`.", stopped=True).flags == ("misleading",)


def test_signature_agreement_is_on_arguments_in_order():
    true = row("signature", "`dumps(obj, *, indent=None)`")  # tokens: obj * indent None
    assert agreement(true, "dumps(obj, *, indent=None)") == 1.0
    assert agreement(true, "`dumps(obj)`") == pytest.approx(2 * 1 / (1 + 4))
    assert agreement(true, "`dumps(indent, obj)`") == pytest.approx(2 * 1 / (2 + 4))


ANSWERS = st.one_of(st.text(max_size=80), st.sampled_from([ADMITS, SUMMARY, "`json`", "f(a, b=1)"]))


@given(ANSWERS, ANSWERS, st.sampled_from(["explain", "module", "signature"]), st.booleans())
def test_utility_stays_in_its_range(answer, true, format, stopped):
    for exists in (True, False):
        graded = utility(row(format, true, exists=exists), answer, stopped=stopped)
        assert 0.0 <= graded.value <= 1.0
