"""Our scorer, lm-evaluation-harness in process, and the harness over HTTP, on the same items.

    python benchmarks/harness_tasks.py DATA OUT
    python benchmarks/harness.py MODEL-FOLDER OUT/*.jsonl [--environment FOLDER]

`rung evaluate`, `lm_eval --model hf`, and `lm_eval --model local-completions` against `rung serve`,
all in float32. Accuracies must be the same; of the log-probability of each choice the largest
difference is printed, of the sum and per token. Vocabularies whose tokens reach over the border of
prompt and choice are no use here: lm-eval reads other tokens there (rung/evals/choice.py). It has
an environment of its own, made on the first run and never the product's. The last line is JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tokenizers
from cells import HERE
from compare import cell_environment

from rung.evals.choice import choice_tree
from rung.evals.choice_rows import Item, read_tasks
from rung.store.store import Store
from rung.tokens.tokenizer import load_tokenizer

PACKAGES = ("lm-eval[api,hf]==0.4.13", "torch==2.13.0", "transformers==5.23.0")
RUNG = (sys.executable, "-m", "rung")
SIDES = ("rung", "in process", "over HTTP")
Found = dict[str, list[dict[str, Any]]]  # by task: {"logps", "acc", "acc_norm"} of each item


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--environment", type=Path, default=HERE / ".clients" / "lm-eval")
    options = parser.parse_args()
    tasks = read_tasks([str(Path(name).resolve()) for name in options.tasks])
    python = make_environment(options.environment.absolute())
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours, model = run_ours(folder, options.model.resolve(), options.tasks)
        twin = make_twin(model, folder / "twin")
        yamls = write_tasks(folder / "tasks", tasks)
        size = json.loads((model / "config.json").read_text())["max_position_embeddings"]
        local = run_harness(
            python, folder / "local", yamls, tasks, "hf", f"pretrained={twin},dtype=float32"
        )
        with serving(folder) as url:
            remote = run_harness(
                python,
                folder / "remote",
                yamls,
                tasks,
                "local-completions",
                f"model=model,base_url={url}/v1/completions,tokenizer_backend=huggingface,"
                f"tokenizer={twin},add_bos_token=True,max_length={size}",
            )
        tokens = count_tokens(model, tasks, context=size)
    print_comparison(dict(zip(SIDES, (ours, local, remote), strict=True)), tokens)


def make_environment(folder: Path) -> Path:
    """The Python of lm-eval's environment, which is made where there is none."""
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (folder / "installed").touch()
    return python


def run_ours(folder: Path, model: Path, files: Sequence[str]) -> tuple[Found, Path]:
    """Items as `rung evaluate` scored them, and the folder of the imported model."""
    paths = json.dumps([str(Path(name).resolve()) for name in files])
    settings = ("precision=fp32", "questions=[]", "continuations=[]", f"tasks={paths}")
    sets = [word for setting in settings for word in ("--set", setting)]
    for command in (
        ("import", str(model), "--as", "model"),
        ("evaluate", "--model", "model", "--name", "figures", *sets),
    ):
        words = [*RUNG, *command, "--store", str(folder / "store")]
        subprocess.run(words, check=True, env=environment(folder), stdout=sys.stderr)
    store = Store(folder / "store")
    found: Found = {}
    with store.open("figures").file("items.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found.setdefault(row["task"], []).append(row)
    return found, store.open("model").path


def environment(folder: Path) -> dict[str, str]:
    return cell_environment(folder, threads=int(os.environ.get("OMP_NUM_THREADS", "2")))


def make_twin(model: Path, folder: Path) -> Path:
    """The model as the harness should read it: beginning every text as Rung does.

    Where other programs put nothing before a text, as for SmolLM2, Rung puts the token that ends a
    document, after which its next one begins.
    """
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    tokenizer = load_tokenizer(model)
    begin = tokenizer.decode([tokenizer.bos], special=True)
    bpe = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    if bpe.encode("a").ids[0] != tokenizer.bos:
        bpe.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos)]
        )
    config = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"bos_token": begin, "tokenizer_class": "PreTrainedTokenizerFast"}
    for name, text in (
        ("tokenizer.json", bpe.to_str()),
        ("tokenizer_config.json", json.dumps(config)),
    ):
        (folder / name).unlink()
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def write_tasks(folder: Path, tasks: Mapping[str, Sequence[Item]]) -> Path:
    """A task file of lm-eval for each of ours, over the items as we read them."""
    folder.mkdir()
    for name, items in tasks.items():
        gap = " " if all(item.prompt for item in items) else ""
        rows = [
            {"prompt": item.prompt, "choices": list(item.choices), "answer": item.answer}
            for item in items
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        cloze = {
            "output_type": "loglikelihood",
            "doc_to_target": "{{'" + gap + "' + choices[0]}}",
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        }
        choice = {
            "output_type": "multiple_choice",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "target_delimiter": gap,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "doc_to_text": "prompt" if gap else "",
            **(cloze if items[0].is_cloze else choice),
        }
        # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps(task, indent=1), encoding="utf-8")
    return folder


def run_harness(
    python: Path, out: Path, yamls: Path, tasks: Mapping[str, Any], kind: str, model_args: str
) -> Found:
    """Items of each task as the harness scored them, in the order of the file."""
    words = [
        *(str(python), "-m", "lm_eval", "--model", kind, "--model_args", model_args),
        *("--tasks", ",".join(tasks), "--include_path", str(yamls), "--batch_size", "8"),
        *("--output_path", str(out), "--log_samples", "--device", "cpu"),
    ]
    env = environment(out.parent) | {"HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "unused"}
    env.pop("PYTHONPATH")
    subprocess.run(words, check=True, env=env, stdout=sys.stderr)
    found: Found = {}
    for name in tasks:
        (path,) = out.rglob(f"samples_{name}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[name] = [_sample(s) for s in sorted(samples, key=lambda s: s["doc_id"])]
    return found


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    answers = sample["filtered_resps"]
    pairs = answers if isinstance(answers[0], list) else [answers]
    row = {"logps": [float(pair[0]) for pair in pairs]}
    return row | {m: bool(sample[m]) for m in ("acc", "acc_norm") if m in sample}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The URL of `rung serve` in float32."""
    words = [*RUNG, "serve", "model", "--store", str(folder / "store"), "--port", "0", "--json"]
    with subprocess.Popen(
        [*words, "--precision", "fp32"],
        env=environment(folder),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            told = ""
            while not told.rstrip().endswith("}\n}"):  # names of the models, then the whole
                if not (line := process.stdout.readline()):
                    raise SystemExit("`rung serve` ended before it served")
                told += line
            yield json.loads(told)["url"]
        finally:
            process.terminate()


def count_tokens(
    model: Path, tasks: Mapping[str, Sequence[Item]], *, context: int
) -> dict[str, list[np.ndarray]]:
    """Tokens of every choice of every item."""
    tokenizer = load_tokenizer(model)
    return {
        name: [
            np.array([len(s.ids) for s in choice_tree(tokenizer, item, context=context)[0][1:]])
            for item in items
        ]
        for name, items in tasks.items()
    }


def print_comparison(found: Mapping[str, Found], tokens: Mapping[str, list[np.ndarray]]) -> None:
    """Accuracies of the sides, and the largest differences between any two of them."""
    result: dict[str, Any] = {}
    for task, counts in tokens.items():
        size = np.concatenate(counts)
        logps = {side: np.concatenate([r["logps"] for r in found[side][task]]) for side in SIDES}
        measures = [m for m in ("acc", "acc_norm") if m in found[SIDES[0]][task][0]]
        figures = {
            m: {side: float(np.mean([r[m] for r in found[side][task]])) for side in SIDES}
            for m in measures
        }
        apart = {}
        for a, b in combinations(SIDES, 2):
            gap = np.abs(logps[a] - logps[b])
            differ = sum(
                x[m] != y[m]
                for x, y in zip(found[a][task], found[b][task], strict=True)
                for m in measures
            )
            apart[f"{a} / {b}"] = {
                "max": float(gap.max()),
                "max_per_token": float((gap / size).max()),
                "items_judged_otherwise": differ,
            }
        result[task] = {
            "items": len(counts),
            "choices": len(size),
            "tokens_of_a_choice": [int(size.min()), float(np.median(size)), int(size.max())],
            "largest_logp": float(np.abs(logps[SIDES[0]]).max()),
            **figures,
            "apart": apart,
        }
        print(f"{task}: {len(counts)} items, {len(size)} choices of {size.min()} to {size.max()}")
        for measure, values in figures.items():
            print("  " + measure + "".join(f"  {side} {v:.4f}" for side, v in values.items()))
        for pair, values in apart.items():
            print(
                f"  {pair:<24} max |difference| {values['max']:.2e} of a sum,"
                f" {values['max_per_token']:.2e} per token,"
                f" {values['items_judged_otherwise']} judged otherwise"
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
