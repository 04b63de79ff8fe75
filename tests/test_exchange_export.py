"""Out of Rung and back: what other programs read is the same model, or the check fails."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from exchange_models import FAMILIES, make_folder, plain_logits, tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_tokens_template import CHATML, write
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from rung.cli import app
from rung.exchange.gguf_header import read_gguf_header
from rung.exchange.gguf_read import llama3_factors, read_gguf_model, read_gguf_vocabulary
from rung.exchange.gguf_vocabulary import can_spell, gguf_vocabulary
from rung.exchange.llama2c import pair, unpair
from rung.model.load import load_model
from rung.store.store import Store
from rung.tokens.chat import render
from rung.tokens.tokenizer import load_tokenizer

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the extra rung[gguf]"
)
IDS = list(range(5, 45))
GGUF_FAMILIES = ("llama", "llama3-scaling", "mistral", "qwen2", "qwen3")
ROWS = [
    {"messages": [{"role": "user", "content": f"What is {i}?"},
                  {"role": "assistant", "content": f"It is {i + 1}."}]}
    for i in range(8)
]  # fmt: skip


@pytest.fixture
def call(tmp_path, monkeypatch):
    """The command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNG_STORE", raising=False)

    def call(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        unexpected = result.exception and not isinstance(result.exception, SystemExit)
        assert not unexpected, result.exception
        assert result.exit_code == code, result.output
        return result.output

    return call


def folder_of(name):
    return Store().open(name).path


def train(call, model, name, *options):
    """One pass of a few rows over `model`."""
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    call("dataset", "--set", "files=[rows.jsonl]", "--set", "heldout_fraction=0", "--name", "rows")
    sets = ["epochs=1", "precision=fp32", "compile=never", *options]
    words = [word for option in sets for word in ("--set", option)]
    call("sft", "--model", model, "--dataset", "rows", "--name", name, *words)


def test_pairs_of_rows_are_turned_there_and_back():
    # one head of four rows: halves (a0 a1 | b0 b1) stand as pairs a0 b0 a1 b1 in Llama's layout
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert pair(rows, 1)[:, 0].tolist() == [0, 2, 1, 3]
    assert torch.equal(unpair(pair(rows, 1), 1), rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_import_train_generate_export_import(family, call):
    source = make_folder(Path("source"), family)
    call("import", source, "--as", "start")
    train(call, "start", "tuned")
    assert not torch.equal(*(_first_weights(name) for name in ("start", "tuned")))
    call("generate", "tuned", "--prompt", "hello", "--max-new-tokens", "3")
    said = call("export", "tuned", "--to", "hf", "--out", "out", "--verify")
    assert "verify: transformers: same ids, largest logit gap" in said
    assert "96 of 96 greedy tokens the same: pass" in said
    call("import", "out", "--as", "again")
    torch.testing.assert_close(
        plain_logits(folder_of("again"), IDS), plain_logits(folder_of("tuned"), IDS),
        atol=1e-5, rtol=0,
    )  # fmt: skip
    one, other = (Store().open(name).files for name in ("tuned", "again"))
    for file in ("model.safetensors", "tokenizer.json"):
        assert one[file] == other[file], file


def _first_weights(name):
    return next(iter(load_model(folder_of(name)).parameters())).detach()


@needs_gguf
@pytest.mark.parametrize("family", GGUF_FAMILIES)
def test_gguf_in_float32_is_the_same_model(family, call):
    call("import", make_folder(Path("source"), family), "--as", "m")
    said = call("export", "m", "--to", "gguf", "--dtype", "f32", "--out", "out", "--verify")
    assert "verify: transformers' GGUF reader: same ids" in said
    assert "96 of 96 greedy tokens the same: pass" in said
    call("import", "out/m-f32.gguf", "--as", "again")
    torch.testing.assert_close(
        plain_logits(folder_of("again"), IDS), plain_logits(folder_of("m"), IDS),
        atol=1e-5, rtol=0,
    )  # fmt: skip
    messages = [{"role": "user", "content": "Hi, 12 of you?"}]
    one, other = (
        render(load_tokenizer(folder_of(name)), messages, generation_prompt=True).ids.tolist()
        for name in ("m", "again")
    )
    assert one == other


@needs_gguf
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_rounded_gguf_stays_near(dtype, call):
    call("import", make_folder(Path("source")), "--as", "m")
    said = call("export", "m", "--to", "gguf", "--dtype", dtype, "--out", "out", "--verify")
    assert "pass" in said
    header = read_gguf_header(Path(f"out/m-{dtype}.gguf"))
    kinds = {t.kind for t in header.tensors.values() if len(t.shape) > 1}
    assert kinds == {{"f16": 1, "bf16": 30, "q8_0": 8}[dtype]}
    assert header.tensors["output_norm.weight"].kind == 0


@needs_gguf
def test_gguf_says_how_text_is_cut_and_whether_a_chat_begins_with_bos(call):
    source = make_folder(Path("source"))
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tiny_tokenizer(special).save_pretrained(source)
    call("import", source, "--as", "m")
    call("export", "m", "--to", "gguf", "--out", "out")
    metadata = read_gguf_header(Path("out/m-f16.gguf")).metadata
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.eos_token_id"] == 2
    assert metadata["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert "<|im_start|>" in metadata["tokenizer.chat_template"]


@needs_gguf
def test_gguf_refuses_what_llama_cpp_would_read_otherwise(call):
    call("import", make_folder(Path("gpt2"), "gpt2"))
    said = call("export", "gpt2", "--to", "gguf", "--out", "out", code=2)
    assert "no GGUF of a gpt2: Rung writes llama, mistral, qwen2, qwen3" in said
    source = make_folder(Path("other"))
    path = source / "tokenizer.json"
    content = json.loads(path.read_text())
    content["pre_tokenizer"]["use_regex"] = False
    path.write_text(json.dumps(content))
    call("import", source)
    said = call("export", "other", "--to", "gguf", "--out", "out", code=2)
    assert "llama.cpp has no name for how this tokenizer cuts text" in said
    assert not Path("out").exists()
    assert not Path("out.part").exists()


@needs_gguf
def test_a_gguf_cut_short_or_with_an_unknown_scaling_is_refused(call):
    call("import", make_folder(Path("source"), "llama3-scaling"), "--as", "m")
    call("export", "m", "--to", "gguf", "--out", "out")
    whole = Path("out/m-f16.gguf").read_bytes()
    Path("short.gguf").write_bytes(whole[:-100])
    assert "cut short; download it again" in call("import", "short.gguf", code=2)
    # factors of no published model: the list of eight that wavelengths are divided by
    settings = {"rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    factors = llama3_factors(settings, 8).tobytes()
    at = whole.index(factors)
    Path("odd.gguf").write_bytes(whole[:at] + (b"\0\0\0\x41" * 4) + whole[at + 16 :])
    assert "a list that is none of Llama 3's" in call("import", "odd.gguf", code=2)


def test_llama3_factors_by_hand():
    # waves of 2 pi theta^(i/4): 6.3, 63, 628, 6283 for theta 10^4 over 8 channels. With context 640
    # and bounds 1 and 4 the short ones (< 640 / 4 = 160) stay, the long one (> 640) is divided by
    # 8, and 628 has (640 / 628.3 - 1) / 3 = 0.0062 of a passage.
    settings = {"rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 640}  # fmt: skip
    factors = llama3_factors(settings, 8).tolist()
    assert factors[:2] == [1.0, 1.0]
    assert factors[3] == 8.0
    assert factors[2] == pytest.approx(1 / ((1 - 0.0062) / 8 + 0.0062), rel=1e-3)


# verify


def test_verify_fails_when_a_weight_or_a_template_changed(call):
    from rung.exchange.export import Export
    from rung.exchange.verify import verify_export

    call("import", make_folder(Path("source")), "--as", "m")
    call("export", "m", "--out", "out")
    done, start = Export(Path("out"), "hf", ""), folder_of("m")
    assert all(check.passed for check in verify_export(start, done, say=print))
    config = Path("out/tokenizer_config.json")
    right = config.read_text()
    config.write_text(right.replace("### User:", "### Human:"))
    check = verify_export(start, done, say=print)[0]
    assert not check.passed
    assert not check.same_ids
    config.write_text(right)
    weights = load_file("out/model.safetensors")
    weights["model.norm.weight"] += 0.01
    save_file(weights, "out/model.safetensors", metadata={"format": "pt"})
    check = verify_export(start, done, say=print)[0]
    assert check.same_ids
    assert not check.passed


def test_trained_ids_are_served_ids_with_one_begin_token(call):
    """A tokenizer that adds bos, and a template that writes it: other programs get it once."""
    source = make_folder(Path("source"))
    tokenizer = tiny_tokenizer(("</s>", "<s>"))
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.bos_token = "<s>"
    tokenizer.save_pretrained(source)
    call("import", source, "--as", "m")
    assert "same ids" in call("export", "m", "--out", "out", "--verify")
    messages = [{"role": "user", "content": "Hi"}]
    served = AutoTokenizer.from_pretrained("out").apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert served.count(1) == 1
    trained = render(load_tokenizer(folder_of("m")), messages, generation_prompt=True)
    assert served == trained.ids.tolist()


# adapters


def test_an_adapter_is_exported_for_peft_and_merged_for_others(call):
    pytest.importorskip("peft")
    call("import", make_folder(Path("source")), "--as", "start")
    train(call, "start", "tuned", "adapter=lora", "lora_r=4")
    said = call("export", "tuned", "--to", "adapter", "--out", "adapter", "--verify")
    base = Store().open("start")
    assert f"it needs its base, {base.short_id} (start)" in said
    assert "verify: peft: same ids" in said
    assert "pass" in said
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.path)
    said = call("export", "tuned", "--to", "hf", "--out", "whole", "--verify")
    assert "merged into its base" in said
    call("export", "tuned", "--to", "adapter", "--out", "named", "--base", "someone/start")
    config = json.loads(Path("named/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/start"
    assert 'base_model: "someone/start"' in Path("named/README.md").read_text()
    said = call("export", "start", "--to", "adapter", "--out", "none", code=2)
    assert "is a whole model, there is no adapter in it" in said


# the card, and wrong orders


def test_the_card_tells_the_lineage_and_leaves_the_licence_to_the_user(call):
    call("import", make_folder(Path("source")), "--as", "start")
    train(call, "start", "tuned")
    call("export", "tuned", "--out", "out")
    card = Path("out/README.md").read_text("ascii")
    assert "license: other # FILL IN" in card
    assert "| start | import | model | source |" in card
    assert "| tuned | sft | model | start, rows |" in card
    assert "- **rows** (dataset, dataset): rows_read: 8" in card
    assert str(Path.cwd()) not in card


def test_wrong_orders_are_sentences(call):
    call("import", make_folder(Path("source")), "--as", "m")
    assert "it is one of hf, gguf, adapter" in call("export", "m", "--to", "onnx", code=2)
    assert "--dtype 'q8_0' with --to hf" in call("export", "m", "--dtype", "q8_0", code=2)
    assert "not empty" in call("export", "m", "--out", "source", code=2)
    assert "--base is for --to adapter" in call("export", "m", "--base", "x", code=2)
    train(call, "m", "tuned")
    assert "is a dataset, not a model" in call("export", "rows", code=2)
    rows = json.loads(call("export", "m", "--json"))
    assert rows["folder"] == "m-hf"
    assert "README.md" in rows["files"]


@needs_gguf
def test_the_vocabulary_of_a_sentencepiece_model_round_trips(tmp_path, call):
    from test_exchange_import import make_llama2c, reference_encode

    from rung.exchange.llama2c import read_pieces

    make_llama2c(Path("source"))
    call("import", "source", "--as", "m")
    call("export", "m", "--to", "gguf", "--dtype", "f32", "--out", "out", "--verify")
    path = Path("out/m-f32.gguf")
    header = read_gguf_header(path)
    assert header.metadata["tokenizer.ggml.model"] == "llama"
    assert header.metadata["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    bpe = read_gguf_vocabulary(path, header).bpe
    pieces, scores = read_pieces(Path("source/tokenizer.bin"), 320)
    for text in ("the abc of it", "  two", "abcabab the\nend", "\u4e00\u00e9"):
        ids = bpe.encode(text, add_special_tokens=False).ids
        assert ids == reference_encode(pieces, scores, text), text
    assert type(read_gguf_model(path, header)).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("kind", "begins", "prefix", "said"),
    [
        ("words", True, False, "conversations have the trained ids; a plain text wants a space"),
        ("words", False, True, "a space that was not trained"),
        ("prepend", True, True, ""),
        ("prepend", False, True, ""),
    ],
)
def test_llama_cpp_marks_spaces_as_conversations_were_trained(tmp_path, kind, begins, prefix, said):
    """What llama.cpp makes of the flag was looked at in llama.cpp itself: docs/models.md."""
    write(tmp_path, template=CHATML, kind=kind)
    bpe = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    vocabulary = gguf_vocabulary(bpe, rows=bpe.get_vocab_size(), begins=begins)
    assert vocabulary.add_space_prefix is prefix
    assert said in " ".join(vocabulary.lines)
    assert bool(vocabulary.lines) == bool(said)


def test_a_vocabulary_without_bytes_is_said_to_end_llama_cpp(tmp_path):
    write(tmp_path, template=CHATML, kind="prepend")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    assert can_spell(content, "What? \u4e2d")
    known = content["model"]["vocab"]
    for byte in (0x4E, 0xE4):
        del known[f"<0x{byte:02X}>"]
    content["model"]["vocab"] = {piece: i for i, piece in enumerate(known)}
    assert not can_spell(content, "What? \u4e2d")  # its first byte is E4
    assert can_spell(content, "What? \u00e9")
    bpe = Tokenizer.from_str(json.dumps(content))
    [line] = gguf_vocabulary(bpe, rows=bpe.get_vocab_size(), begins=True).lines
    assert "no token for 2 of the 256 bytes: llama.cpp ends the whole process" in line
