"""Rates and estimates: a first run is planned with figures, from the sizes handed down."""

import subprocess
import sys
from pathlib import Path

import pytest

from rung import rates
from rung.model.memory import memory_estimate
from rung.model.shape import ModelConfig, resolve
from rung.plan import make_plan
from rung.recipe import load_recipe
from rung.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
PAGE = """\
stages:
  text: {stage: curate, source: {folder: FOLDER}}
  tokens: {stage: tokenizer, corpora: [text], vocab_size: 1000}
  base:
    stage: pretrain
    corpus: text
    tokenizer: tokens
    model: {size: 1m}
    tokens: 1_000_000
    tokens_per_step: 4096
  facts: {stage: instruct, corpora: [text], train_rows: 1000, prompts: 100}
  chat: {stage: sft, model: base, dataset: facts, epochs: 3}
  liked: {stage: collect, model: chat, dataset: facts, num_prompts: 500, answers: 2}
  judge: {stage: reward, model: chat, feedback: liked, epochs: 1, heldout_fraction: 0.5}
  aligned: {stage: grpo, model: chat, reward: judge, dataset: facts}
  eval: {stage: evaluate, model: aligned, corpora: [text], dataset: facts}
"""
PEAK = 0.4e12


@pytest.fixture
def peak(monkeypatch):
    """A machine of 0.4 TFLOP/s; set [0] to another value, None for a GPU."""
    peak = [PEAK]
    monkeypatch.setattr(rates, "peak_flops", lambda precision, device: peak[0])
    return peak


@pytest.fixture
def recipe(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "a.txt").write_text("word " * 200_000)
    page = tmp_path / "first.yaml"
    page.write_text(PAGE.replace("FOLDER", str(folder)))
    return load_recipe(page)


def plan(recipe, tmp_path):
    return {row.entry: row for row in make_plan(recipe, Store(tmp_path / "empty"))}


def test_every_figure_of_a_first_run_is_known(recipe, tmp_path, peak):
    rows = plan(recipe, tmp_path)
    assert list(rows) == list(recipe.entries)
    for row in rows.values():
        assert (row.status, row.basis) == ("build", "rates")
        assert row.seconds > 0
        assert row.memory_gb > 0
        assert row.disk_gb > 0


def test_training_by_hand(recipe, tmp_path, peak):
    shape = resolve(ModelConfig(size="1m"))
    rows = plan(recipe, tmp_path)
    # a megabyte of text: half of it on disk
    assert rows["text"].disk_gb == pytest.approx(0.5e-3)
    work = 1_000_000 * shape.flops_per_token(1000, shape.context)
    assert rows["base"].seconds == pytest.approx(4 + work / (0.25 * PEAK))
    needed = memory_estimate(shape, 1000, tokens_per_microbatch=4096)
    assert rows["base"].memory_gb == pytest.approx(2.2 + needed / 1e9)
    assert rows["base"].disk_gb == pytest.approx((4 * shape.num_parameters(1000) + 1e5) / 1e9)
    # 1,000 rows of 91 tokens, three times
    work = 3 * 91_000 * shape.flops_per_token(1000, 91)
    assert rows["chat"].seconds == pytest.approx(4 + work / (0.20 * PEAK))
    # 100 prompts are made, fewer than the 500 asked for: 100 x 2 answers of 23 tokens at 3,000/s
    assert rows["liked"].seconds == pytest.approx(4 + 4600 / 3000)
    # half of 100 rankings of 45 + 2 x 23 tokens: read, trained once, read again
    work = (1 + 2 / 3) * 50 * 91 * shape.flops_per_token(1000, 91)
    assert rows["judge"].seconds == pytest.approx(4 + work / (0.12 * PEAK))


def test_a_frozen_reward_model_only_reads(tmp_path, peak):
    page = ROOT / "recipes/quickstart.yaml"
    found = {
        how: plan(load_recipe(page, overrides=[f"reward.backbone={how}"]), tmp_path)["reward"]
        for how in ("frozen", "trained")
    }
    epochs = load_recipe(page).entries["reward"].values["epochs"]
    ratio = (found["trained"].seconds - 4) / (found["frozen"].seconds - 4)
    assert ratio == pytest.approx(3 * epochs + 2)


def test_a_slower_machine_trains_longer_and_reads_as_fast(recipe, tmp_path, peak):
    fast = plan(recipe, tmp_path)
    peak[0] = PEAK / 2
    slow = plan(recipe, tmp_path)
    assert slow["base"].seconds - 4 == pytest.approx(2 * (fast["base"].seconds - 4))
    assert slow["text"].seconds == fast["text"].seconds


def test_no_time_is_invented_for_a_gpu(recipe, tmp_path, peak):
    peak[0] = None
    rows = plan(recipe, tmp_path)
    assert rows["base"].seconds is None
    assert rows["aligned"].seconds is None
    assert rows["base"].memory_gb > 2.2
    assert rows["text"].seconds > 0


def test_a_device_that_is_not_here_has_no_peak(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rates.peak_flops.cache_clear()
    assert rates.peak_flops("auto", "cuda") is None
    assert rates.peak_flops("fp32", "cpu") > 1e8
    assert rates.peak_flops("fp32", "cpu") == rates.peak_flops("fp32", "cpu")
    rates.peak_flops.cache_clear()


def test_the_quickstart_is_estimated_as_it_was_measured(tmp_path, peak):
    """About 15 minutes and 3.4 GB on two cores of 0.4 TFLOP/s; a factor of two is what is told."""
    rows = plan(load_recipe(ROOT / "recipes/quickstart.yaml"), tmp_path)
    assert 15 / 2 < sum(row.seconds for row in rows.values()) / 60 < 15 * 2
    assert 3.4 / 2 < max(row.memory_gb for row in rows.values()) < 3.4 * 2


def test_files_of_ones_own_count_by_their_size(tmp_path, peak):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi", "completion": "Hello!"}\n' * 1000)  # 41 bytes a line
    found = rates.estimate("dataset", _Files((str(rows),)), {})
    assert found["tokens"] == 41_000 / 4


class _Files:
    def __init__(self, files):
        self.files = files


def test_what_hangs_on_the_unknown_is_unknown(peak):
    assert rates.estimate("sft", None, {"model": [{}], "dataset": [{"tokens": 5}]}) == {}
    assert rates.estimate("no-stage", None, {}) == {}


def test_mistakes_of_the_page_are_told_before_torch_is_loaded(tmp_path):
    (tmp_path / "bad.yaml").write_text("stages:\n  a: {stage: sft, modle: x}\n")
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom rung.cli import app\n"
        "found = CliRunner().invoke(app, ['run', 'bad.yaml', '--dry-run'])\n"
        "assert 'needs `model`' in found.output, found.output\n"
        "assert found.exit_code == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_an_adapter_saves_memory_products_and_disk(recipe, tmp_path, peak):
    page = tmp_path / "adapted.yaml"
    page.write_text(
        (tmp_path / "first.yaml")
        .read_text()
        .replace("{stage: sft, model: base,", "{stage: sft, adapter: lora, model: base,")
    )
    full, lora = (plan(one, tmp_path)["chat"] for one in (recipe, load_recipe(page)))
    assert lora.seconds - 4 == pytest.approx((full.seconds - 4) * 2 / 3)
    assert lora.memory_gb < full.memory_gb
    assert lora.disk_gb < full.disk_gb / 2
