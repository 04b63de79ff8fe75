"""Models from elsewhere: the same logits and ids as with their makers' tools, or a reason."""

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from exchange_models import FAMILIES, SHAPE, make_folder, make_model, plain_logits, tiny_tokenizer
from safetensors.torch import load_file, save_file
from stage_corpus import stage_context
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rung.errors import ArtefactError, ConfigError, RungError
from rung.exchange import gguf_read, importing, llama2c
from rung.exchange.gguf_header import read_gguf_header
from rung.exchange.importing import Config, run
from rung.exchange.vocabulary import PROBES
from rung.model.load import load_model
from rung.tokens.chat import render
from rung.tokens.tokenizer import load_tokenizer

DATA = Path(__file__).parent.parent.parent / "shared/data"
IDS = list(range(5, 45))


def do_import(source, tmp_path, **options):
    """(folder of the artefact, what was said)."""
    context = stage_context(tmp_path / "stage")
    run(context, Config(source=str(source), **options))
    return context.out, "\n".join(context.progress.lines)


def logits(folder, ids=IDS):
    model = load_model(folder)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_imported_model_has_the_logits_of_its_source(family, tmp_path):
    source = make_folder(tmp_path / "source", family)
    out, said = do_import(source, tmp_path)
    torch.testing.assert_close(logits(out), plain_logits(source, IDS), atol=1e-5, rtol=0)
    assert f"import: {type(make_model(family)).__name__}, " in said
    assert "context 256, float32" in said
    assert sorted(p.name for p in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "source.json",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


def test_ids_are_those_of_the_source_and_bytes_repeat(tmp_path):
    source = make_folder(tmp_path / "source")
    out, _ = do_import(source, tmp_path)
    theirs = AutoTokenizer.from_pretrained(source)
    for text in PROBES:
        assert load_tokenizer(out).encode(text).tolist() == theirs.encode(text)
    again, _ = do_import(source, tmp_path / "again")
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    record = json.loads((out / "source.json").read_text())
    assert record["form"] == "transformers"
    assert len(record["files"]["model.safetensors"]) == 64


def test_shards_are_joined_and_16_bit_weights_stay_16_bit(tmp_path):
    source = make_folder(tmp_path / "source", shard="40KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    for shard in source.glob("*.safetensors"):
        halves = {k: v.bfloat16() for k, v in load_file(shard).items()}
        save_file(halves, shard, metadata={"format": "pt"})
    out, said = do_import(source, tmp_path)
    assert "bfloat16" in said
    torch.testing.assert_close(logits(out), plain_logits(source, IDS), atol=1e-5, rtol=0)
    assert (out / "model.safetensors").stat().st_size < 0.55 * 4 * sum(
        p.numel() for p in make_model("llama").parameters()
    )


# chat templates


def test_a_model_without_a_template_gets_one_and_it_is_said(tmp_path):
    out, said = do_import(make_folder(tmp_path / "source"), tmp_path)
    assert "ours, as it had none: roles as headings, <|endoftext|> ends an answer" in said
    served = AutoTokenizer.from_pretrained(out)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    text = served.apply_chat_template(messages, tokenize=False)
    assert text.startswith("Be brief.\n\n### User:\nHi\n\n### Assistant:\nHello.<|endoftext|>")
    rendered = render(load_tokenizer(out), messages)
    assert load_tokenizer(out).decode(rendered.ids[rendered.weights > 0], special=True) == (
        "Hello.<|endoftext|>"
    )


def test_chatml_where_its_tokens_are_known_and_generation_stops_at_its_end(tmp_path):
    source = make_folder(tmp_path / "source")
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tiny_tokenizer(special).save_pretrained(source)
    out, said = do_import(source, tmp_path)
    assert "ChatML, whose tokens it knows" in said
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    ids = render(load_tokenizer(out), [{"role": "user", "content": "Hi"}], generation_prompt=True)
    text = load_tokenizer(out).decode(ids.ids, special=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_its_own_template_is_kept_and_one_that_raises_is_reported(tmp_path):
    source = make_folder(tmp_path / "source")
    tiny_tokenizer(template="{{ raise_exception('never') }}").save_pretrained(source)
    out, said = do_import(source, tmp_path)
    assert "chat template: its own; it cannot be used" in said
    assert "never" in json.loads((out / "tokenizer_config.json").read_text())["chat_template"]


def test_pad_equal_to_the_end_is_said(tmp_path):
    source = make_folder(tmp_path / "source")
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(
        json.dumps({**config, "pad_token": "<|endoftext|>"})
    )
    _, said = do_import(source, tmp_path)
    assert "pad token = end token, <|endoftext|> (0)" in said


# llama2.c


def reference_encode(pieces, scores, text):
    """llama2.c's algorithm step by step: characters or bytes, then the best pair, and again."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    tokens = [ids[" "]] if text else []
    for character in text:
        tokens += [ids[character]] if character in ids else [b + 3 for b in character.encode()]
    while True:
        joined = [ids.get(pieces[a] + pieces[b]) for a, b in itertools.pairwise(tokens)]
        known = [(scores[i], -at) for at, i in enumerate(joined) if i is not None]
        if not known:
            return tokens
        at = -max(known)[1]
        tokens[at : at + 2] = [joined[at]]


def make_llama2c(folder, *, versioned=False):
    """(path, hf model): weights of a Llama in llama2.c's order, written down by hand."""
    folder.mkdir()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, rms_norm_eps=1e-5)).eval()
    config, state = model.config, model.state_dict()
    layers, dim, heads, kv = config.num_hidden_layers, 32, 4, 2

    def stack(name):
        return [state[f"model.layers.{i}.{name}.weight"].numpy() for i in range(layers)]

    def turned(name, number):  # rows (half, pair) of a head -> (pair, half)
        return [w.reshape(number, 2, 4, dim).swapaxes(1, 2).reshape(-1, dim) for w in stack(name)]

    attention = [
        turned("self_attn.q_proj", heads), turned("self_attn.k_proj", kv),
        stack("self_attn.v_proj"), stack("self_attn.o_proj"),
    ]  # fmt: skip
    ffn = [stack("mlp.gate_proj"), stack("mlp.down_proj"), stack("mlp.up_proj")]
    norms = [stack("input_layernorm"), stack("post_attention_layernorm")]
    last, embedding = (
        [state["model.norm.weight"].numpy()],
        [state["model.embed_tokens.weight"].numpy()],
    )
    head = [state["lm_head.weight"].numpy()]
    shape = (dim, 64, layers, heads, kv)
    if versioned:
        start = struct.pack("<Ii7iB", 0x616B3432, 1, *shape, 320, 256, 0).ljust(256, b"\0")
        order = [*norms, last, embedding, *attention, *ffn, head]
    else:
        start = struct.pack("<7i", *shape, -320, 256)
        turns = [[np.zeros((256, 4), np.float32)]] * 2
        order = [embedding, norms[0], *attention, norms[1], *ffn, last, *turns, head]
    path = folder / "model.bin"
    path.write_bytes(start + b"".join(w.tobytes() for part in order for w in part))
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256))]
    pieces += [" ", *"abcdefghijklmnopqrstuvwxyz", "ab", " a", "abc", "th", "the", " the"]
    pieces += [chr(0x4E00 + i) for i in range(320 - len(pieces))]
    entries = [(-float(i), p.encode()) for i, p in enumerate(pieces)]
    content = b"".join(struct.pack("<fi", s, len(p)) + p for s, p in entries)
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 9) + content)
    return path, model


@pytest.mark.parametrize("versioned", [False, True])
def test_llama2c_files_give_the_logits_of_the_llama_they_hold(versioned, tmp_path):
    path, model = make_llama2c(tmp_path / "source", versioned=versioned)
    out, said = do_import(path.parent, tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(logits(out), expected, atol=1e-5, rtol=0)
    assert "stops at </s> (2), <s> (1)" in said


def test_llama2c_vocabulary_gives_its_ids_and_text_comes_back(tmp_path):
    make_llama2c(tmp_path / "source")
    pieces, scores = llama2c.read_pieces(tmp_path / "source/tokenizer.bin", 320)
    bpe, _ = llama2c.read_tokenizer(tmp_path / "source/tokenizer.bin", 320)
    for text in ("the abc of it", "  two", "abcabab the\nend", "\u4e00\u00e9\U0001f642", "a"):
        ids = bpe.encode(text, add_special_tokens=False).ids
        assert ids == reference_encode(pieces, scores, text), text
        assert bpe.decode(ids) == text


def test_llama2c_without_its_tokenizer_or_cut_short_is_refused(tmp_path):
    path, _ = make_llama2c(tmp_path / "source")
    beside = path.parent / "tokenizer.bin"
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-2])
    with pytest.raises(ArtefactError, match="cut short in entry 319"):
        do_import(path, tmp_path)
    beside.write_bytes(whole[: -8 - 3])
    with pytest.raises(ArtefactError, match="319 tokens and the model's embedding 320 rows"):
        do_import(path, tmp_path)
    beside.unlink()
    with pytest.raises(ArtefactError, match="without its tokenizer"):
        do_import(path, tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtefactError, match="cut short"):
        do_import(path, tmp_path)


@pytest.mark.skipif(not (DATA / "model_stories260k").is_dir(), reason="needs ../shared/data")
def test_stories260k_gives_llama2c_ids_and_tells_a_story(tmp_path):
    from rung.engine.sampling import Sampling
    from rung.engine.talk import generate_text

    source = DATA / "model_stories260k"
    out, _ = do_import(source, tmp_path)
    pieces, scores = llama2c.read_pieces(source / "tok512.bin", 512)
    text = "One day, Lily met a Shoggoth. 12 caf\u00e9s\n  and \U0001f642"
    expected = reference_encode(pieces, scores, text)
    assert load_tokenizer(out).encode(text).tolist() == expected
    sampling = Sampling(max_new_tokens=60, temperature=0.0)
    story = generate_text(out, ["Once upon a time"], chat=False, sampling=sampling)[0][0].text
    assert story.strip().startswith(", there was a little girl named Lily. She loved to play")


@pytest.mark.skipif(not (DATA / "model_tinystories656k").is_dir(), reason="needs ../shared/data")
def test_tinystories656k_has_the_logits_of_plain_transformers(tmp_path):
    source = DATA / "model_tinystories656k"
    out, said = do_import(source, tmp_path)
    torch.testing.assert_close(logits(out), plain_logits(source, IDS), atol=1e-5, rtol=0)
    theirs = AutoTokenizer.from_pretrained(source)
    for text in PROBES:
        ids = theirs.encode(text, add_special_tokens=False)
        assert load_tokenizer(out).encode(text).tolist() == ids
    assert "a text begins with <|start_story|> (1)" in said


# refusals, each before the weights are read


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A good folder to break; reading weights is an error."""

    def never(*args, **options):
        raise AssertionError("weights were read before the refusal")

    monkeypatch.setattr(importing, "load_model", never)
    return make_folder(tmp_path / "source")


def refused(source, tmp_path, words, **options):
    with pytest.raises(RungError, match=words):
        do_import(source, tmp_path, **options)


def edit_config(source, **values):
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_pickles_are_refused(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refused(source, tmp_path, r"only as pickle \(pytorch_model.bin\)")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "weights.pt").write_bytes(b"PK\x03\x04" + bytes(300))
    refused(bare, tmp_path, "is a pickle, which can run code")
    refused(bare / "weights.pt", tmp_path, "is a pickle, which can run code")


def test_remote_code_is_refused(source, tmp_path):
    edit_config(source, auto_map={"AutoModelForCausalLM": "evil.Model"})
    refused(source, tmp_path, "code that would have to run.*transformers itself has llama")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "bloom"}, "BloomForCausalLM has its attention built in.*no slower way"),
        ({"model_type": "mamba"}, "MambaForCausalLM"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "no_such"}, "no causal language model of type 'no_such'"),
        ({"model_type": "gemma3", "vision_config": {}}, "reads more than text"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised weights \(gptq\)"),
    ],
)
def test_architectures_without_a_way_are_refused(values, words, source, tmp_path):
    edit_config(source, **values)
    refused(source, tmp_path, words)


def test_a_tokenizer_that_is_missing_too_large_or_broken_is_refused(source, tmp_path):
    edit_config(source, vocab_size=300)
    refused(source, tmp_path, "ids up to 319 and the embedding 300 rows")
    edit_config(source, vocab_size=320)
    whole = (source / "tokenizer.json").read_bytes()
    (source / "tokenizer.json").write_bytes(whole[:1000])
    refused(source, tmp_path, "cannot read the tokenizer")
    (source / "tokenizer.json").unlink()
    refused(source, tmp_path, "has no tokenizer")


def test_an_end_token_is_asked_for(source, tmp_path):
    path = source / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["eos_token"]
    path.write_text(json.dumps(config))
    refused(source, tmp_path, "names no end token")


def test_files_cut_short_are_refused(source, tmp_path):
    weights = source / "model.safetensors"
    whole = weights.read_bytes()
    for size in (len(whole) - 1, 500, 4):
        weights.write_bytes(whole[:size])
        refused(source, tmp_path, "cut short|only its beginning")
    weights.write_bytes(whole)
    (source / "config.json").write_text("{")
    refused(source, tmp_path, "is not JSON")


def test_a_missing_shard_is_named(tmp_path):
    source = make_folder(tmp_path / "source", shard="40KB")
    sorted(source.glob("*.safetensors"))[1].unlink()
    refused(source, tmp_path, "1 of . shards are missing, first model-00002")


def test_adapters_and_empty_folders_are_refused(source, tmp_path):
    (source / "adapter_config.json").write_text("{}")
    refused(source, tmp_path, "is an adapter")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "not a model folder")
    refused(source / "tokenizer.json", tmp_path, "is one file of a model: name its folder")


def test_a_path_that_does_not_exist_is_a_hub_id_only_when_it_looks_like_one(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refused("./no/such/folder", tmp_path, "no such file or folder")
    refused("no-such-owner/no-such-model", tmp_path, "HF_HUB_OFFLINE is set; go online once")
    with pytest.raises(ConfigError, match="source is empty"):
        do_import("", tmp_path)


def test_models_that_see_across_packed_texts_are_refused(tmp_path, monkeypatch):
    """A stand-in for a recurrence: a layer that mixes every token with the one before it."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    forward = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP, "forward", lambda self, x: forward(self, x) + torch.roll(x, 1, dims=1)
    )
    refused(make_folder(tmp_path / "source"), tmp_path, "sees across texts that are packed")


def test_gguf_without_its_package_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(40))
    monkeypatch.setattr(gguf_read.importlib.util, "find_spec", lambda name: None)
    refused(tmp_path / "model.gguf", tmp_path, r"pip install 'rung\[gguf\]'")


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + b"\3\0\0\0" + b"\xff" * 40, b"nothing"])
def test_broken_gguf_headers_are_refused(content, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ArtefactError, match="no GGUF file, or it is cut short"):
        read_gguf_header(tmp_path / "model.gguf")
