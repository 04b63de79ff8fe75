"""From artefacts to an aligned policy: what `ppo` and `grpo` do around their objectives."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rung.engine.generate import generate
from rung.engine.sampling import Sampling
from rung.errors import ArtefactError, ConfigError
from rung.model.adapters import save_trained
from rung.model.attention import to_torch
from rung.model.heads import RewardModel
from rung.model.load import context_length
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.model.types import PreTrainedModel
from rung.store.context import Notes, StageContext
from rung.tasks.grade import is_admission, utility
from rung.tokens.forest import group, pack
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.train.cost import cost_notes
from rung.train.loop import Sample, train
from rung.train.onpolicy import OnPolicy, OnPolicyConfig
from rung.train.ranked import cut_by_tokens
from rung.train.rollout import Prompt, load_prompts
from rung.train.start import start_policy

_SHOWN = 3  # answers of each grading that people may read


def run_alignment(
    context: StageContext, config: OnPolicyConfig, build: Callable[..., OnPolicy[Any]]
) -> Notes:
    """Load policy, reward model and prompts, train what `build` makes of them, save the policy.

    The first model is also the reference. Truth of held-out rows is used for measuring only.
    """
    source, judge = context.input("model"), context.input("reward")
    tokenizer = load_tokenizer(source.path)
    _require_same_tokenizer(source.path, judge.path)
    policy, scorer = start_policy(source, judge, config)
    if scorer.backbone is policy:
        context.progress.say("policy, reference and reward model share one base in memory")
    longest = min(context_length(policy), context_length(scorer.backbone)) - config.max_new_tokens
    if longest < 8:
        raise ConfigError(
            f"max_new_tokens = {config.max_new_tokens} leaves {longest} tokens of the context for "
            "the prompt; lower it"
        )
    dataset = context.input("dataset")
    prompts, dropped = load_prompts(dataset.file("prompts.jsonl"), tokenizer, max_tokens=longest)
    if dropped:
        context.progress.say(f"{dropped} prompts dropped: longer than {longest} tokens")
    graded = _graded_prompts(context, config, tokenizer, longest)
    evaluate = Grader(graded, scorer, tokenizer, config) if graded else None
    before = evaluate(policy) if evaluate else {}
    if evaluate:
        evaluate.take_samples()  # those of the first grading are those of step 0 again
    objective = build(
        policy,
        scorer,
        prompts,
        stop_ids=tokenizer.stop_ids,
        evaluate=evaluate,
        samples=evaluate.take_samples if evaluate else list,
    )
    result = train(objective, config, context)
    after = evaluate(policy) if evaluate else {}
    save_trained(policy, context.out, base=source.id)
    tokenizer.save_into(context.out)
    if after:
        context.progress.say(
            f"noise-free utility on {len(graded)} held-out prompts: {before['eval/utility']:.3f} "
            f"-> {after['eval/utility']:.3f}; proxy reward {before['eval/scores']:.2f} -> "
            f"{after['eval/scores']:.2f}"
        )
    return {
        "figures": {
            **{f"before/{name.removeprefix('eval/')}": v for name, v in before.items()},
            **{f"after/{name.removeprefix('eval/')}": v for name, v in after.items()},
            "kl": result.last.get("objective/kl"),
        },
        "counts": {"prompts": len(prompts), "dropped": dropped, "graded": len(graded)},
        # Each rollout passes once through generation, policy, reference and reward model.
        **cost_notes(result, policy, extra_forwards=4 / config.epochs),
    }


def _require_same_tokenizer(policy: Path, reward: Path) -> None:
    """Answers go to the reward model as token ids, so both must mean the same by them."""
    name = "tokenizer.json"
    if (policy / name).read_bytes() != (reward / name).read_bytes():
        raise ArtefactError(
            "the reward model has another tokenizer than the model to align; train the reward "
            "model from a model of the same tokenizer"
        )


def _graded_prompts(
    context: StageContext, config: OnPolicyConfig, tokenizer: Tokenizer, longest: int
) -> list[Prompt]:
    """A fixed draw of held-out prompts whose truth is known; says so when there are none."""
    if not config.eval_prompts:
        return []
    path = context.input("dataset").file("heldout.jsonl")
    prompts, _ = load_prompts(path, tokenizer, max_tokens=longest)
    known = [prompt for prompt in prompts if prompt.row.get("truth")]
    if not known:
        context.progress.say(
            "held-out rows have no known truth: over-optimisation of the reward model cannot be "
            "seen in this run; read samples"
        )
        return []
    draw = np.random.default_rng([config.seed, 1]).permutation(len(known))
    return [known[i] for i in sorted(draw[: config.eval_prompts])]


def _question(prompt: Prompt) -> str:
    """What the user said last."""
    asked = [m["content"] for m in prompt.row["messages"] if m["role"] == "user"]
    return str(asked[-1]) if asked else ""


class Grader:
    """Greedy answers to held-out prompts: noise-free utility beside the proxy reward."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        scorer: RewardModel,
        tokenizer: Tokenizer,
        config: OnPolicyConfig,
    ):
        self.prompts, self.scorer, self.tokenizer, self.config = prompts, scorer, tokenizer, config
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        self._samples: list[Sample] = []

    def take_samples(self) -> list[Sample]:
        """The first few answers of the gradings since the last call, each with its utility."""
        taken, self._samples = self._samples, []
        return taken

    def __call__(self, policy: PreTrainedModel) -> dict[str, float]:
        """Mean utility, proxy score, stop rate; false claims about made-up names and
        refusals of what exists, each as a share of its kind."""
        sampling = Sampling(
            max_new_tokens=self.config.max_new_tokens,
            temperature=0.0,
            stop_ids=self.tokenizer.stop_ids,
        )
        samples = generate(policy, [p.ids for p in self.prompts], sampling, dtype=self.dtype)
        answers = [group_of[0] for group_of in samples]
        texts = [self.tokenizer.decode(answer.ids) for answer in answers]
        values = [
            utility(prompt.row, text, stopped=answer.stopped).value
            for prompt, text, answer in zip(self.prompts, texts, answers, strict=True)
        ]
        self._samples += [
            Sample(_question(prompt), text, value)
            for prompt, text, value in zip(self.prompts, texts, values, strict=True)
        ][:_SHOWN]
        exists = np.array([bool(prompt.row["truth"]["exists"]) for prompt in self.prompts])
        admits = np.array([is_admission(text) for text in texts])
        out = {
            "eval/utility": float(np.mean(values)),
            "eval/scores": float(np.mean(self._scores([a.ids for a in answers]))),
            "eval/stop_rate": float(np.mean([answer.stopped for answer in answers])),
            "eval/mean_length": float(np.mean([len(answer.ids) for answer in answers])),
        }
        made_up = np.array([prompt.row.get("split_group") == "made_up" for prompt in self.prompts])
        if made_up.any():
            out["eval/false_claim_rate"] = float((~admits[made_up]).mean())
        if exists.any():
            out["eval/refusal_rate_on_real"] = float(admits[exists].mean())
        return out

    @torch.no_grad()
    def _scores(self, answers: Sequence[np.ndarray]) -> np.ndarray:
        trees = [group(p.ids, [a]) for p, a in zip(self.prompts, answers, strict=True)]
        parts = []
        with autocast(self.dtype, self.device):
            for run in cut_by_tokens(trees, self.config.microbatch_tokens):
                forest = to_torch(pack([trees[i] for i in run]), self.device)
                parts.append(self.scorer.scores(forest).cpu().numpy())
        return np.concatenate(parts)
