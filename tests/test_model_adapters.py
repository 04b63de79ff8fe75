"""Adapters: the layer against peft's own, files that peft reads, merging, switching, refusals."""

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from train_tiny import artefact, context, model_artefact, tiny_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from rung.errors import ArtefactError, ConfigError, ResourceError
from rung.model import fourbit, merge
from rung.model.adapter_config import check_adapter
from rung.model.adapters import (
    AdapterConfig,
    adapted_layers,
    adapter_off,
    add_adapter,
    attach_adapter,
    save_trained,
    trained_part,
    using,
)
from rung.model.attention import register, to_torch
from rung.model.forward import hidden_states, target_logps, weighted_nll
from rung.model.load import load_model, save_model
from rung.tokens.forest import document, group, pack
from rung.train.objectives import dpo, pretrain, reward, sft

CPU = torch.device("cpu")
LORA = AdapterConfig(adapter="lora", lora_r=4, lora_alpha=8)
KINDS = ("lora", "rslora", "dora")
IDS = torch.randint(0, 32, (1, 11), generator=torch.Generator().manual_seed(0))


def forest():
    tokens = np.random.default_rng(0).integers(0, 32, 20)
    return to_torch(pack([document(tokens[:9]), group(tokens[9:14], [tokens[14:17], tokens[17:]])]))


def adapted(kind="lora", *, dtype=torch.float32, moved=True, **options):
    model = tiny_model()
    config = AdapterConfig(adapter=kind, lora_r=4, lora_alpha=8, **options)
    add_adapter(model, config, dtype=dtype)
    if moved:
        move(model)
    return model


@torch.no_grad()
def move(model, *, seed=1):
    """Trained weights as training leaves them: none of them where it started."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trained_part(model).parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def plain_logits(model):
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        logits = model(input_ids=IDS).logits
        model.set_attn_implementation(register())
    return logits


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_trains_nothing_of_the_base(kind):
    base, model = tiny_model(), adapted(kind, moved=False)
    torch.testing.assert_close(plain_logits(model), plain_logits(base), atol=1e-6, rtol=0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    # 7 linear layers in 2 decoder layers, A and B each, and a magnitude of dora
    assert len(trained) == 2 * 7 * (3 if kind == "dora" else 2)
    part = trained_part(model)
    assert {id(p) for p in part.parameters()} == {
        id(p) for p in model.parameters() if p.requires_grad
    }
    assert trained_part(base) is base


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_forward_and_gradients_are_those_of_peft(kind, dropout, tmp_path):
    """peft's own layers on the same base, from our files: logits and every gradient."""
    from peft import PeftModel

    model = adapted(kind, lora_dropout=dropout)
    save_model(tiny_model(), tmp_path / "base")
    save_trained(model, tmp_path / "adapter", base="base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        peers = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
            tmp_path / "adapter",
            is_trainable=True,
        ).eval()
    ours = model.eval()
    torch.testing.assert_close(
        plain_logits(ours), peers(input_ids=IDS).logits, atol=1e-5, rtol=1e-5
    )
    if dropout:  # which masks are drawn is free; that the mean output stays is not
        return
    ours.set_attn_implementation("sdpa")
    for one in (ours, peers):
        one(input_ids=IDS, labels=IDS).loss.backward()
    expected = {
        name.removeprefix("base_model.model."): p.grad
        for name, p in peers.named_parameters()
        if p.grad is not None
    }
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    model = adapted(lora_dropout=0.5)
    layer = adapted_layers(model)[0]
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(layer.eval()(x), layer(x))
    torch.manual_seed(0)
    layer.train()
    drawn = torch.stack([layer(x).detach() for _ in range(4000)])
    assert drawn.std(0).max() > 0.01
    torch.testing.assert_close(drawn.mean(0), layer.eval()(x), atol=0.03, rtol=0)


def test_gradient_through_dropout_is_that_of_the_same_mask():
    """Finite differences in float64, with the mask held by the seed."""
    model = adapted(lora_dropout=0.5).double()
    layer = adapted_layers(model)[0].train()
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)

    def out(x, a, b):
        torch.manual_seed(3)
        layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
        return layer(x)

    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    start = [t.detach().clone() for t in (x, a, b)]
    torch.manual_seed(3)
    value = layer(x).square().sum()
    grads = torch.autograd.grad(value, [x, a, b])
    with torch.no_grad():
        for index, grad in enumerate(grads):
            step = torch.randn_like(grad)
            ends = []
            for sign in (1e-5, -1e-5):
                parts = [t.clone() for t in start]
                parts[index] += sign * step
                ends.append(float(out(*parts).square().sum()))
            slope = (ends[0] - ends[1]) / 2e-5
            assert slope == pytest.approx(float((grad * step).sum()), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_off_is_the_base_bit_by_bit(kind, dtype):
    """Under autocast too, where the frozen weights are kept rounded: it would round them itself."""
    base, model = tiny_model(), adapted(kind, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        plain = target_logps(base, forest())[0]
        with adapter_off(model):
            assert torch.equal(target_logps(model, forest())[0], plain)
        assert not torch.equal(target_logps(model, forest())[0], plain)


def test_one_input_is_kept_once_in_bf16():
    model = adapted(dtype=torch.bfloat16).train()
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        weighted_nll(model, forest())
    width = [t for t in kept if t.dtype == torch.bfloat16 and t.shape[-1] == 16 and t.ndim == 3]
    inputs = {t.data_ptr() for t in width}
    # of each decoder layer: what q, k and v read, what o reads, what the gate and the way up read
    assert len(width) == 2 * 6
    assert len(inputs) == 2 * 3


def test_the_head_of_a_frozen_table_makes_no_gradient_for_it():
    whole, model, batch = tiny_model(), adapted(moved=False), forest()
    for one in (whole, model):
        (weighted_nll(one, batch) + target_logps(one, batch)[0].sum()).backward()
    assert whole.get_input_embeddings().weight.grad is not None
    assert model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_merges_to_the_same_logits(kind, tmp_path):
    model = adapted(kind)
    save_model(tiny_model(), tmp_path / "base")
    for name in ("one", "two"):
        save_trained(model, tmp_path / name, base="base")
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    record = json.loads((tmp_path / "one/adapter_config.json").read_text())
    assert record["base_model_name_or_path"] == "base"
    loaded = load_model(tmp_path / "one")
    assert type(loaded) is type(tiny_model())
    assert not adapted_layers(loaded)
    assert all(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(plain_logits(loaded), plain_logits(model), atol=1e-5, rtol=1e-5)


def test_a_chain_of_adapters_is_merged_from_below(tmp_path):
    save_model(tiny_model(), tmp_path / "base")
    save_trained(adapted(), tmp_path / "first", base="base")
    second = load_model(tmp_path / "first")
    add_adapter(second, LORA, dtype=torch.float32, seed=5)
    move(second, seed=6)
    save_trained(second, tmp_path / "second", base="first")
    loaded = plain_logits(load_model(tmp_path / "second"))
    torch.testing.assert_close(loaded, plain_logits(second), atol=1e-5, rtol=1e-5)
    with adapter_off(second):
        first = plain_logits(load_model(tmp_path / "first"))
        torch.testing.assert_close(plain_logits(second), first, atol=1e-5, rtol=1e-5)
    assert (loaded - first).abs().max() > 0.01


def test_two_adapters_share_one_base(tmp_path):
    save_model(tiny_model(), tmp_path / "base")
    judge = adapted()
    save_trained(judge, tmp_path / "judge", base="base")
    shared = tiny_model()
    attach_adapter(shared, tmp_path / "judge", name="reward", dtype=torch.float32, bits=None)
    assert torch.equal(plain_logits(shared), plain_logits(tiny_model()))  # off unless asked for
    add_adapter(shared, LORA, dtype=torch.float32, seed=7)
    move(shared, seed=8)
    trained = [name for name, p in shared.named_parameters() if p.requires_grad]
    assert trained
    assert all(".default." in name for name in trained)
    with using(shared, "reward"):
        torch.testing.assert_close(plain_logits(shared), plain_logits(judge))
    own = plain_logits(shared)
    assert not torch.allclose(own, plain_logits(judge))
    save_trained(shared, tmp_path / "policy", base="base")
    alone = plain_logits(load_model(tmp_path / "policy"))
    torch.testing.assert_close(alone, own, atol=1e-5, rtol=1e-5)


def test_gpt2_whose_weights_lie_the_other_way_round(tmp_path):
    torch.manual_seed(0)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": 32}
    shape |= {"bos_token_id": 1, "eos_token_id": 1}
    drops = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**shape, **drops)).eval()
    save_model(model, tmp_path / "base")
    add_adapter(model, LORA, dtype=torch.float32)
    move(model)
    save_trained(model, tmp_path / "adapter", base="base")
    loaded = plain_logits(load_model(tmp_path / "adapter"))
    torch.testing.assert_close(loaded, plain_logits(model), atol=1e-5, rtol=1e-5)


def test_targets_are_checked_and_the_head_is_none_of_them():
    for wrong in ("lm_head", "embed_tokens", "q_prj"):
        with pytest.raises(ConfigError, match=wrong):
            adapted(lora_targets=(wrong,))
    names = {name.split(".")[-2] for name, p in tiny_model().named_parameters() if p.ndim == 2}
    assert {"q_proj", "down_proj"} < names
    model = adapted(lora_targets=("q_proj", "v_proj"))
    assert len(adapted_layers(model)) == 2 * 2


def test_a_missing_base_is_named(tmp_path):
    save_trained(adapted(), tmp_path / "adapter", base="ab12")
    with pytest.raises(ArtefactError, match="adapter on ab12"):
        load_model(tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    for wicked in ("../..", "/etc", "adapter"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "base_model_name_or_path": wicked}))
        with pytest.raises(ArtefactError, match="adapter on"):
            load_model(tmp_path / "adapter")


def test_an_adapter_that_does_not_fit_its_base_is_refused(tmp_path):
    save_trained(adapted(), tmp_path / "adapter", base="base")
    save_model(tiny_model(width=32), tmp_path / "base")
    with pytest.raises(ArtefactError, match="does not fit"):
        load_model(tmp_path / "adapter")


def test_options_that_would_do_nothing_are_refused():
    for config, wrong in (
        (sft.Config, {"lora_r": 8}),
        (pretrain.Config, {"adapter": "lora"}),
        (dpo.Config, {"adapter": "lora", "lora_dropout": 0.1}),
        (reward.Config, {"adapter": "lora", "backbone": "frozen"}),
        (sft.Config, {"adapter": "lorra"}),
    ):
        with pytest.raises(ValidationError):
            config.model_validate(wrong)


def test_defaults_differ_between_full_and_adapter():
    full, lora = sft.Config(), sft.Config(adapter="lora")
    assert (full.optimizer, lora.optimizer) == ("muon", "adamw")
    assert lora.lr == sft.Config.adapter_lr
    assert sft.Config(adapter="lora", lr=1e-3, optimizer="muon").lr == 1e-3
    assert dpo.Config(adapter="dora").lr == dpo.Config.adapter_lr


def test_peft_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=r"rung\[adapters\]"):
        check_adapter(LORA, CPU)
    check_adapter(AdapterConfig(), CPU)


def test_four_bits_that_cannot_run_are_a_sentence(monkeypatch):
    config = AdapterConfig(adapter="lora", base_bits=4)
    monkeypatch.setattr(fourbit.importlib.util, "find_spec", lambda n: None if "bits" in n else n)
    with pytest.raises(ResourceError, match="leave base_bits out"):
        check_adapter(config, CPU)

    def broken(weight):
        raise RuntimeError("no kernel for this processor\nstack")

    monkeypatch.setattr(fourbit.importlib.util, "find_spec", lambda n: n)
    monkeypatch.setattr(fourbit, "quantise", broken)
    with pytest.raises(ResourceError, match="no kernel for this processor; leave"):
        check_adapter(config, CPU)


def test_four_bit_base_is_small_and_merges_onto_what_it_was_trained_on(tmp_path):
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    base = tiny_model(width=64)
    save_model(base, tmp_path / "base")
    model = load_model(tmp_path / "base")
    config = AdapterConfig(adapter="lora", lora_r=4, base_bits=4)
    check_adapter(config, CPU)
    add_adapter(model, config, dtype=torch.float32)
    layer = adapted_layers(model)[0]
    assert layer.base_layer.codes.numel() * 2 == 64 * 64  # two weights a byte
    move(model)
    batch = forest()
    weighted_nll(model, batch).backward()
    assert all(p.grad is not None for p in trained_part(model).parameters())
    save_trained(model, tmp_path / "adapter", base="base")
    loaded = load_model(tmp_path / "adapter")
    torch.testing.assert_close(plain_logits(loaded), plain_logits(model), atol=1e-4, rtol=1e-4)
    with adapter_off(model):
        assert (plain_logits(model) - plain_logits(base)).abs().max() > 1e-3


@pytest.fixture
def adapter_artefact(tmp_path):
    base = model_artefact(tmp_path / "model-id")
    model = load_model(base.path)
    add_adapter(model, LORA, dtype=torch.float32)
    move(model)
    folder = tmp_path / "tuned"
    save_trained(model, folder, base="model-id")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base.path / name).read_bytes())
    return replace(artefact(folder, "model"), id="tuned"), model


def test_merge_reports_the_gap_and_writes_a_whole_model(adapter_artefact, tmp_path):
    tuned, model = adapter_artefact
    where = context(tmp_path / "merged", model=tuned)
    figures = merge.run(where, merge.Config())["figures"]
    assert figures["passed"]
    assert figures["largest_gap"] < 1e-4
    assert figures["same_greedy_token"] == 1.0
    assert any("pass" in line for line in where.progress.lines)
    whole = AutoModelForCausalLM.from_pretrained(where.out)
    torch.testing.assert_close(
        whole(input_ids=IDS).logits, plain_logits(model), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ArtefactError, match="whole model already"):
        merge.run(context(tmp_path / "x", model=replace(tuned, path=where.out)), merge.Config())


def test_merge_that_goes_wrong_fails(adapter_artefact, tmp_path, monkeypatch):
    tuned, _ = adapter_artefact
    save = merge.save_model

    def spoilt(model, folder: Path):
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[0] += 0.5
        save(model, folder)

    monkeypatch.setattr(merge, "save_model", spoilt)
    with pytest.raises(ArtefactError, match="a logit differs by"):
        merge.run(context(tmp_path / "merged", model=tuned), merge.Config())


def test_hidden_states_of_a_forest_are_those_of_the_merged_model(adapter_artefact):
    tuned, model = adapter_artefact
    with torch.no_grad():
        one, two = (hidden_states(m, forest()) for m in (model, load_model(tuned.path)))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


def test_only_a_warning_of_no_use_is_kept_back(caplog: pytest.LogCaptureFixture) -> None:
    """bitsandbytes says it at its import, which any adapter brings about where it is installed."""
    add_adapter(tiny_model(), AdapterConfig(adapter="lora"), dtype=torch.float32)
    caplog.clear()
    library = logging.getLogger("bitsandbytes.backends.cpu.ops")
    library.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "offline")
    library.warning("this processor gives wrong numbers")
    assert [r.getMessage() for r in caplog.records] == ["this processor gives wrong numbers"]
