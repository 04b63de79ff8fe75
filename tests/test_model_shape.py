"""The dial, the budget and the memory that follow from it."""

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rung.config import parse_config
from rung.errors import ConfigError, ResourceError
from rung.model.budget import BudgetConfig, resolve_budget
from rung.model.memory import (
    available_memory,
    check_memory,
    check_tuning_memory,
    largest_size,
    memory_estimate,
)
from rung.model.shape import SIZES, ModelConfig, resolve

GB = 10**9


def test_4m_counted_by_hand() -> None:
    shape = resolve(ModelConfig(size="4m"))
    attention = 4 * 256 * 256  # q, k, v, o
    feed_forward = 3 * 256 * 704  # gate, up, down
    norms = 2 * 256
    assert shape.num_body_parameters == 4 * (attention + feed_forward + norms) + 256
    assert shape.num_parameters(4096) == shape.num_body_parameters + 4096 * 256 == 4_262_144


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_parameters_it_is_named_after(size: str) -> None:
    vocab = 4096 if size in ("1m", "4m", "10m") else 8192 if size == "30m" else 50304
    named = float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]
    # "1b" to "7b" round as the field does
    assert resolve(ModelConfig(size=size)).num_parameters(vocab) == pytest.approx(named, rel=0.4)
    if size[-1] == "m" and size != "1m":
        assert resolve(ModelConfig(size=size)).num_parameters(vocab) == pytest.approx(
            named, rel=0.07
        )


def test_overrides_win_and_say_so() -> None:
    shape = resolve(ModelConfig(size="4m", layers=6, context=1024))
    assert (shape.width, shape.layers, shape.context) == (256, 6, 1024)
    assert shape.origins["width"] == "size 4m"
    assert shape.origins["layers"] == shape.origins["context"] == "override"
    assert shape.origins["tied"] == shape.origins["rope_theta"] == "default"
    assert ("layers", "6", "override") in shape.table()


def test_what_follows_from_an_override_follows() -> None:
    shape = resolve(ModelConfig(width=320))
    assert (shape.heads, shape.kv_heads, shape.head_width, shape.ffn) == (5, 5, 64, 896)
    assert shape.origins["heads"] == shape.origins["ffn"] == "width"
    assert resolve(ModelConfig(heads=8)).kv_heads == 8
    assert resolve(ModelConfig(heads=8, kv_heads=2)).kv_heads == 2


def test_depth_is_the_other_end_of_the_dial() -> None:
    shape = resolve(ModelConfig(depth=6))
    assert (shape.width, shape.layers, shape.heads) == (384, 6, 6)
    assert shape.origins["width"] == "depth 6"
    with pytest.raises(ConfigError, match="keep one"):
        resolve(ModelConfig(size="4m", depth=6))


@pytest.mark.parametrize(
    ("config", "way_out"),
    [
        (ModelConfig(size="4mb"), "did you mean '4m'"),
        (ModelConfig(heads=7), "use heads 2, 4, 8"),
        (ModelConfig(kv_heads=3), "use kv_heads 1, 2, 4"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(config: ModelConfig, way_out: str) -> None:
    with pytest.raises(ConfigError, match=way_out):
        resolve(config)


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        parse_config(ModelConfig, {"layer": 3})


@given(st.integers(1, 40))
def test_every_depth_resolves(depth: int) -> None:
    shape = resolve(ModelConfig(depth=depth))
    assert shape.head_width == 64
    assert shape.ffn % 64 == 0
    assert shape.ffn >= 8 * shape.width / 3


def test_flops_are_six_per_matrix_parameter_and_attention() -> None:
    shape = resolve(ModelConfig(size="4m"))
    matrices = shape.num_parameters(4096) - 9 * 256  # without the norms
    # scores and mix: 2 x 2 x width per key, half the keys are seen on average, x 3 with backward
    attention = 4 * 3 * 2 * 2 * 256 * (512 / 2)
    assert shape.flops_per_token(4096, 512) == 6 * matrices + attention


def test_budget_follows_from_the_size_and_can_be_overridden() -> None:
    shape = resolve(ModelConfig(size="4m"))
    budget = resolve_budget(BudgetConfig(), shape, vocab=4096)
    assert budget.tokens == 20 * 4_262_144
    assert budget.tokens_per_step == 8192
    assert budget.num_steps == -(-budget.tokens // 8192)
    assert budget.learning_rate_adamw == pytest.approx(2.7e-3 * 768 / 256)
    given_ = resolve_budget(BudgetConfig(tokens=10**6, learning_rate_muon=0.01), shape, vocab=4096)
    assert (given_.tokens, given_.learning_rate_muon) == (10**6, 0.01)
    assert given_.origins["tokens"] == "override"
    assert given_.origins["tokens_per_step"] != "override"
    ratio = resolve_budget(BudgetConfig(tokens_per_parameter=1.5), shape, vocab=4096)
    assert ratio.tokens == 1.5 * 4_262_144


def test_larger_models_take_larger_steps_and_smaller_rates() -> None:
    budgets = [
        resolve_budget(BudgetConfig(), resolve(ModelConfig(size=size)), vocab=32768)
        for size in SIZES
    ]
    steps = [b.tokens_per_step for b in budgets]
    rates = [b.learning_rate_adamw for b in budgets]
    assert steps == sorted(steps)
    assert all(s & (s - 1) == 0 for s in steps)
    assert rates == sorted(rates, reverse=True)


def test_memory_grows_with_everything_that_costs_it() -> None:
    shape = resolve(ModelConfig(size="30m"))
    base = memory_estimate(shape, 8192, tokens_per_microbatch=4096)
    assert memory_estimate(shape, 8192, tokens_per_microbatch=8192) > base
    assert memory_estimate(shape, 32768, tokens_per_microbatch=4096) > base
    adamw = memory_estimate(shape, 8192, tokens_per_microbatch=4096, optimizer="adamw")
    assert adamw - base == 4 * shape.num_body_parameters  # the second moment of the matrices


def test_no_memory_names_a_size_that_fits() -> None:
    shape = resolve(ModelConfig(size="1b"))
    with pytest.raises(ResourceError, match=r"needs about .* GB, 4.0 GB are available") as caught:
        check_memory(shape, 4096, tokens_per_microbatch=8192, available=4 * GB)
    fitting = largest_size(4096, available=4 * GB, tokens_per_microbatch=8192)
    assert fitting is not None
    assert f"size {fitting}" in str(caught.value)
    check_memory(
        resolve(ModelConfig(size=fitting)), 4096, tokens_per_microbatch=8192, available=4 * GB
    )


def test_a_smaller_microbatch_is_offered_where_it_helps() -> None:
    shape = resolve(ModelConfig(size="30m"))
    full = memory_estimate(shape, 8192, tokens_per_microbatch=16384)
    with pytest.raises(ResourceError, match=r"microbatch_tokens: 8192 \(now 16384\)"):
        check_memory(shape, 8192, tokens_per_microbatch=16384, available=full - 1)
    with pytest.raises(ResourceError, match="free some memory"):
        check_memory(shape, 8192, tokens_per_microbatch=512, available=10**6)


def test_fine_tuning_that_cannot_fit_names_what_would() -> None:
    shape = resolve(ModelConfig(size="1b"))
    tune = partial(check_tuning_memory, shape, 32000, optimizer="adamw", base_bits=16)
    whole = partial(tune, tokens_per_microbatch=4096, lora_r=0)
    whole(available=64 * GB)
    with pytest.raises(ResourceError, match=r"available; use adapter: lora$"):
        whole(available=8 * GB)
    with pytest.raises(ResourceError, match=r"use microbatch_tokens: 1024 \(now 4096\)"):
        tune(tokens_per_microbatch=4096, lora_r=16, available=6 * GB)
    with pytest.raises(ResourceError, match="adapter: lora with base_bits: 4"):
        whole(available=int(3.2 * GB))
    with pytest.raises(ResourceError, match="a smaller model"):
        whole(available=GB)


@settings(max_examples=25)
@given(st.integers(GB // 2, 200 * GB))
def test_largest_size_fits_and_the_next_does_not(available: int) -> None:
    sizes = list(SIZES)
    found = largest_size(4096, available=available, tokens_per_microbatch=4096)
    at = sizes.index(found) if found else -1
    needs = [
        memory_estimate(resolve(ModelConfig(size=s)), 4096, tokens_per_microbatch=4096)
        for s in sizes
    ]
    assert all(need <= available for need in needs[: at + 1])
    assert at + 1 == len(sizes) or needs[at + 1] > available


def test_available_memory_is_what_is_free_or_what_the_group_leaves(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("700\n")
    (group / "memory.max").write_text("max\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("1000\n")
    assert available_memory(tmp_path) == 300
    (group / "memory.stat").write_text("file 90\ninactive_file 50\n")
    assert available_memory(tmp_path) == 350
