"""Stage `ngram`: bits per byte of an interpolated 5-gram model over the tokens a model saw.

The yardstick for a base model: what counting alone does with the same text, on the same held-out
documents as `evaluate`.
"""

from typing import Any

import numpy as np
from pydantic import Field

import rung.config
from rung.errors import DataError
from rung.evals.evaluate import write_evaluation
from rung.evals.fivegram import train_ngram
from rung.evals.heldout import HeldoutConfig, document_ids, read_heldout
from rung.evals.likelihood import item_rows, summarise
from rung.store.artefact import Artefact
from rung.store.context import Notes, StageContext
from rung.tokens.corpus import CorpusTokens, load_corpus_tokens
from rung.tokens.stream import DocumentStream
from rung.tokens.tokenizer import load_tokenizer

WHOLE_DOCUMENTS = 2**31  # a context longer than any document: the stream cuts none


class Config(rung.config.Config):
    """What is counted and measured."""

    seed: int = Field(0, description="of the sample of held-out documents; as in `evaluate`")
    order: int = Field(5, ge=2, le=9, description="tokens of the longest n-gram")
    tokens: int = Field(0, ge=0, description="training tokens; 0 takes as many as the model saw")
    heldout: HeldoutConfig = Field(
        HeldoutConfig(), description="which held-out text is read; as in `evaluate`"
    )


def run(context: StageContext, config: Config) -> Notes:
    """Counts what `model` was trained on and measures held-out text into evaluation.json."""
    model, corpus = context.input("model"), context.input("corpus")
    tokenizer = load_tokenizer(context.input("tokenizer").path)
    path = corpus.file("documents.parquet")
    documents = read_heldout(path, config.heldout, seed=config.seed)
    if not documents:
        raise DataError(
            f"corpus {corpus.short_id} has no held-out documents; an n-gram model is measured on "
            "them: give curate a heldout share above 0"
        )
    progress = context.progress
    progress.start("ngram", total=3, unit="parts")
    train = load_corpus_tokens(path, tokenizer, split="train")
    asked = config.tokens or seen_tokens(model)
    pieces = seen_documents(train, num_tokens=asked, seed=int(model.config.get("seed", 0)))
    counted = sum(len(piece) for piece in pieces)
    progress.update(1, tokens=counted)
    grams = train_ngram(
        pieces, vocab_size=tokenizer.vocab_size, bos=tokenizer.bos, order=config.order
    )
    progress.update(2)
    bits = grams.document_bits(document_ids(tokenizer, documents))
    progress.update(3)
    progress.finish()
    result: dict[str, Any] = {
        "model": model.id,
        "settings": config.model_dump(mode="json"),
        "ngram": {
            "order": config.order,
            "smoothing": "interpolated modified Kneser-Ney",
            "tokens": counted,
            "tokens_seen_by_model": asked,
            "tokens_of_corpus": train.num_tokens,
            "grams": [len(level.grams) for level in grams.levels],
        },
        "likelihood": {corpus.id: summarise(documents, bits, seed=config.seed)},
        "skipped": [],
    }
    write_evaluation(context.out, result, item_rows(documents, bits, corpus=corpus.id))
    bpb = result["likelihood"][corpus.id]["total"]["value"]
    return {"figures": {"heldout_bpb": bpb, "tokens": counted}}


def seen_tokens(model: Artefact) -> int:
    """Trained tokens of a model, from its notes or its config; DataError when neither says."""
    for source in (model.notes, model.config):
        value = source.get("tokens")
        if isinstance(value, (int, float)) and value > 0:
            return int(value)
    raise DataError(
        f"model {model.short_id} does not say how many tokens it was trained on; set tokens to "
        "the number, so that the n-gram model counts the same text"
    )


def seen_documents(corpus: CorpusTokens, *, num_tokens: int, seed: int) -> list[np.ndarray]:
    """The first `num_tokens` of the stream that training reads with this seed, as documents.

    Documents are left whole (the model's context cuts them), in favour of the n-gram model. A
    second epoch adds nothing: counting the same text twice would only break the smoothing.
    """
    tokens = min(num_tokens, corpus.num_tokens)
    stream = DocumentStream(corpus, seed=seed, tokens_per_batch=tokens, context=WHOLE_DOCUMENTS)
    return [tree[0].ids[1:] for tree in stream.batch(0)]
