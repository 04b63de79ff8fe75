"""Stage `collect`: sample answers of a model and have the simulated annotator rank them.

The annotator is simulated: a known utility plus noise of a stated rate, see
rung/feedback/annotator.py. Every row and the report say so. People's rankings come in by the
`feedback` stage, in the same form.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from rung.config import Config as BaseConfig
from rung.engine.generate import generate
from rung.engine.remote import EngineConfig, RemoteCompletion, RemoteEngine
from rung.engine.sampling import Completion, Sampling
from rung.errors import DataError
from rung.feedback.annotator import (
    AnnotatorConfig,
    SimulatedAnnotator,
    expected_ceiling,
    noise_ceiling,
    retest_agreement,
)
from rung.feedback.rankings import count_rankings, write_rankings
from rung.feedback.schema import Ranking
from rung.model.load import context_of, load_model
from rung.model.precision import Precision, pick_device, pick_dtype
from rung.store.artefact import canonical_json
from rung.store.context import Notes, StageContext
from rung.tasks.grade import utility
from rung.text.rows import Row, read_rows, write_rows
from rung.tokens.tokenizer import Tokenizer, load_tokenizer
from rung.train.rollout import Prompt, load_prompts

CHUNK = 256  # prompts between two saves; part of what the samples are, so not an option


class Config(BaseConfig):
    """Answers of the model to the dataset's prompts, ranked by the simulated annotator."""

    num_prompts: int = Field(800, ge=1, description="prompts at most, in file order")
    answers: int = Field(4, ge=2, description="answers sampled per prompt")
    temperature: float = Field(1.0, gt=0, description="of the samples; 0 would give equal answers")
    max_new_tokens: int = Field(64, ge=1, description="limit of an answer in tokens")
    annotator: AnnotatorConfig = Field(AnnotatorConfig(), description="how good the annotator is")
    precision: Precision = Field("auto", description="auto, bf16 or fp32")
    device: str = Field("auto", description="auto, cpu or cuda")
    engine: EngineConfig | None = Field(
        None, description="another engine that answers, {url: ...}; default: the model, in process"
    )
    seed: int = Field(0, description="seed of the samples and of the annotator's noise")


class Sampler(Protocol):
    """Answers to prompts; keys name the prompts to the random numbers."""

    def __call__(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, num_samples: int, keys: range
    ) -> Sequence[Sequence[Completion]]: ...


def run(context: StageContext, config: Config) -> Notes:
    """feedback: rankings.jsonl and report.json. A killed run goes on after its last whole chunk."""
    folder = context.input("model").path
    tokenizer = load_tokenizer(folder)
    longest = context_of(folder) - config.max_new_tokens
    prompts, too_long = load_prompts(
        context.input("dataset").file("prompts.jsonl"), tokenizer, max_tokens=longest
    )
    prompts = prompts[: config.num_prompts]
    _require_truth(prompts)
    remote = config.engine.open() if config.engine is not None and config.engine.url else None
    if remote is not None:
        context.progress.say(f"collect: {remote.connect(tokenizer)}")
        sampler = _remote_engine(remote)
    else:
        sampler = _vllm_engine(folder) if config.engine is not None else _own_engine(config, folder)
    samples = _sample_all(context, config, sampler, tokenizer, prompts)
    annotator = SimulatedAnnotator(config.annotator, seed=config.seed)
    ranked = [
        rank(prompt.row, sample["answers"], annotator=annotator)
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    records = [record for record in ranked if record is not None]
    if not records:
        raise DataError(
            f"all {len(prompts)} prompts got {config.answers} equal answers, so there is nothing "
            "to prefer; raise temperature or answers"
        )
    write_rankings(context.out, records)
    report = _report(records, config, annotator=annotator, too_long=too_long)
    report["dropped"]["equal_answers"] = len(ranked) - len(records)
    if remote is not None:
        report["engine"] = {"model": remote.model, "prompts": remote.send}
        remote.close()
    (context.out / "report.json").write_text(canonical_json(report) + "\n", encoding="utf-8")
    context.progress.say(
        f"collect: {report['rankings']} rankings by the simulated annotator, {report['pairs']} "
        f"pairs, noise ceiling {report['simulated']['noise_ceiling']:.3f}"
    )
    tokens = sum(sample["tokens"] for sample in samples)
    return {"counts": report, "figures": dict(report["simulated"]), "tokens": tokens}


def _require_truth(prompts: Sequence[Prompt]) -> None:
    """The simulated annotator can only judge where the truth is known."""
    for prompt in prompts:
        truth = prompt.row.get("truth") or {}
        if truth.get("exists", True) and not truth.get("answer"):
            raise DataError(
                f"prompt {prompt.row.get('id')!r} has no reference answer, so the simulated "
                "annotator cannot judge it; give it one, or rank answers by people and import them "
                "with the `feedback` stage"
            )


def _own_engine(config: Config, folder: Path) -> Sampler:
    """The model itself, in this process."""
    device = pick_device(config.device)
    model, dtype = load_model(folder, device=device), pick_dtype(config.precision, device)

    def sample(
        prompts: Sequence[Prompt], sampling: Sampling, *, num_samples: int, keys: range
    ) -> Sequence[Sequence[Completion]]:
        ids = [prompt.ids for prompt in prompts]
        return generate(model, ids, sampling, num_samples=num_samples, keys=keys, dtype=dtype)

    return sample


def _vllm_engine(folder: Path) -> Sampler:
    from rung.engine.vllm_local import VllmEngine

    engine = VllmEngine(folder)

    def sample(
        prompts: Sequence[Prompt], sampling: Sampling, *, num_samples: int, keys: range
    ) -> Sequence[Sequence[Completion]]:
        ids = [prompt.ids for prompt in prompts]
        return engine.generate(ids, sampling, num_samples=num_samples, keys=keys)

    return sample


def _remote_engine(remote: RemoteEngine) -> Sampler:
    """A server; what it makes of the seeds is its affair."""

    def sample(
        prompts: Sequence[Prompt], sampling: Sampling, *, num_samples: int, keys: range
    ) -> Sequence[Sequence[Completion]]:
        ids = [prompt.ids for prompt in prompts]
        asked = [_question(prompt.row) for prompt in prompts]
        return remote.generate(ids, sampling, messages=asked, num_samples=num_samples, keys=keys)

    return sample


def _question(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The messages of a row without its reference answer."""
    messages: Sequence[Mapping[str, Any]] = row["messages"]
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _sample_all(
    context: StageContext,
    config: Config,
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
) -> list[Row]:
    """{"id", "answers": [{"text", "stopped"}], "tokens"} of every prompt, saved chunk by chunk."""
    chunks = context.run / "collect"
    chunks.mkdir(parents=True, exist_ok=True)
    samples: list[Row] = []
    context.progress.start("collect", total=len(prompts), unit="prompts")
    for first in range(0, len(prompts), CHUNK):
        path = chunks / f"{first:06d}.jsonl"
        if not path.exists():
            rows = _sample(config, sampler, tokenizer, prompts[first : first + CHUNK], first=first)
            write_rows(path, rows, sync=True)
        samples += [row for _, row in read_rows(path)]
        context.progress.update(len(samples))
    context.progress.finish()
    return samples


def _sample(
    config: Config,
    sampler: Sampler,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    first: int,
) -> list[Row]:
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        stop_ids=tokenizer.stop_ids,
    )
    keys = range(first, first + len(prompts))
    completions = sampler(prompts, sampling, num_samples=config.answers, keys=keys)
    return [
        {
            "id": prompt.row["id"],
            "answers": [
                {"text": _text(answer, tokenizer), "stopped": answer.stopped} for answer in answers
            ],
            "tokens": sum(len(answer.ids) for answer in answers),
        }
        for prompt, answers in zip(prompts, completions, strict=True)
    ]


def _text(answer: Completion, tokenizer: Tokenizer) -> str:
    return answer.text if isinstance(answer, RemoteCompletion) else tokenizer.decode(answer.ids)


def rank(
    row: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], *, annotator: SimulatedAnnotator
) -> Ranking | None:
    """The ranking of a prompt's distinct answers, or None when there is but one.

    Equal answers are judged once: noise that orders copies of one text would be a label for
    nothing. An answer of no text and no end is no token at all, nothing to learn from.
    """
    told = [answer for answer in answers if answer["text"] or answer["stopped"]]
    distinct = list({(a["text"].strip(), a["stopped"]): a for a in told}.values())
    if len({answer["text"].strip() for answer in distinct}) < 2:
        return None
    graded = [utility(row, answer["text"], stopped=answer["stopped"]) for answer in distinct]
    judged = annotator.judge(row["id"], [g.value for g in graded], [g.flags for g in graded])
    return Ranking(
        id=row["id"],
        prompt=[dict(turn) for turn in _question(row)],
        answers=[answer["text"] for answer in distinct],
        stopped=[answer["stopped"] for answer in distinct],
        ranks=judged.ranks,
        flags=judged.flags,
        annotator=annotator.config.name,
        kind=annotator.kind,
        source={
            "format": row["format"],
            "split_group": row["split_group"],
            "truth": row["truth"],
            "utilities": [round(g.value, 6) for g in graded],
        },
    )


def _report(
    records: Sequence[Ranking],
    config: Config,
    *,
    annotator: SimulatedAnnotator,
    too_long: int,
) -> dict[str, Any]:
    """Counts, and how noisy the simulated annotator was on exactly these rankings."""
    again = [_judged_again(record, annotator) for record in records]
    utilities = [value for record in records for value in record.source["utilities"]]
    formats = Counter(record.source["format"] for record in records)
    return {
        **count_rankings(records),
        "per_format": dict(sorted(formats.items())),
        "dropped": {"too_long": too_long},
        "annotator_config": config.annotator.model_dump(),
        "simulated": {
            "noise_ceiling": round(noise_ceiling(records).value, 6),
            "expected_ceiling": round(expected_ceiling(records, config.annotator), 6),
            "retest_agreement": round(retest_agreement(records, again).value, 6),
            "mean_utility": round(sum(utilities) / len(utilities), 6),
        },
    }


def _judged_again(record: Ranking, annotator: SimulatedAnnotator) -> Ranking:
    """A second, independent look of the same annotator at the same answers."""
    utilities = record.source["utilities"]
    second = annotator.judge(f"retest/{record.id}", utilities, [()] * len(utilities))
    return Ranking(
        id=record.id,
        prompt=record.prompt,
        answers=record.answers,
        stopped=record.stopped,
        ranks=second.ranks,
        flags=second.flags,
        annotator=record.annotator,
        kind=record.kind,
    )
