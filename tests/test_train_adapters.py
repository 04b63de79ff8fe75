"""Every training stage under an adapter: small artefacts, exact resume, one base in memory."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from train_tiny import (
    artefact,
    context,
    dataset_artefact,
    feedback_artefact,
    model_artefact,
    same_bytes,
)

from rung.model.adapters import is_adapted
from rung.model.heads import load_reward_model
from rung.model.load import load_model
from rung.store.adapter import CONFIG_FILE, WEIGHTS_FILE, base_id
from rung.train import alignment
from rung.train.objectives import continued, dpo, grpo, ppo, reward, sft
from rung.train.onpolicy import OnPolicy

ADAPTER = {"lora_r": 4, "lora_alpha": 8, "precision": "fp32"}
RANKED = {"rankings_per_update": 8, "heldout_fraction": 0.3}
SAMPLED = {
    "iterations": 3,
    "prompts_per_iteration": 4,
    "answers_per_prompt": 2,
    "max_new_tokens": 6,
    "eval_prompts": 0,
    "checkpoints": 3,
    "lr": 1e-3,
}


def keep(where, name, kind="model"):
    """What a stage wrote as an artefact beside the others, its folder called like its id."""
    folder = where.out.parent.parent / name
    where.out.rename(folder)
    return replace(artefact(folder, kind), id=name)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    model = model_artefact(root / "model-id")
    feedback = feedback_artefact(root / "feedback", num=30)
    data = dataset_artefact(root / "data", num=8)
    rows = "".join((data.path / f"{name}.jsonl").read_text() for name in ("prompts", "heldout"))
    (data.path / "train.jsonl").write_text(rows)
    (root / "corpus").mkdir()
    texts = ["what is it? tell me now. good answer here. " * 8] * 12
    columns = {
        "id": [str(i) for i in range(12)],
        "text": texts,
        "domain": ["files"] * 12,
        "split": ["train"] * 10 + ["heldout"] * 2,
        "part": ["instruct"] * 10 + ["nowhere"] * 2,
        "group": [str(i) for i in range(12)],
        "meta": ["{}"] * 12,
    }
    pq.write_table(pa.table(columns), root / "corpus/documents.parquet")
    corpus = artefact(root / "corpus", "corpus")
    where = context(root / "judging", model=model, feedback=feedback)
    config = reward.Config(adapter="lora", epochs=1, **RANKED, **ADAPTER)
    reward.run(where, config)
    judge = keep(where, "judge", "reward-model")
    return {
        "root": root,
        "model": model,
        "feedback": feedback,
        "dataset": data,
        "corpus": corpus,
        "reward": judge,
    }


STAGES = {
    "continue": (continued, ("model", "corpus"), {"tokens": 2000, "tokens_per_step": 256}),
    "sft": (sft, ("model", "dataset"), {"epochs": 3, "tokens_per_step": 128}),
    "reward": (reward, ("model", "feedback"), {"epochs": 2, **RANKED}),
    "dpo": (dpo, ("model", "feedback"), {"epochs": 2, **RANKED}),
    "ppo": (ppo, ("model", "reward", "dataset"), SAMPLED),
    "grpo": (grpo, ("model", "reward", "dataset"), SAMPLED),
}


@pytest.mark.parametrize(
    ("stage", "kind"), [*((stage, "lora") for stage in STAGES), ("sft", "rslora"), ("dpo", "dora")]
)
def test_stage_writes_an_adapter_on_its_base_and_resumes_to_the_same_bytes(
    world, stage, kind, tmp_path
):
    module, roles, options = STAGES[stage]
    inputs = {role: world[role] for role in roles}
    config = module.Config(adapter=kind, **{**ADAPTER, **options})
    first = context(world["root"] / f"{tmp_path.name}-{stage}", **inputs)
    notes = module.run(first, config)
    assert notes["tokens"] > 0
    names = sorted(path.name for path in first.out.iterdir())
    assert {CONFIG_FILE, WEIGHTS_FILE, "tokenizer.json"} <= set(names)
    assert "model.safetensors" not in names
    assert base_id(first.out) == "model-id"
    whole = (world["model"].path / "model.safetensors").stat().st_size
    assert (first.out / WEIGHTS_FILE).stat().st_size < whole / 2

    second = context(tmp_path / "killed", **inputs)
    killed_after_a_checkpoint(module, second, config)
    sizes = {p.name: p.stat().st_size for p in second.run.glob("checkpoints/*/weights.safetensors")}
    assert all(size < whole for size in sizes.values())
    module.run(second, config)
    assert same_bytes(first.out, second.out, names)


def killed_after_a_checkpoint(module, where, config):
    """Run the stage; die as soon as a checkpoint exists."""

    class Killed(BaseException):
        pass

    from rung.train.loop import _Run

    original = _Run._checkpoint

    def checkpoint(self, iteration):
        original(self, iteration)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "_checkpoint", checkpoint)
        with pytest.raises(Killed):
            module.run(where, config)
    assert any((where.run / "checkpoints").glob("*"))


def test_dropout_is_drawn_again_alike_after_a_kill(world, tmp_path):
    config = sft.Config(adapter="lora", lora_dropout=0.4, tokens_per_step=128, **ADAPTER)
    inputs = {role: world[role] for role in ("model", "dataset")}
    first, second = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    sft.run(first, config)
    killed_after_a_checkpoint(sft, second, config)
    sft.run(second, config)
    assert same_bytes(first.out, second.out, [WEIGHTS_FILE])
    plain = context(tmp_path / "c", **inputs)
    sft.run(plain, config.model_copy(update={"lora_dropout": 0.0}))
    assert not same_bytes(first.out, plain.out, [WEIGHTS_FILE])


def test_an_adapter_on_an_adapter_starts_from_what_it_was_given(world):
    """DPO on an adapter of SFT: held-out loss ln 2 before it moves, and the chain loads."""
    root = world["root"]
    where = context(root / "chain-a", model=world["model"], dataset=world["dataset"])
    sft.run(where, sft.Config(adapter="lora", epochs=2, tokens_per_step=128, **ADAPTER))
    tuned = keep(where, "tuned")
    still = dpo.Config(adapter="lora", epochs=1, **{**ADAPTER, **RANKED, "lr": 1e-12})
    where = context(root / "chain-b", model=tuned, feedback=world["feedback"])
    notes = dpo.run(where, still)
    assert notes["figures"]["heldout/loss"] == pytest.approx(0.693147, abs=1e-4)
    aligned = keep(where, "aligned")
    assert base_id(aligned.path) == "tuned"
    below, above = load_model(tuned.path), load_model(aligned.path)
    for one, two in zip(below.parameters(), above.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


def test_reward_model_is_small_and_scores_as_it_was_measured(world):
    judge = world["reward"]
    assert base_id(judge.path) == "model-id"
    model = load_reward_model(judge.path)
    assert not is_adapted(model.backbone)
    report = json.loads((judge.path / "reward.json").read_text())
    assert 0 <= report["heldout"]["pair_accuracy"]["value"] <= 1


def test_policy_reference_and_reward_share_one_base(world, tmp_path, monkeypatch):
    seen = []
    real = alignment.start_policy

    def start(*args):
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(alignment, "start_policy", start)
    made = []
    build = OnPolicy.__init__

    def init(self, *args, **options):
        build(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(OnPolicy, "__init__", init)
    inputs = {role: world[role] for role in ("model", "reward", "dataset")}
    where = context(tmp_path, **inputs)
    grpo.run(where, grpo.Config(adapter="lora", **{**ADAPTER, **SAMPLED}))
    (policy, scorer), objective = seen[0], made[0]
    assert scorer.backbone is policy
    assert objective.reference is policy
    assert any("share one base" in line for line in where.progress.lines)
    kept = sum(p.numel() for p in objective.good.parameters())
    assert kept < sum(p.numel() for p in policy.parameters()) / 3
    # with its adapter the shared backbone scores as the reward model loaded alone
    alone = load_reward_model(world["reward"].path)
    prompt = objective.prompts[0].ids
    from rung.model.attention import to_torch
    from rung.tokens.forest import group, pack

    forest = to_torch(pack([group(prompt, [prompt[1:4], prompt[2:6]])]))
    with torch.no_grad():
        torch.testing.assert_close(
            scorer.scores(forest), alone.scores(forest), atol=1e-4, rtol=1e-4
        )


def test_a_reward_model_on_another_base_is_loaded_beside(world, tmp_path):
    other = replace(world["model"], id="elsewhere")
    inputs = {"model": other, "reward": world["reward"], "dataset": world["dataset"]}
    where = context(tmp_path, **inputs)
    grpo.run(where, grpo.Config(adapter="lora", **{**ADAPTER, **SAMPLED, "iterations": 1}))
    assert not any("share one base" in line for line in where.progress.lines)
