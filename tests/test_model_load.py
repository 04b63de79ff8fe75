"""Model folders: a round trip keeps every bit, and what is unsafe or broken is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_model_build import Ids
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from rung.errors import ArtefactError
from rung.model import attention
from rung.model.build import build_model
from rung.model.load import context_length, load_model, save_model, stop_ids
from rung.model.shape import ModelConfig, resolve


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build_model(resolve(ModelConfig(size="1m", layers=2)), Ids(), seed=0)


@pytest.fixture
def folder(llama: PreTrainedModel, tmp_path: Path) -> Path:
    save_model(llama, tmp_path / "model")
    return tmp_path / "model"


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def other_families() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    qwen = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=48)
    return [Qwen3ForCausalLM(qwen), GPT2LMHeadModel(gpt2)]


def test_saving_twice_gives_the_same_bytes(llama: PreTrainedModel, folder: Path) -> None:
    files = digests(folder)
    assert set(files) == {"config.json", "generation_config.json", "model.safetensors"}
    save_model(llama, folder.parent / "again")
    assert digests(folder.parent / "again") == files
    save_model(load_model(folder), folder.parent / "loaded")
    assert digests(folder.parent / "loaded") == files
    assert str(folder.parent) not in (folder.parent / "loaded/config.json").read_text()


def test_a_round_trip_keeps_every_bit(llama: PreTrainedModel, folder: Path) -> None:
    loaded = load_model(folder)
    assert not loaded.training
    assert loaded.config._attn_implementation == attention.NAME
    weights, before = loaded.state_dict(), llama.state_dict()
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert (stop_ids(loaded), context_length(loaded)) == ((2, 0), 512)


@pytest.mark.parametrize("index", [0, 1])
def test_other_families_round_trip(index: int, tmp_path: Path) -> None:
    model = other_families()[index].eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    ids = torch.arange(10)[None]
    loaded.set_attn_implementation("sdpa")
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_bf16_is_saved_as_asked_and_the_model_stays(llama: PreTrainedModel, tmp_path: Path) -> None:
    save_model(llama, tmp_path, dtype=torch.bfloat16)
    saved = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert llama.dtype == torch.float32
    assert load_model(tmp_path).dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_remote_code_is_refused(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(ArtefactError, match="auto_map"):
        load_model(folder)


def test_pickle_is_refused_unread(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtefactError, match="no weights to load"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(ArtefactError, match=r"pickle \(pytorch_model.bin\)"):
        load_model(folder)


def test_an_adapter_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ArtefactError, match="adapter"):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_a_config_is_no_model(folder: Path, content: str | None) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ArtefactError, match=r"config\.json"):
        load_model(folder)


def test_missing_weights_are_not_drawn_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=64)
    with pytest.raises(ArtefactError):
        load_model(folder)


def test_damaged_weights_and_unknown_architectures_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match="cannot load"):
        load_model(folder)
    weights.write_bytes(whole)
    edit_config(folder, model_type="no_such_model")
    with pytest.raises(ArtefactError, match="cannot load"):
        load_model(folder)
