"""The benchmarks' own arithmetic: order of rounds, ratios, the clock, equal data for all sides."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cells as cells_of  # noqa: E402
import compare  # noqa: E402
import stopwatch  # noqa: E402
import workload  # noqa: E402


def result(rate, *, loss=9.0, peak=1.0):
    return {"rate": rate, "peak_rss_gb": peak, "first_loss": loss}


def test_rounds_are_interleaved():
    chosen, _ = cells_of.pick_cells("pretrain", "", bf16=True)
    order = []

    def run(cell):
        order.append(cell.name)
        return result(1.0)

    results = compare.interleave(chosen, 2, run)
    names = ["rung", "hf_trainer_bf16", "hf_trainer_default", "litgpt"]
    assert order == names * 2
    assert [len(r) for r in results.values()] == [2] * 4


def test_ratio_is_the_median_of_ratios_within_a_round():
    # The machine is half as fast in round 2: the ratio of that round is still 30 / 10 = 3.
    ours = [result(60.0), result(30.0), result(80.0)]
    theirs = [result(20.0), result(10.0), result(20.0)]  # ratios 3, 3, 4
    summary = compare.summarise({"rung": ours, "peer": theirs})
    assert summary["ratio"] == {"peer": 3.0}
    assert summary["ratio_min"] == {"peer": 3.0}
    assert summary["ratio_max"] == {"peer": 4.0}
    assert summary["rate"]["rung"] == {"min": 30.0, "median": 60.0, "max": 80.0}


def test_unequal_work_is_refused():
    compare.check_equal_work("sft", {"rung": 9.06, "trl": 9.05, "other": None})
    with pytest.raises(SystemExit, match="do not do the same work"):
        compare.check_equal_work("sft", {"rung": 9.06, "trl": 8.4})
    compare.check_equal_work("grpo", {"rung": 0.1, "trl": -0.1})


def test_cells_without_bf16():
    chosen, left_out = cells_of.pick_cells("pretrain", "", bf16=False)
    assert "hf_trainer_bf16" in left_out
    assert [c.name for c in chosen] == ["rung", "hf_trainer_default", "litgpt"]
    for cell in chosen:
        command = cell.command("python", Path("work"), bf16=False)
        assert "--bf16" not in command
        assert "bf16" not in command
    ours = chosen[0].command("python", Path("work"), bf16=True)
    assert ours[0] == "python"
    assert ours[2:] == ["pretrain", "work", "--precision", "bf16"]


def test_default_trainer_stays_in_its_default_precision():
    cell = next(c for c in cells_of.CELLS["pretrain"] if c.name == "hf_trainer_default")
    assert "--bf16" not in cell.command("python", Path("work"), bf16=True)


def test_ours_is_always_among_the_cells():
    chosen, _ = cells_of.pick_cells("pretrain", "litgpt,rung_muon", bf16=True)
    assert [c.name for c in chosen] == ["rung", "litgpt", "rung_muon"]
    with pytest.raises(SystemExit, match="no cell 'lightning'"):
        cells_of.pick_cells("pretrain", "lightning", bf16=True)


def test_clock_leaves_out_the_warmup():
    # Steps end at 5, 10, 12, 15; two of warm-up: (4 + 6) units in 15 - 10 seconds is 2 a second.
    times = iter([5.0, 10.0, 12.0, 15.0])
    watch = stopwatch.Stopwatch(warmup=2, now=lambda: next(times))
    for units in (100.0, 50.0, 4.0, 6.0):
        watch.add_loss(units / 2)  # two microbatches of a step
        watch.add_loss(1.0)
        watch.count(units)
        watch.end_step()
    found = watch.result()
    assert found["rate"] == 2.0
    assert found["steps"] == 2
    assert found["first_loss"] == 51.0  # 100 / 2 + 1: the later steps' losses are not added


def test_clock_without_a_measured_step():
    watch = stopwatch.Stopwatch(warmup=2)
    watch.end_step()
    watch.end_step()
    with pytest.raises(SystemExit, match="none to measure"):
        watch.result()


def test_peak_memory_is_this_process():
    # 200 MB touched must show; a peak in KiB read as bytes would be a thousandth of it.
    held = bytearray(b"x" * 200_000_000)
    assert 0.2 < stopwatch.peak_rss_gb() < 1000
    assert len(held) == 200_000_000


@pytest.mark.parametrize("kind", ["pretrain", "sft", "dpo", "grpo"])
def test_workload_repeats_and_has_the_asked_steps(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(workload, "build_model", lambda *args, **kwargs: None)
    plan = workload.Plan(samples=4, warmup=1, steps=2)
    for name in ("a", "b"):
        workload.build_workload(tmp_path / name, kind, workload.SHAPES["4m"], plan)
    data = "rows.npy" if kind == "pretrain" else "samples.jsonl"
    assert (tmp_path / "a" / data).read_bytes() == (tmp_path / "b" / data).read_bytes()
    assert workload.read_plan(tmp_path / "a") == plan
    assert workload.read_shape(tmp_path / "a") == workload.SHAPES["4m"]
    if kind != "pretrain":
        assert len(workload.read_samples(tmp_path / "a")) == 12


def test_conversations_have_the_stated_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr(workload, "build_model", lambda *args, **kwargs: None)
    plan = workload.Plan(samples=100, warmup=1, steps=19)
    workload.build_workload(tmp_path, "sft", workload.SHAPES["10m"], plan)
    rows = workload.read_samples(tmp_path)
    lengths = [len(row["prompt"]) + len(row["answer"]) for row in rows]
    # 2,000 draws of a lognormal of mean 150, sigma 0.8: standard error 150 x 0.95 / 45 = 3.2
    assert 140 < sum(lengths) / len(lengths) < 160
    assert min(lengths) >= 16
    assert max(lengths) <= 1024
    assert all(row["answer"][-1] == workload.END for row in rows)
    assert all(workload.END not in row["prompt"] for row in rows)


def test_text_of_a_token_comes_back_as_its_id(tmp_path):
    shape = workload.Shape(width=64, layers=1, inner=64, vocab=50)
    workload.build_model(tmp_path / "model", shape, seed=0)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = [3, 49, 17, workload.END]
    assert tokenizer(workload.words(ids))["input_ids"] == ids
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    # tied: 50 x 64 once, 4 x 64^2 + 3 x 64 x 64 a layer, 3 norms of 64 that no token multiplies
    assert shape.num_matmul_weights == 50 * 64 + 7 * 64 * 64
    assert sum(p.numel() for p in model.parameters()) == shape.num_matmul_weights + 3 * 64


def test_gemm_share_by_hand():
    shape = workload.Shape(width=64, layers=1, inner=64, vocab=50)
    # 6 x (3,200 + 28,672) + 6 x 1 x 64 x 512 = 387,840 FLOP a token; x 100 tokens/s
    runs = [{"rate": 100.0, "gemm_peak_flops": 3.8784e8}, {"rate": 50.0, "gemm_peak_flops": 1e8}]
    found = compare.gemm_share(runs, shape)
    assert found["share_of_gemm_peak"] == {"min": 0.05, "median": 0.075, "max": 0.1}


def test_summary_is_json_with_the_promised_keys():
    summary = compare.summarise({"rung": [result(2.0)], "trl": [result(1.0)]})
    again = json.loads(json.dumps(summary))
    assert again["ratio"]["trl"] == 2.0
    assert {"ratio_min", "ratio_max", "rate"} <= set(again)
