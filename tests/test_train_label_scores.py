"""Figures of a classifier against hand arithmetic and second formulas."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax
from scipy.stats import binomtest, norm

from rung.train import label_scores


def one_hot(chosen, num_labels, confidence=0.9):
    """Probabilities whose largest is at `chosen`."""
    rest = (1 - confidence) / (num_labels - 1)
    return np.where(np.eye(num_labels)[chosen] > 0, confidence, rest)


def test_single_label_by_hand() -> None:
    #        truth 0 0 0 0 1 1 2
    #       chosen 0 0 0 1 1 0 1
    truth, chosen = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 1, 0, 1])
    found = label_scores.single_label(one_hot(chosen, 3), truth, seed=0)
    assert found["confusion"] == [[3, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert found["accuracy"]["value"] == pytest.approx(4 / 7, abs=1e-6)
    # label 0: precision 3/4, recall 3/4; label 1: 1/3, 1/2; label 2 is never given
    assert found["per_label"] == [
        {"precision": 0.75, "recall": 0.75, "f1": 0.75, "support": 4},
        {"precision": pytest.approx(1 / 3, abs=1e-6), "recall": 0.5, "f1": 0.4, "support": 2},
        {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1},
    ]
    assert found["macro_f1"]["value"] == pytest.approx((0.75 + 0.4 + 0) / 3, abs=1e-6)
    assert found["commonest_label_accuracy"] == pytest.approx(4 / 7, abs=1e-6)
    right = -(4 * math.log(0.9) + 3 * math.log(0.05)) / 7
    assert found["log_loss"] == pytest.approx(right, abs=1e-5)
    # all confidences are 0.9, 4 of 7 were right
    assert found["calibration"]["ece"] == pytest.approx(0.9 - 4 / 7, abs=1e-6)


def test_a_label_without_held_out_texts_is_not_in_the_mean() -> None:
    truth, chosen = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0])
    three = label_scores.single_label(one_hot(chosen, 3), truth, seed=0)
    two = label_scores.single_label(one_hot(chosen, 2), truth, seed=0)
    assert three["macro_f1"]["value"] == two["macro_f1"]["value"]


def test_intervals() -> None:
    found = label_scores.wilson(83, 100)
    assert [found["low"], found["high"]] == pytest.approx(
        list(binomtest(83, 100).proportion_ci(method="wilson")), abs=1e-6
    )
    draw = np.random.default_rng(0)
    truth = draw.integers(0, 3, size=400)
    chosen = np.where(draw.uniform(size=400) < 0.8, truth, draw.integers(0, 3, size=400))
    macro = label_scores.single_label(one_hot(chosen, 3), truth, seed=0)["macro_f1"]
    # a plain bootstrap over texts, by a loop
    values = []
    for _ in range(2000):
        index = draw.integers(0, 400, size=400)
        matrix = label_scores.confusion(truth[index], chosen[index], 3)
        values.append(float(label_scores.macro_f1(matrix, np.ones(3, dtype=bool))))
    low, high = np.quantile(values, [0.025, 0.975])
    assert (macro["low"], macro["high"]) == pytest.approx((low, high), abs=0.006)


def test_several_labels_by_hand() -> None:
    truth = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=np.float32)
    given = np.array([[0.9, 0.2], [0.4, 0.7], [0.6, 0.1], [0.1, 0.8]])
    found = label_scores.multi_label(given, truth, np.array([0.5, 0.5]), seed=0)
    # label 0: 1 hit, 2 given, 2 true -> F1 1/2. label 1: 2 hits of 2, 2 true -> 1
    assert found["macro_f1"]["value"] == pytest.approx(0.75)
    # together 3 hits, 4 given, 4 true
    assert found["micro_f1"]["value"] == pytest.approx(6 / 8)
    assert found["all_labels_right"]["value"] == 0.5
    wanted = torch.nn.functional.binary_cross_entropy(
        torch.tensor(given), torch.tensor(truth, dtype=torch.float64)
    )
    assert found["log_loss"] == pytest.approx(float(wanted), abs=1e-5)
    looser = label_scores.multi_label(given, truth, np.array([0.3, 0.5]), seed=0)
    assert looser["per_label"][0] == {"precision": pytest.approx(2 / 3, abs=1e-6), "recall": 1.0,
                                      "f1": 0.8, "support": 2}  # fmt: skip


def test_calibration_by_hand() -> None:
    # bin [0.6, 0.7): 0.62, 0.68 -> 0.65 promised, 1 of 2 kept; bin [0.9, 1]: 1.0 -> kept
    found = label_scores.calibration(np.array([0.62, 1.0, 0.68]), np.array([True, True, False]))
    assert found["bins"] == [
        {"expected": 0.65, "observed": 0.5, "n": 2},
        {"expected": 1.0, "observed": 1.0, "n": 1},
    ]
    assert found["ece"] == pytest.approx(2 / 3 * 0.15)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 4.0])
def test_temperature_is_found_again(true_temperature) -> None:
    draw = np.random.default_rng(1)
    honest = draw.normal(size=(20_000, 3)) * 2
    cumulated = softmax(honest, axis=1).cumsum(1)
    truth = (draw.uniform(size=(20_000, 1)) > cumulated).sum(1)
    found = label_scores.fit_temperature(honest * true_temperature, truth, multi_label=False)
    assert found == pytest.approx(true_temperature, rel=0.05)

    several = (draw.uniform(size=honest.shape) < expit(honest)).astype(float)
    found = label_scores.fit_temperature(honest * true_temperature, several, multi_label=True)
    assert found == pytest.approx(true_temperature, rel=0.05)


def test_temperature_is_the_likeliest_and_never_promises_certainty() -> None:
    draw = np.random.default_rng(2)
    logits, truth = draw.normal(size=(50, 2)) * 3, draw.integers(0, 2, size=50)

    def unlikely(log_t: float) -> float:
        p = softmax(logits / math.exp(log_t), axis=1)[np.arange(50), truth]
        return float(-np.log(p).sum() - norm.logpdf(log_t, scale=0.5))

    best = minimize_scalar(unlikely, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8})
    found = label_scores.fit_temperature(logits, truth, multi_label=False)
    assert math.log(found) == pytest.approx(best.x, abs=1e-3)
    never_wrong = np.eye(2)[[0, 1] * 15] * 3
    found = label_scores.fit_temperature(never_wrong, np.array([0, 1] * 15), multi_label=False)
    assert 0.4 < found < 1


def test_thresholds_of_the_best_f1() -> None:
    draw = np.random.default_rng(3)
    p = draw.uniform(size=(300, 2)).round(2)  # ties
    truth = (draw.uniform(size=p.shape) < p**2).astype(np.float32)
    truth[:, 1] = 0
    truth[:5, 1] = 1  # too few to choose by
    first, second = label_scores.fit_thresholds(p, truth)
    assert second == 0.5

    def f1(cut: float) -> float:
        chosen = p[:, 0] >= cut
        return 2 * float((chosen * truth[:, 0]).sum()) / float(chosen.sum() + truth[:, 0].sum())

    assert f1(first) == pytest.approx(max(f1(cut) for cut in np.arange(0, 1.01, 0.005)))
