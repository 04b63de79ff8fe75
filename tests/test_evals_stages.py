"""Bits per byte, answers, `evaluate` and `ngram` on a tiny real corpus, tokenizer and models."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rung.errors import DataError
from rung.evals import evaluate, ngram
from rung.evals.answers import Answer, choose_rows
from rung.evals.drift import answer_kl, answer_rewards
from rung.evals.fivegram import train_ngram
from rung.evals.heldout import HeldoutConfig, HeldoutDocument, document_ids, read_heldout
from rung.evals.likelihood import answer_bits, cut_windows, document_bits
from rung.evals.tables import task_table
from rung.evals.tally import compare, tally_totals
from rung.model.attention import to_torch
from rung.model.build import build_model
from rung.model.heads import RewardModel, save_reward_model
from rung.model.load import load_model, save_model
from rung.model.shape import ModelConfig, resolve
from rung.store.artefact import Artefact, FileEntry
from rung.store.context import StageContext
from rung.tokens.bpe import train_bpe, write_tokenizer
from rung.tokens.chat import answer_ids, render
from rung.tokens.corpus import load_corpus_tokens
from rung.tokens.forest import group, pack
from rung.tokens.stream import DocumentStream
from rung.tokens.tokenizer import Tokenizer, load_tokenizer

HELDOUT = HeldoutConfig(bytes_per_domain=900, bytes_per_corpus=1500)
NAMES = ["sort", "load", "dump", "join", "split", "strip", "count", "index"]


class Silent:
    """A progress that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, title: str, *, total: float | None = None, unit: str = "") -> None: ...
    def update(self, done: float, **figures: float | str) -> None: ...
    def finish(self) -> None: ...
    def say(self, line: str) -> None:
        self.lines.append(line)


def artefact(
    path: Path, kind: str, *, config: dict[str, Any] | None = None, **notes: Any
) -> Artefact:
    files = {p.name: FileEntry("", 0) for p in path.iterdir()}
    return Artefact(path.name.ljust(64, "0"), kind, path, kind, config or {}, {}, files, notes)


def sentence(i: int) -> str:
    name = NAMES[i % len(NAMES)]
    return f"`list.{name}_{i}`: {name.capitalize()} the items of a list, caf\u00e9 {i}. " * (
        1 + i % 4
    )


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    root = tmp_path_factory.mktemp("ladder")
    for name in ("corpus", "tokenizer", "base", "other", "dataset"):
        (root / name).mkdir()
    rows = [
        {
            "id": f"d{i}",
            "text": sentence(i),
            "domain": "json" if i % 2 else "os",
            "split": "heldout" if i % 4 == 3 or i % 6 == 0 else "train",
            "group": f"g{i}",
            "meta": "{}",
            "part": "nowhere",
        }
        for i in range(120)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "corpus" / "documents.parquet")
    write_tokenizer(train_bpe([r["text"] for r in rows], vocab_size=400), root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    shape = resolve(ModelConfig(width=32, layers=2, heads=2, kv_heads=2, ffn=64, context=96))
    for seed, name in enumerate(("base", "other")):
        save_model(build_model(shape, tokenizer, seed=seed), root / name)
        tokenizer.save_into(root / name)
    write_dataset(root / "dataset")
    return {
        "corpus": artefact(root / "corpus", "corpus"),
        "tokenizer": artefact(root / "tokenizer", "tokenizer"),
        "base": artefact(root / "base", "model", config={"seed": 3}, tokens=1500),
        "other": artefact(root / "other", "model"),
        "dataset": artefact(root / "dataset", "dataset"),
    }


def write_dataset(folder: Path) -> None:
    rows = []
    for i in range(30):
        made_up = i % 3 == 0
        name = f"list.{NAMES[i % 8]}_{i}"
        answer = f"There is no `{name}` that I know of." if made_up else sentence(i)[:60]
        rows.append(
            {
                "id": f"q/{name}",
                "format": "unknown" if made_up else "explain",
                "split_group": "made_up" if made_up else "seen",
                "messages": [
                    {"role": "user", "content": f"What does `{name}` do?"},
                    {"role": "assistant", "content": answer},
                ],
                "truth": {"name": name, "exists": not made_up, "answer": answer, "passage": None},
            }
        )
    rows.append({**rows[1], "id": "q/too-long"})
    rows[-1]["messages"] = [
        {"role": "user", "content": "long " * 200},
        {"role": "assistant", "content": "no"},
    ]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def tokenizer(ladder: dict[str, Artefact]) -> Tokenizer:
    return load_tokenizer(ladder["tokenizer"].path)


@pytest.fixture(scope="module")
def documents(ladder: dict[str, Artefact]) -> list[HeldoutDocument]:
    return read_heldout(ladder["corpus"].file("documents.parquet"), HELDOUT, seed=0)


def stage_context(out: Path, ladder: dict[str, Artefact], **roles: str) -> StageContext:
    """A context whose roles are `ladder` entries; corpora always is the one corpus."""
    inputs = {role: ladder[name] for role, name in roles.items()}
    corpora = [ladder["corpus"]]
    return StageContext(inputs, {"corpora": corpora}, out, out.parent / "run", Silent(), {})


# held-out text


def test_the_sample_has_exactly_the_bytes_asked_for(documents: list[HeldoutDocument]) -> None:
    by_domain: dict[str, int] = {}
    for document in documents:
        by_domain[document.domain] = by_domain.get(document.domain, 0) + document.num_bytes
    # two domains share 1500 bytes; a cut may fall inside one two-byte character
    assert set(by_domain) == {"json", "os"}
    assert all(749 <= size <= 750 for size in by_domain.values())
    assert [d.domain for d in documents] == sorted(d.domain for d in documents)
    assert sum(not d.whole for d in documents) == 2


def test_the_sample_does_not_depend_on_row_order(
    ladder: dict[str, Artefact], documents: list[HeldoutDocument], tmp_path: Path
) -> None:
    table = pq.read_table(ladder["corpus"].file("documents.parquet"))
    turned = table.take(np.arange(table.num_rows)[::-1])
    pq.write_table(turned, tmp_path / "documents.parquet")
    assert read_heldout(tmp_path / "documents.parquet", HELDOUT, seed=0) == documents
    assert read_heldout(tmp_path / "documents.parquet", HELDOUT, seed=1) != documents


@pytest.mark.parametrize("length", [0, 1, 14, 15, 16, 26, 27, 100])
def test_windows_charge_every_token_once(length: int) -> None:
    ids = np.arange(100, 100 + length, dtype=np.int32)
    charged = []
    for (segment,) in cut_windows(ids, bos=1, context=16):
        assert len(segment.ids) <= 16
        assert segment.ids[0] == 1
        charged += segment.ids[segment.weights > 0].tolist()
    assert charged == ids.tolist()


def test_later_windows_see_what_came_before() -> None:
    (first,), (second,) = cut_windows(np.arange(10, 30, dtype=np.int32), bos=1, context=16)
    assert first.ids.tolist() == [1, *range(10, 25)]
    assert second.ids.tolist() == [1, *range(21, 30)]  # a quarter of 16 is repeated, untrained
    assert second.weights.tolist() == [0] * 5 + [1] * 5


def test_bits_equal_transformers_one_document_at_a_time(
    ladder: dict[str, Artefact], tokenizer: Tokenizer, documents: list[HeldoutDocument]
) -> None:
    model: Any = load_model(ladder["base"].path)
    ids = [i[:90] for i in document_ids(tokenizer, documents)]
    ours = document_bits(model, ids, bos=tokenizer.bos, context=96, tokens_per_batch=200)
    plain: Any = type(model).from_pretrained(ladder["base"].path, attn_implementation="eager")
    for bits, tokens in zip(ours, ids, strict=True):
        line = torch.tensor([[tokenizer.bos, *tokens.tolist()]])
        with torch.inference_mode():
            loss = plain(input_ids=line, labels=line).loss.item()
        assert bits == pytest.approx(loss * len(tokens) / math.log(2), rel=1e-5)


def test_bits_of_answers_equal_transformers_one_at_a_time(
    ladder: dict[str, Artefact], tokenizer: Tokenizer
) -> None:
    rows = [
        {"id": str(i), "messages": [{"role": "user", "content": f"What of {name}?"}, answer]}
        for i, (name, answer) in enumerate(
            [
                ("sort", {"role": "assistant", "content": "It sorts."}),
                ("load", {"role": "assistant", "content": "It loads a file."}),
                ("dump", {"role": "assistant", "content": ""}),  # no reference
                ("join", {"role": "user", "content": "And then?"}),
                ("long", {"role": "assistant", "content": "too long " * 500}),
            ]
        )
    ]
    model: Any = load_model(ladder["base"].path)
    bits = answer_bits(model, tokenizer, rows, context=64)
    assert bits[2:] == [None, None, None]
    model.set_attn_implementation("sdpa")
    for row, found in zip(rows, bits[:2], strict=False):
        question, reference = row["messages"]
        prompt = render(tokenizer, [question], generation_prompt=True).ids
        ids = torch.tensor([[*prompt, *answer_ids(tokenizer, reference["content"])]])
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        logps = torch.log_softmax(logits, -1)
        own = ids[0, len(prompt) :]
        expected = -float(logps.gather(1, own[:, None]).sum()) / math.log(2)
        assert found == pytest.approx(expected, rel=1e-5)


def test_whole_documents_are_charged_for_their_end(tokenizer: Tokenizer) -> None:
    whole = HeldoutDocument("a", "d", "the items", True)
    cut = HeldoutDocument("a", "d", "the items", False)
    one, other = document_ids(tokenizer, [whole, cut])
    assert one.tolist() == [*other.tolist(), tokenizer.bos]


# questions


def test_choice_of_questions_is_even_and_seeded() -> None:
    rows = [{"id": f"{f}{i}", "format": f, "split_group": "seen"} for f in "ab" for i in range(20)]
    rows += [{"id": f"c{i}", "format": "c", "split_group": "made_up"} for i in range(20)]
    chosen = choose_rows(rows, per_cell=5, made_up=8, seed=0)
    assert [row["format"] for row in chosen] == ["a"] * 5 + ["b"] * 5 + ["c"] * 8
    assert choose_rows(rows[::-1], per_cell=5, made_up=8, seed=0) == chosen
    assert choose_rows(rows, per_cell=5, made_up=8, seed=1) != chosen


def item(name: str, *, group: str = "seen", admits: bool = False, utility: float = 0.5) -> dict:
    return {
        "id": f"explain/{name}",
        "format": "unknown" if group == "made_up" else "explain",
        "split_group": group,
        "name": name,
        "exists": group == "seen",
        "stopped": True,
        "tokens": 9,
        "exact": utility == 1.0,
        "rouge_l": utility,
        "admits": admits,
        "utility": utility,
    }


def test_claims_and_refusals_by_hand() -> None:
    items = [item(f"m{i}", group="made_up", admits=i < 3) for i in range(4)]
    for index, kind in enumerate(("coined", "coined", "recombined", "recombined")):
        items[index]["made_up"] = kind
    items += [item(f"r{i}", admits=i < 1) for i in range(10)]
    items += [item("weather", group="off_topic")]  # neither made up nor real
    totals = tally_totals(items, seed=0)
    assert totals["false_claim_rate"]["value"] == 1 / 4
    assert totals["false_claim_rate"]["n"] == 4
    assert totals["false_claim_rate/coined"]["value"] == 0.0
    assert totals["false_claim_rate/recombined"]["value"] == 0.5
    assert totals["refusal_rate_on_real"]["value"] == 1 / 10
    assert totals["stop_rate"]["value"] == 1.0


def test_figures_of_the_users_formats_by_hand() -> None:
    def own(name: str, form: str, utility: float) -> dict:
        return {**item(name, utility=utility), "format": form, "split_group": "files"}

    items = [own("a", "labels", 1.0), own("b", "labels", 0.0), own("c", "passage", 0.5)]
    totals = tally_totals(items, seed=0)
    assert totals["exact/labels"]["value"] == 0.5
    assert (totals["rouge_l/labels"]["value"], totals["rouge_l/labels"]["n"]) == (0.5, 2)
    assert totals["rouge_l/passage"]["value"] == 0.5
    # a user's format of that name is not the one with the documentation in the prompt
    assert "passage_rouge_l" not in totals
    assert "rouge_l/labels" not in tally_totals(items[:2], seed=0)


def test_comparison_is_paired_by_question() -> None:
    before = [item("a", utility=0.2), item("b", utility=0.9), item("only-before")]
    before += [item("m", group="made_up", utility=0.0)]
    after = [item("b", utility=0.9), item("a", utility=0.6)]
    after += [item("m", group="made_up", admits=True, utility=1.0)]
    result = compare(after, before, seed=0)
    assert result["n"] == 3
    assert result["win_rate"]["value"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-6)
    assert result["utility_difference"]["value"] == pytest.approx(1.4 / 3, abs=1e-6)
    assert (result["false_claim_rate_before"], result["false_claim_rate_after"]) == (1.0, 0.0)
    assert result["refusal_on_real_rate_after"] == 0.0
    assert compare(after, [item("elsewhere")], seed=0) == {}


def test_kl_against_the_slow_sum(ladder: dict[str, Artefact], tokenizer: Tokenizer) -> None:
    model, other = load_model(ladder["base"].path), load_model(ladder["other"].path)
    prompt, ids = tokenizer.encode("`list.sort`: "), tokenizer.encode("Sort the items")
    answers = [Answer(prompt, ids, "", True), Answer(prompt, ids[:2], "", True)]
    ours = answer_kl(model, other, answers)
    with torch.inference_mode():
        line = torch.tensor([[*prompt.tolist(), *ids.tolist()]])
        at = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
        plain: list[Any] = [
            type(m).from_pretrained(ladder[n].path, attn_implementation="eager")
            for m, n in ((model, "base"), (other, "other"))
        ]
        p, q = (torch.log_softmax(m(input_ids=line).logits[0, at].double(), -1) for m in plain)
        expected = (p.exp() * (p - q)).sum(-1)
    assert ours[0] == pytest.approx(float(expected.sum()), rel=1e-4)
    assert ours[1] == pytest.approx(float(expected[:2].sum()), rel=1e-4)
    assert answer_kl(model, model, answers) == pytest.approx([0, 0], abs=1e-6)


# the stages


CONFIG = evaluate.Config(
    heldout=HELDOUT, items_per_cell=6, max_new_tokens=8, sample_tokens=6, precision="fp32"
)


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = (out / "items.jsonl").read_text().splitlines()
    return json.loads((out / "evaluation.json").read_text()), [json.loads(x) for x in lines]


def test_evaluate_measures_everything_it_was_given(
    ladder: dict[str, Artefact], documents: list[HeldoutDocument], tmp_path: Path
) -> None:
    roles = {"model": "base", "dataset": "dataset", "baseline": "other"}
    notes = evaluate.run(stage_context(tmp_path / "a", ladder, **roles), CONFIG)
    result, items = read(tmp_path / "a")
    # 400 tokens, random weights: log2(400) bits a token, a few bytes each
    total = result["likelihood"][ladder["corpus"].id]["total"]
    assert 1.0 < total["low"] <= total["value"] <= total["high"] < 8.0
    assert total["n"] == len(documents)
    assert total["bytes"] == sum(d.num_bytes for d in documents)
    assert result["skipped"] == []
    assert result["instruct"]["too_long"] <= 1
    assert result["instruct"]["totals"]["n"] == len([i for i in items if i["suite"] == "instruct"])
    assert {c["format"] for c in result["instruct"]["cells"]} == {"explain", "unknown"}
    assert 0 <= result["versus_baseline"]["win_rate"]["value"] <= 1
    assert result["versus_baseline"]["kl"]["value"] > 0
    assert len(result["samples"]["answers"]) == len(CONFIG.questions)
    assert notes["figures"]["stop_rate"] == result["instruct"]["totals"]["stop_rate"]["value"]


def test_evaluate_twice_gives_the_same_bytes(ladder: dict[str, Artefact], tmp_path: Path) -> None:
    for name in ("a", "b"):
        context = stage_context(tmp_path / name, ladder, model="base", dataset="dataset")
        evaluate.run(context, CONFIG)
    for name in ("evaluation.json", "items.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_model_against_itself_is_a_draw(ladder: dict[str, Artefact], tmp_path: Path) -> None:
    roles = {"model": "base", "dataset": "dataset", "baseline": "base"}
    evaluate.run(stage_context(tmp_path / "a", ladder, **roles), CONFIG)
    versus = read(tmp_path / "a")[0]["versus_baseline"]
    assert versus["win_rate"]["value"] == 0.5
    assert versus["utility_difference"]["value"] == 0.0
    assert versus["kl"]["value"] == pytest.approx(0.0, abs=1e-5)


def test_missing_parts_are_skipped_and_said(ladder: dict[str, Artefact], tmp_path: Path) -> None:
    context = stage_context(tmp_path / "a", ladder, model="base")
    bare = StageContext(context.inputs, {}, context.out, context.run, context.progress, {})
    evaluate.run(bare, CONFIG)
    skipped = {part["part"] for part in read(tmp_path / "a")[0]["skipped"]}
    assert skipped == {"bits per byte", "questions"}
    assert len(context.progress.lines) == 2  # type: ignore[attr-defined]


def test_tasks_are_measured_and_shown(ladder: dict[str, Artefact], tmp_path: Path) -> None:
    lines = [
        {
            "question": f"What does list.{name} do?",
            "choices": ["Sort the items.", name],
            "answer": 1,
        }
        for name in NAMES
    ]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = CONFIG.model_copy(update={"tasks": (str(path),)})
    assert list(evaluate.fingerprint(config)) == [str(path)]
    assert evaluate.fingerprint(CONFIG) == {}
    notes = evaluate.run(stage_context(tmp_path / "a", ladder, model="base"), config)
    result, items = read(tmp_path / "a")
    found = [item for item in items if item["suite"] == "tasks"]
    assert [item["task"] for item in found] == ["lists"] * 8
    assert result["tasks"]["lists"]["n"] == 8
    assert result["tasks"]["lists"]["chance"] == 0.5
    assert notes["figures"]["lists/acc"] == sum(item["acc"] for item in found) / 8
    table = task_table([("base", result)])
    assert table is not None
    assert [row[:4] for row in table.rows] == [
        ["lists", "accuracy", "8", "50%"],
        ["lists", "accuracy per character", "8", "50%"],
    ]
    assert task_table([("base", {})]) is None


def test_no_room_for_answers_is_an_error(ladder: dict[str, Artefact], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_new_tokens": 95})
    with pytest.raises(DataError, match="leaves 95 tokens for an answer in a context of 96"):
        evaluate.run(stage_context(tmp_path / "a", ladder, model="base", dataset="dataset"), config)


def test_ngram_counts_what_the_model_saw(
    ladder: dict[str, Artefact], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    roles = {"corpus": "corpus", "tokenizer": "tokenizer", "model": "base"}
    ngram.run(stage_context(tmp_path / "a", ladder, **roles), ngram.Config(heldout=HELDOUT))
    result, items = read(tmp_path / "a")
    assert result["ngram"]["tokens"] == 1500  # as the model's notes say
    train = load_corpus_tokens(ladder["corpus"].file("documents.parquet"), tokenizer, split="train")
    stream = DocumentStream(train, seed=3, tokens_per_batch=100, context=96)
    seen = [t for step in range(15) for (piece,) in stream.batch(step) for t in piece.ids[1:]]
    counted = ngram.seen_documents(train, num_tokens=1500, seed=3)
    assert np.concatenate(counted).tolist() == seen
    # measured on exactly the documents that `evaluate` measures
    evaluate.run(stage_context(tmp_path / "b", ladder, model="base"), CONFIG)
    theirs = read(tmp_path / "b")[1]
    assert [(i["id"], i["bytes"]) for i in items] == [(i["id"], i["bytes"]) for i in theirs]
    uniform = sum(i["bits"] for i in theirs)  # random weights know nothing
    assert sum(i["bits"] for i in items) < 0.5 * uniform


def test_ngram_counts_a_text_once_however_many_epochs(
    ladder: dict[str, Artefact], tokenizer: Tokenizer
) -> None:
    train = load_corpus_tokens(ladder["corpus"].file("documents.parquet"), tokenizer, split="train")
    pieces = ngram.seen_documents(train, num_tokens=10 * train.num_tokens, seed=3)
    assert sum(map(len, pieces)) == train.num_tokens
    assert len(pieces) == len(train)
    model = train_ngram(pieces, vocab_size=tokenizer.vocab_size, bos=tokenizer.bos)
    assert model.order == 5


def test_ngram_needs_to_know_how_much_was_seen(ladder: dict[str, Artefact]) -> None:
    with pytest.raises(DataError, match="does not say how many tokens"):
        ngram.seen_tokens(ladder["other"])


def test_reward_of_the_answers_is_the_reward_models(
    ladder: dict[str, Artefact], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = RewardModel(load_model(ladder["base"].path), shift=0.5, scale=2.0)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    prompt, ids = tokenizer.encode("`list.sort`: "), tokenizer.encode("Sort the items")
    scores = answer_rewards(model, [Answer(prompt, ids[:n], "", True) for n in (1, 2, len(ids))])
    for score, n in zip(scores, (1, 2, len(ids)), strict=True):
        with torch.inference_mode():
            alone = model.scores(to_torch(pack([group(prompt, [ids[:n]])])))
        assert score == pytest.approx(float(alone), abs=1e-4)
    (tmp_path / "reward").mkdir()
    save_reward_model(model, tmp_path / "reward", {}, base="")
    judged = {**ladder, "reward": artefact(tmp_path / "reward", "reward-model")}
    roles = {"model": "base", "dataset": "dataset", "reward": "reward"}
    evaluate.run(stage_context(tmp_path / "a", judged, **roles), CONFIG)
    result = read(tmp_path / "a")[0]
    assert result["reward"]["score"]["n"] == result["instruct"]["totals"]["n"]
