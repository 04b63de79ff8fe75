"""Files of llama2.c: a Llama as a run of float32 numbers, and its vocabulary beside it.

    V vocabulary, D width, H feed-forward width, L layers, K width of all key heads, C context

Two layouts: the old one starts with seven integers, the versioned one with the magic "ak42".
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from rung.errors import ArtefactError
from rung.model.types import PreTrainedModel

_MAGIC = 0x616B3432
UNK, BOS, EOS = "<unk>", "<s>", "</s>"
_NUM_SPECIAL, _NUM_BYTES = 3, 256
_SPACE = "\u2581"  # how sentencepiece writes a space


@dataclass(frozen=True)
class Header:
    """The shape of a model. start: first byte of the weights. shared: one embedding matrix."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    shared: bool
    start: int

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order of the file."""
        keys = self.dim // self.heads * self.kv_heads
        norms = [("att_norm", (self.layers, self.dim)), ("ffn_norm", (self.layers, self.dim))]
        attention = [
            ("wq", (self.layers, self.dim, self.dim)),
            ("wk", (self.layers, keys, self.dim)),
            ("wv", (self.layers, keys, self.dim)),
            ("wo", (self.layers, self.dim, self.dim)),
        ]
        ffn = [
            ("w1", (self.layers, self.hidden, self.dim)),
            ("w2", (self.layers, self.dim, self.hidden)),
            ("w3", (self.layers, self.hidden, self.dim)),
        ]
        embedding, norm = ("embedding", (self.vocab, self.dim)), ("norm", (self.dim,))
        head = [] if self.shared else [("head", (self.vocab, self.dim))]
        if self.start == 256:
            return [*norms, norm, embedding, *attention, *ffn, *head]
        angles = (self.context, self.dim // self.heads // 2)
        turns = [("cosines", angles), ("sines", angles)]  # what every reader computes anew
        return [embedding, norms[0], *attention, norms[1], *ffn, norm, *turns, *head]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.start + 4 * sum(int(np.prod(shape)) for _, shape in self.tensors())


def looks_like_llama2c(path: Path) -> bool:
    """Whether the first numbers of the file could be a shape; its size is not looked at."""
    with path.open("rb") as file:
        head = file.read(256)
    if len(head) < 28:
        return False
    if struct.unpack_from("<I", head)[0] == _MAGIC:
        return True
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack_from("<7i", head)
    small = 0 < layers < 1000 and 0 < kv_heads <= heads < 1000 and 0 < context < 1 << 20
    return small and 0 < dim < 1 << 16 and 0 < hidden < 1 << 18 and dim % heads == 0 and vocab != 0


def read_header(path: Path) -> Header:
    """The shape; ArtefactError for a quantised file, or one whose size is not that of its shape."""
    with path.open("rb") as file:
        head = file.read(256)
    versioned = struct.unpack_from("<I", head)[0] == _MAGIC
    if versioned and (version := struct.unpack_from("<i", head, 4)[0]) != 1:
        raise ArtefactError(
            f"{path} is of version {version} of llama2.c's layout (8-bit weights); import the "
            "float file it was made from (version 0 or 1)"
        )
    numbers = struct.unpack_from("<7i", head, 8 if versioned else 0)
    shared = bool(head[36]) if versioned else numbers[5] > 0
    dim, hidden, layers, heads, kv_heads, vocab, context = (abs(n) for n in numbers)
    start = 256 if versioned else 28
    header = Header(dim, hidden, layers, heads, kv_heads, vocab, context, shared, start)
    if (size := path.stat().st_size) != header.size:
        raise ArtefactError(
            f"{path} has {size:,} bytes and its shape ({layers} layers of width {dim}, vocabulary "
            f"{vocab:,}) needs {header.size:,}: it is cut short or no llama2.c file; copy it again"
        )
    return header


def read_model(path: Path) -> PreTrainedModel:
    """A Llama in float32 with the weights of `path`."""
    header = read_header(path)
    flat = np.fromfile(path, dtype="<f4", offset=header.start)
    found: dict[str, torch.Tensor] = {}
    at = 0
    for name, shape in header.tensors():
        count = int(np.prod(shape))
        found[name] = torch.from_numpy(flat[at : at + count].reshape(shape))
        at += count
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=header.vocab,
        hidden_size=header.dim,
        intermediate_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=header.shared,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=[2, 1],  # its models end a text with the token that begins the next
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(dict(_named(found, header)), strict=not header.shared)
    return model.eval()


def _named(found: dict[str, torch.Tensor], header: Header) -> Iterator[tuple[str, torch.Tensor]]:
    yield "model.embed_tokens.weight", found["embedding"]
    yield "model.norm.weight", found["norm"]
    if not header.shared:
        yield "lm_head.weight", found["head"]
    plain = {
        "input_layernorm": "att_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.v_proj": "wv",
        "self_attn.o_proj": "wo",
        "mlp.gate_proj": "w1",
        "mlp.down_proj": "w2",
        "mlp.up_proj": "w3",
    }
    for layer in range(header.layers):
        prefix = f"model.layers.{layer}."
        for name, own in plain.items():
            yield f"{prefix}{name}.weight", found[own][layer]
        for name, heads in (("q", header.heads), ("k", header.kv_heads)):
            weight = unpair(found[f"w{name}"][layer], heads)
            yield f"{prefix}self_attn.{name}_proj.weight", weight


def unpair(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix from pairs that turn together side by side (Llama's own
    layout) to halves of a head (transformers')."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def pair(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `unpair`."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def find_tokenizer(path: Path, given: str | None) -> Path:
    """The vocabulary of the model in `path`: `given`, or what lies beside it under a usual name."""
    if given is not None:
        if not Path(given).is_file():
            raise ArtefactError(f"{given}: no such file; `tokenizer` is llama2.c's tokenizer .bin")
        return Path(given)
    vocab = read_header(path).vocab
    usual = [path.parent / f"tok{vocab}.bin", path.parent / "tokenizer.bin"]
    for candidate in usual:
        if candidate.is_file():
            return candidate
    raise ArtefactError(
        f"{path} comes without its tokenizer: neither {usual[0].name} nor {usual[1].name} lies "
        "beside it; name it with --set tokenizer=FILE"
    )


def read_pieces(path: Path, vocab: int) -> tuple[list[str], list[float]]:
    """Texts and scores by id; ArtefactError when the file does not hold exactly `vocab` of them."""
    content = path.read_bytes()
    pieces: list[str] = []
    scores: list[float] = []
    at = 4  # after the length of the longest piece
    try:
        while at < len(content):
            score, length = struct.unpack_from("<fi", content, at)
            at += 8 + length
            if length < 0 or at > len(content):
                raise ArtefactError(f"{path} is cut short in entry {len(pieces)}; copy it again")
            pieces.append(content[at - length : at].decode("utf-8"))
            scores.append(score)
    except struct.error:
        raise ArtefactError(f"{path} is cut short after {len(pieces)} entries") from None
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path} is no llama2.c tokenizer: {error}") from None
    if len(pieces) != vocab:
        raise ArtefactError(
            f"{path} has {len(pieces):,} tokens and the model's embedding {vocab:,} rows: the "
            "tokenizer of another model"
        )
    return pieces, scores


def read_tokenizer(path: Path, vocab: int) -> tuple[Tokenizer, dict[str, Any]]:
    """(tokenizer that gives llama2.c's ids, its tokenizer_config)."""
    pieces, scores = read_pieces(path, vocab)
    first = _NUM_SPECIAL + _NUM_BYTES
    if pieces[3 : 3 + 1] != ["<0x00>"] or len(pieces) < first:
        raise ArtefactError(f"{path}: entries 3 to {first - 1} are not the 256 bytes")
    pieces = [UNK, BOS, EOS, *(p.replace(" ", _SPACE) for p in pieces[_NUM_SPECIAL:])]
    ids = {piece: index for index, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        raise ArtefactError(f"{path} has {len(pieces) - len(ids)} texts twice; it is damaged")
    made = models.BPE(
        vocab=ids,
        merges=_merges(pieces, scores, ids, first=first),
        unk_token=UNK,
        byte_fallback=True,
        fuse_unk=True,
    )
    bpe = Tokenizer(made)
    bpe.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    bpe.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)]
    )
    bpe.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (UNK, BOS, EOS)])
    return bpe, {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK}


def _merges(
    pieces: list[str], scores: list[float], ids: dict[str, int], *, first: int
) -> list[tuple[str, str]]:
    """llama2.c joins the neighbours whose joined text scores best: every cut of a piece into two
    others is a merge, the best score first."""
    merges: list[tuple[str, str]] = []
    for index in sorted(range(first, len(pieces)), key=lambda i: (-scores[i], i)):
        piece = pieces[index]
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if ids.get(left, 0) >= first and ids.get(right, 0) >= first:
                merges.append((left, right))
    return merges
