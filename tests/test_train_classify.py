"""The label loss against torch and by hand; evidence; the objective; the stage; resume."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from classify_tiny import labels_artefact, named_model
from torch.nn import functional
from train_tiny import context, same_bytes

from rung.engine.classify import TextClassifier, encode_texts, pack_texts, read_evidence
from rung.errors import ArtefactError, ConfigError
from rung.model.classifier import Classifier, Labelling, load_classifier, read_labelling
from rung.model.load import load_model
from rung.tokens.forest import document
from rung.tokens.tokenizer import load_tokenizer
from rung.train.label_texts import Texts, class_weights, load_labelled, split_validation
from rung.train.objectives import classify
from rung.train.objectives.classify import Config, label_loss

LABELLING = Labelling(("bad", "good"), False, "{text}", 64)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    # p = 3/4 of label 0; 1/2 of label 1
    loss, count = label_loss(logits, torch.tensor([0, 1]))
    assert (float(loss), count) == (pytest.approx(math.log(4 / 3) + math.log(2)), 2.0)
    # weights 2 and 5: the sum weighs them, and so does what it is divided by
    loss, count = label_loss(logits, torch.tensor([0, 1]), weights=torch.tensor([2.0, 5.0]))
    assert (float(loss), count) == (pytest.approx(2 * math.log(4 / 3) + 5 * math.log(2)), 7.0)
    # smoothing 0.2 of two labels: 0.9 of the true one, 0.1 of the other
    loss, _ = label_loss(logits[:1], torch.tensor([0]), smoothing=0.2)
    assert float(loss) == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4))


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0]])
    truth = torch.tensor([[1.0, 0.0]])
    loss, count = label_loss(logits, truth)
    assert (float(loss), count) == (pytest.approx(math.log(4 / 3) + math.log(2)), 2.0)
    loss, _ = label_loss(logits, truth, weights=torch.tensor([3.0, 3.0]))
    assert float(loss) == pytest.approx(3 * math.log(4 / 3) + math.log(2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_parts_add_up_to_torchs_mean(smoothing, weighted) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 4, generator=draw, dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5, 2.0, 3.0], dtype=torch.float64) if weighted else None
    single = torch.randint(0, 4, (9,), generator=draw)
    several = torch.randint(0, 2, (9, 4), generator=draw).double()
    soft = several * (1 - smoothing) + smoothing / 2
    for truth, whole in (
        (single, functional.cross_entropy(logits, single, weights, label_smoothing=smoothing)),
        (several, functional.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights)),
    ):
        parts = [
            label_loss(logits[part], truth[part], weights=weights, smoothing=smoothing)
            for part in (slice(0, 2), slice(2, 9))
        ]
        total, count = (sum(float(p[i]) for p in parts) for i in (0, 1))
        assert total / count == pytest.approx(float(whole))


@torch.no_grad()
def test_evidence_is_that_of_separate_sequences(tmp_path) -> None:
    source = named_model(tmp_path)
    tokenizer = load_tokenizer(source.path)
    labelling = Labelling(("a", "b"), False, "tell me: {text} now?", 64)
    model = Classifier(load_model(source.path), labelling)
    torch.nn.init.normal_(model.head.linear.weight)
    texts = ["good answer", "bad", "what is it here? " * 4]
    encoded = encode_texts(texts, tokenizer, labelling)
    plain = load_model(source.path)
    plain.config._attn_implementation = "eager"
    alone = []
    for text in texts:
        before, own, after = (tokenizer.encode(t) for t in ("tell me: ", text.strip(), " now?"))
        ids = torch.tensor([tokenizer.bos, *before, *own, *after])
        hidden = plain.model(ids[None]).last_hidden_state[0]
        first = 1 + len(before)
        alone.append(torch.cat([hidden[-1], hidden[first : first + len(own)].mean(0)]))
    packed = model.evidence(pack_texts(encoded.trees))
    torch.testing.assert_close(packed, torch.stack(alone), atol=1e-5, rtol=0)
    pieces = read_evidence(model, encoded.trees, microbatch_tokens=16, dtype=torch.float32)
    torch.testing.assert_close(torch.cat(list(pieces)), packed, atol=1e-5, rtol=0)
    logits = model.logits(pack_texts(encoded.trees))
    torch.testing.assert_close(logits, model.head(torch.stack(alone)), atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_lower_layers_alone_are_the_states_between(tmp_path) -> None:
    source = named_model(tmp_path)
    plain = load_model(source.path)
    plain.config._attn_implementation = "eager"
    ids = torch.tensor([[1, 5, 9, 4]])
    between = plain.model(ids, output_hidden_states=True).hidden_states[1]
    wanted = plain.model.norm(between)[0]
    model = Classifier(load_model(source.path), replace(LABELLING, layers=1))
    assert sum(".layers." in name for name in model.state_dict()) == sum(
        ".layers.0." in name for name in plain.state_dict()
    )
    tree = document(ids[0].numpy(), np.array([0, 1, 1, 0]))
    read = model.evidence(pack_texts([tree]))[0]
    torch.testing.assert_close(read[:16], wanted[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(read[16:], wanted[1:3].mean(0), atol=1e-5, rtol=0)
    with model.whole_backbone() as backbone:
        assert set(backbone.state_dict()) == set(plain.state_dict())
    assert len(model.backbone.model.layers) == 1


def test_long_texts_lose_their_end_and_keep_the_template(tmp_path) -> None:
    tokenizer = load_tokenizer(named_model(tmp_path).path)
    labelling = Labelling(("a", "b"), False, "{text} so?", 16)
    encoded = encode_texts(["short", "here there " * 30], tokenizer, labelling)
    assert encoded.truncated == 1
    assert encoded.lengths[1] == 16
    assert tokenizer.decode(encoded.trees[1][0].ids).endswith(" so?")
    assert encoded.trees[1][0].weights.sum() == 16 - 1 - len(tokenizer.encode(" so?"))


@pytest.mark.parametrize("template", ["Review:", "{text} or {text}", "{text}" + " now" * 40])
def test_templates_that_cannot_work_are_refused(tmp_path, template) -> None:
    tokenizer = load_tokenizer(named_model(tmp_path).path)
    labelling = Labelling(("a", "b"), False, template, 16)
    with pytest.raises(ConfigError, match=r"\{text\}|max_tokens 16 leaves"):
        encode_texts(["x"], tokenizer, labelling)


def test_probabilities_are_cooled() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    cool = Labelling(("a", "b"), False, "{text}", 64, temperature=2.0)
    several = Labelling(("a", "b"), True, "{text}", 64, temperature=2.0, thresholds=(0.5, 0.5))
    e = math.e
    assert cool.probabilities(logits)[0].tolist() == pytest.approx([e / (1 + e), 1 / (1 + e)])
    assert several.probabilities(logits)[0].tolist() == pytest.approx([e / (1 + e), 0.5])


def test_a_validation_part_has_a_share_of_every_label() -> None:
    truth = np.array([0] * 100 + [1] * 20 + [2] * 2)
    texts = Texts([str(i) for i in range(122)], ["t"] * 122, truth)
    fit, aside = split_validation(texts, fraction=0.1, seed=0)
    assert np.bincount(aside.truth, minlength=3).tolist() == [10, 2, 0]
    assert sorted(fit.ids + aside.ids) == sorted(texts.ids)
    again, _ = split_validation(texts.take(range(121, -1, -1)), fraction=0.1, seed=0)
    assert set(again.ids) == set(fit.ids)


def test_balanced_weights_by_hand() -> None:
    # 8 texts, 2 labels, 6 and 2 of them
    assert class_weights(np.array([0] * 6 + [1] * 2), 2).tolist() == pytest.approx([8 / 12, 8 / 4])
    several = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], dtype=np.float32)
    assert class_weights(several, 2).tolist() == pytest.approx([1 / 3, 3.0])


# the stage

LORA = {"adapter": "lora", "lora_r": 4, "lr": 2e-2, "epochs": 6, "precision": "fp32"}
FROZEN = Config(epochs=30, lr=0.01, precision="fp32", validation_fraction=0.15)
TRAINED = Config(backbone="trained", epochs=6, lr=5e-3, precision="fp32", validation_fraction=0.15)


@pytest.mark.parametrize("config", [FROZEN, TRAINED], ids=["frozen", "trained"])
def test_the_stage_learns_labels_of_texts_it_never_saw(tmp_path, config) -> None:
    inputs = {"model": named_model(tmp_path), "labels": labels_artefact(tmp_path / "labels")}
    first = context(tmp_path / "a", **inputs)
    notes = classify.run(first, config)
    # two labels of the same size; a random backbone knows nothing of words beforehand
    assert notes["figures"]["accuracy"] > 0.75
    assert notes["figures"]["macro_f1"] > 0.75
    assert notes["counts"]["heldout_texts"] == 60
    report = json.loads((first.out / "classifier.json").read_text())
    assert np.sum(report["heldout"]["confusion"]) == 60
    assert report["temperature"] != 1.0
    assert (first.out / "model.safetensors").is_file() == (config.backbone == "trained")
    assert any("held-out accuracy" in line for line in first.progress.lines)

    second = context(tmp_path / "b", **inputs)
    classify.run(second, config)
    names = sorted(path.name for path in first.out.iterdir())
    assert same_bytes(first.out, second.out, names)


def test_an_adapter_with_a_head(tmp_path) -> None:
    inputs = {"model": named_model(tmp_path), "labels": labels_artefact(tmp_path / "labels")}
    where = context(tmp_path / "a", **inputs)
    notes = classify.run(where, Config(validation_fraction=0.15, **LORA))
    assert notes["figures"]["accuracy"] > 0.75
    names = {path.name for path in where.out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "head.safetensors"} <= names
    assert "model.safetensors" not in names
    folder = placed(where, tmp_path)
    assert_measured_again(folder, load_labelled(inputs["labels"]), notes)


def test_a_frozen_backbone_with_an_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="leave the adapter out"):
        Config(backbone="frozen", adapter="lora")
    assert Config(adapter="lora").resolved().backbone == "trained"
    assert Config().resolved().backbone == "frozen"


def placed(where, tmp_path):
    """What a stage wrote, beside the model it came from, as in a store."""
    target = tmp_path / "classifier"
    where.out.rename(target)
    return target


@pytest.mark.parametrize("config", [FROZEN, TRAINED], ids=["frozen", "trained"])
def test_a_saved_classifier_gives_the_probabilities_it_was_measured_with(tmp_path, config) -> None:
    inputs = {"model": named_model(tmp_path), "labels": labels_artefact(tmp_path / "labels")}
    where = context(tmp_path / "a", **inputs)
    notes = classify.run(where, config)
    folder = placed(where, tmp_path)
    assert_measured_again(folder, load_labelled(inputs["labels"]), notes)


def assert_measured_again(folder, data, notes):
    classifier = TextClassifier(folder, device="cpu")
    classifier.dtype = torch.float32
    found = classifier.predict(data.heldout.texts, microbatch_tokens=64)
    chosen = np.array([data.labels.index(one.labels[0]) for one in found])
    share = float((chosen == data.heldout.truth).mean())
    assert share == pytest.approx(notes["figures"]["accuracy"], abs=1e-6)
    truth = [data.labels[t] for t in data.heldout.truth]
    right = [one.probabilities[label] for one, label in zip(found, truth, strict=True)]
    report = json.loads((folder / "classifier.json").read_text())
    assert -np.log(right).mean() == pytest.approx(report["heldout"]["log_loss"], abs=1e-4)
    assert all(sum(one.probabilities.values()) == pytest.approx(1) for one in found)


def test_several_labels(tmp_path) -> None:
    labels = labels_artefact(tmp_path / "labels", num=300, multi_label=True)
    where = context(tmp_path / "a", model=named_model(tmp_path), labels=labels)
    notes = classify.run(where, FROZEN.model_copy(update={"class_weights": "balanced"}))
    assert notes["figures"]["micro_f1"] > 0.8
    assert "accuracy" not in notes["figures"]
    labelling = read_labelling(where.out)
    assert labelling.multi_label
    assert len(labelling.thresholds) == 2
    classifier = TextClassifier(placed(where, tmp_path), device="cpu")
    found = classifier.predict(load_labelled(labels).heldout.texts)
    assert {len(one.labels) for one in found} == {0, 1, 2}
    for one in found:
        cut = dict(zip(labelling.labels, labelling.thresholds, strict=True))
        assert set(one.labels) == {k for k, p in one.probabilities.items() if p >= cut[k]}


def test_the_report_does_not_see_held_out_labels_when_it_calibrates(tmp_path) -> None:
    """Other held-out labels change the figures, and neither head nor temperature."""
    folder = tmp_path / "labels"
    inputs = {"model": named_model(tmp_path), "labels": labels_artefact(folder)}
    first, second = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    classify.run(first, FROZEN)
    held = (folder / "heldout.jsonl").read_text()
    swapped = (
        held.replace('["good"]', "[?]").replace('["bad"]', '["good"]').replace("[?]", '["bad"]')
    )
    (folder / "heldout.jsonl").write_text(swapped)
    notes = classify.run(second, FROZEN)
    assert same_bytes(first.out, second.out, ["head.safetensors"])
    assert read_labelling(first.out) == read_labelling(second.out)
    assert notes["figures"]["accuracy"] < 0.2


def test_few_texts_are_neither_validated_nor_calibrated(tmp_path) -> None:
    labels = labels_artefact(tmp_path / "labels", num=30)
    where = context(tmp_path / "a", model=named_model(tmp_path), labels=labels)
    classify.run(where, FROZEN)
    assert read_labelling(where.out).temperature == 1.0
    assert any("not calibrated" in line for line in where.progress.lines)


@pytest.mark.parametrize("config", [FROZEN, TRAINED], ids=["frozen", "trained"])
def test_a_killed_run_ends_in_the_same_bytes(tmp_path, monkeypatch, config) -> None:
    inputs = {"model": named_model(tmp_path), "labels": labels_artefact(tmp_path / "labels")}
    whole, killed = context(tmp_path / "a", **inputs), context(tmp_path / "b", **inputs)
    classify.run(whole, config)
    steps = {"left": 20}
    after = classify.ClassifyObjective.after_iteration

    def stop(self, iteration, metrics):
        steps["left"] -= 1
        if not steps["left"]:
            raise KeyboardInterrupt
        return after(self, iteration, metrics)

    monkeypatch.setattr(classify.ClassifyObjective, "after_iteration", stop)
    with pytest.raises(KeyboardInterrupt):
        classify.run(killed, config)
    classify.run(killed, config)
    assert any("resumed at step" in line for line in killed.progress.lines)
    assert same_bytes(whole.out, killed.out, sorted(p.name for p in whole.out.iterdir()))


def test_accumulated_microbatches_are_the_whole_batch(tmp_path) -> None:
    source, labels = named_model(tmp_path), labels_artefact(tmp_path / "labels")
    data = load_labelled(labels)
    tokenizer = load_tokenizer(source.path)
    encoded = encode_texts(data.train.texts, tokenizer, LABELLING)
    grads = []
    for microbatch in (64, 100_000):
        model = Classifier(load_model(source.path), LABELLING)
        torch.nn.init.ones_(model.head.linear.weight)
        config = TRAINED.model_copy(
            update={"microbatch_tokens": microbatch, "class_weights": "balanced"}
        )
        nothing = (encode_texts([], tokenizer, LABELLING), data.train.take([]))
        objective = classify.ClassifyObjective(
            model, (encoded, data.train), config, validation=nothing
        )
        (batches,) = objective.updates(0)
        parts = [objective.loss(batch) for batch in batches]
        sum(part.loss for part in parts).backward()
        count = sum(part.count for part in parts)
        grads.append(model.backbone.model.embed_tokens.weight.grad / count)
        assert (len(batches) > 1) == (microbatch == 64)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-4)


def test_a_plain_model_is_not_taken_for_a_classifier_nor_a_head_without_its_model(tmp_path) -> None:
    source = named_model(tmp_path)
    with pytest.raises(ArtefactError, match="not a classifier"):
        load_classifier(source.path)
    labels = labels_artefact(tmp_path / "labels", num=40)
    where = context(tmp_path / "a", model=source, labels=labels)
    classify.run(where, FROZEN.model_copy(update={"epochs": 1}))
    with pytest.raises(ArtefactError, match="head on the frozen model model-id"):
        load_classifier(where.out)
