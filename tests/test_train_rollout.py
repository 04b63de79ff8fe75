"""Prompts of a dataset: what is left out, and what is said where there are none."""

from pathlib import Path

import pytest
from train_tiny import tiny_tokenizer

from rung.errors import DataError
from rung.text.rows import write_rows
from rung.train.rollout import load_prompts


@pytest.fixture
def tokenizer(tmp_path: Path):
    return tiny_tokenizer(tmp_path / "tokenizer")


def prompts(path: Path, *questions: str) -> Path:
    rows = [{"messages": [{"role": "user", "content": question}]} for question in questions]
    write_rows(path, rows)
    return path


def test_long_prompts_are_left_out_and_counted(tokenizer, tmp_path: Path) -> None:
    path = prompts(tmp_path / "prompts.jsonl", "what is it?", "tell me now " * 50)
    found, dropped = load_prompts(path, tokenizer, max_tokens=40)
    assert (len(found), dropped) == (1, 1)
    with pytest.raises(DataError, match=r"no prompt of at most 3 tokens \(2 longer\); lower max_"):
        load_prompts(path, tokenizer, max_tokens=3)


def test_a_dataset_without_prompts_says_how_they_are_made(tokenizer, tmp_path: Path) -> None:
    path = prompts(tmp_path / "prompts.jsonl")
    told = (
        r"prompts\.jsonl .*no prompts.* `prompts` of stage instruct.* `prompts_fraction` of .*set"
    )
    with pytest.raises(DataError, match=told):
        load_prompts(path, tokenizer, max_tokens=40)
    with pytest.raises(DataError, match=r"heldout\.jsonl .*`heldout_fraction`.*eval_prompts"):
        load_prompts(prompts(tmp_path / "heldout.jsonl"), tokenizer, max_tokens=40)
