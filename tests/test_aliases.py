"""Key names of other trainers: taken with a note, explained where nothing means the same."""

import pytest
from typer.testing import CliRunner

from rung.aliases import ALIASES, EXPLAINED, rename_keys
from rung.cli import app
from rung.errors import ConfigError
from rung.recipe import load_recipe, parse_entry, single_stage
from rung.stages import STAGES

PAGE = """
name: page
defaults:
  sft: {learning_rate: 1e-4}
stages:
  chats: {stage: dataset, data_files: chats.jsonl, val_size: 0.1}
  chat:
    stage: sft
    base_model: some-model
    datasets: [chats]
    num_train_epochs: 3
    warmup_ratio: 0.1
"""


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "page.yaml"
        path.write_text(text)
        return load_recipe(path, overrides=overrides)

    return load


def sft(recipe):
    return parse_entry(recipe.entries["chat"], seed=0)


def test_a_recipe_in_habitual_words(load):
    recipe = load(PAGE)
    config = sft(recipe)
    assert (config.lr, config.epochs, config.warmup) == (1e-4, 3, 0.1)
    assert recipe.entries["chat"].inputs == {"model": ("some-model",), "dataset": ("chats",)}
    chats = parse_entry(recipe.entries["chats"], seed=0)
    assert (chats.files, chats.heldout_fraction) == (("chats.jsonl",), 0.1)
    notes = "\n".join(recipe.notes)
    assert "page.yaml:10: num_train_epochs is taken as epochs" not in notes  # its own line
    assert "page.yaml:11: num_train_epochs is taken as epochs" in notes
    assert "page.yaml:4: learning_rate is taken as lr" in notes
    assert "Muon, which trains the hidden matrices here, has matrix_lr" in notes


def test_a_wrong_value_is_named_where_it_was_written(load):
    with pytest.raises(ConfigError, match=r"page.yaml:11: epochs = 'many'"):
        sft(load(PAGE.replace("epochs: 3", "epochs: many")))
    with pytest.raises(ConfigError, match=r"--set chat.num_epochs=many: epochs = 'many'"):
        sft(load(PAGE.replace("    num_train_epochs: 3\n", ""), "chat.num_epochs=many"))


@pytest.mark.parametrize(
    ("key", "other"), [("epochs: 1", "epochs"), ("num_epochs: 1", "num_train_epochs")]
)
def test_an_alias_beside_its_key_is_an_error(load, key, other):
    with pytest.raises(ConfigError, match=rf"page.yaml:\d+: num_\w+ and {other} both set epochs"):
        load(PAGE.replace("    warmup_ratio: 0.1", f"    {key}"))


def test_an_alias_in_an_entry_goes_over_the_defaults(load):
    assert sft(load(PAGE + "    learning_rate: 2e-4\n")).lr == 2e-4
    assert sft(load(PAGE, "chat.learning_rate=3e-4")).lr == 3e-4
    assert sft(load(PAGE + "    lr: 2e-4\n")).lr == 2e-4


@pytest.mark.parametrize(
    ("command", "key", "config_key"),
    [
        ("pretrain", "sequence_len", "model.context"),
        ("dpo", "pref_beta", "beta"),
        ("ppo", "beta", "kl_coefficient"),
        ("grpo", "rl_beta", "beta"),
        ("grpo", "num_generations", "answers_per_prompt"),
        ("dpo", "per_device_train_batch_size", "rankings_per_update"),
        ("reward", "max_grad_norm", "clip"),
    ],
)
def test_words_of_other_trainers_by_stage(command, key, config_key):
    stage = STAGES[command]
    inputs = {role.name: ("x",) for role in stage.roles() if role.required}
    recipe = single_stage(stage, name="m", config=None, overrides=[f"{key}=8"], inputs=inputs)
    config = parse_entry(recipe.entries["m"], seed=0)
    for part in config_key.split("."):
        config = getattr(config, part)
    assert config == 8
    assert f"--set {key}=8: {key} is taken as {config_key}" in recipe.notes


@pytest.mark.parametrize(
    ("command", "key", "message"),
    [
        ("sft", "max_length", r"unknown key 'max_length': .*overlong: shorten"),
        ("sft", "per_device_train_batch_size", "tokens_per_step"),
        ("dpo", "gradient_accumulation_steps", "rankings_per_update"),
        ("sft", "output_dir", "results go into the store"),
        ("pretrain", "model_name_or_path", "stands for model, which this stage does not have"),
        ("curate", "learning_rate", "stands for lr, which this stage does not have"),
    ],
)
def test_what_has_no_equivalent_is_explained(command, key, message):
    stage = STAGES[command]
    inputs = {role.name: ("x",) for role in stage.roles() if role.required}
    with pytest.raises(ConfigError, match=rf"^--set {key}=8: .*{message}"):
        single_stage(stage, name="m", config=None, overrides=[f"{key}=8"], inputs=inputs)


def test_a_key_of_the_stage_is_never_an_alias():
    dpo = STAGES["dpo"]
    renamed = rename_keys({"beta": 0.2}, dpo.load().Config, roles=dpo.inputs, where=str)
    assert (renamed.values, renamed.notes) == ({"beta": 0.2}, ())


def test_every_alias_stands_for_a_key_of_some_stage():
    known = {"lora_r", "lora_targets"}  # of stages with adapters
    for stage in STAGES.values():
        config = stage.load().Config
        known |= {*stage.inputs, *config.model_fields}
    for alias, keys in ALIASES.items():
        assert any(key.partition(".")[0] in known for key in keys), alias
    assert "output_dir" in EXPLAINED


def test_the_note_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["curate", "--set", "random_seed=3", "--set", "source.files=[a.txt]", "--dry-run"]
    (tmp_path / "a.txt").write_text("Hi")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "note: --set random_seed=3: random_seed is taken as seed" in result.stderr
