"""Recipes: every mistake is found with its file and line and the way out."""

from pathlib import Path

import pytest
from toy.table import RECIPE, STAGES

from rung.errors import ConfigError
from rung.recipe import load_recipe, parse_entry, single_stage
from rung.stages import STAGES as REAL
from rung.yamlfile import parse_yaml

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "page.yaml"
        path.write_text(text)
        return path

    return write


def load(path, *overrides):
    return load_recipe(path, overrides=overrides, stages=STAGES)


def config(recipe, entry):
    return parse_entry(recipe.entries[entry], seed=recipe.seed).model_dump()


def test_entries_inputs_defaults_and_seed(write):
    recipe = load(write(RECIPE))
    assert recipe.name == "ladder"
    assert list(recipe.entries) == ["text", "base", "other", "scores"]
    assert recipe.entries["other"].inputs == {"corpus": ("text",), "replay": ("text",)}
    assert recipe.entries["scores"].inputs == {"models": ("base", "other"), "corpora": ("text",)}
    assert config(recipe, "base")["every"] == 3
    assert config(recipe, "base")["seed"] == 7
    assert config(recipe, "other")["seed"] == 1
    assert recipe.artefact_name("base") == "ladder/base"


def test_overrides_reach_nested_keys_lists_and_the_seed(write):
    recipe = load(
        write(RECIPE),
        "seed=3", "text.shape.width=9", "base.lr=2e-4", "scores.models=[other]",
        "defaults.train.steps=5", "name=mine",
    )  # fmt: skip
    assert config(recipe, "text") | {"folder": ""} == {
        "count": 30, "shape": {"width": 9}, "seed": 3, "folder": "",
    }  # fmt: skip
    assert config(recipe, "base")["lr"] == 2e-4
    assert config(recipe, "base")["steps"] == 5
    assert recipe.entries["scores"].inputs["models"] == ("other",)
    assert recipe.name == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base.lr", "write it as entry.key=value"),
        ("bse.lr=1", r"no entry 'bse'.*did you mean 'base'"),
        ("text.count.deep=1", "'count' holds 30, which has no keys"),
        ("base.lr={", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_explained(write, override, message):
    with pytest.raises(ConfigError, match=message):
        load(write(RECIPE), override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds NoneType; a mapping"),
        ("name: x\n", "no stages"),
        ("stagse: {}\n", r"page.yaml:1: unknown key 'stagse'; did you mean 'stages'"),
        ("name: x\nstages:\n  a: {stage: wrds}\n", r"page.yaml:3: unknown stage 'wrds'.*'words'"),
        ("stages:\n  a: {count: 3}\n", r"page.yaml:2: entry 'a' has no `stage`"),
        ("stages:\n  a: words\n", r"page.yaml:2: `a` holds 'words'; keys are expected"),
        ("stages:\n  a: {stage: train}\n", r"page.yaml:2: train needs `corpus` \(a corpus\)"),
        ("stages:\n  a: {stage: train, corpus: [x, y]}\n", "takes one corpus, not 2"),
        ("stages:\n  a: {stage: train, corpus: 3}\n", "corpus = 3: a name"),
        ("stages:\n  a: {stage: score, models: [x, x]}\n", "names the same thing twice"),
        ("stages:\n  a b: {stage: words}\n", "'a b' is not a name"),
        ("stages:\n  seed: {stage: words}\n", "cannot be called 'seed'"),
        ("stages:\n  a: {stage: words}\n  a: {stage: words}\n", r":3: key 'a' is there twice.*:2"),
        ("stages:\n  a: {stage: words\n", r"page.yaml:\d: not valid YAML"),
        ("stages:\n  a: &x {stage: words}\n  b: *x\n", "anchors and aliases"),
        ("seed: one\nstages: {a: {stage: words}}\n", r"page.yaml:1: seed = 'one'"),
        ("defaults: {wrds: {}}\nstages: {a: {stage: words}}\n", "unknown stage 'wrds'"),
        ("stages: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_mistakes_have_a_line_and_a_way_out(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load(write(text))


def test_a_missing_or_binary_file(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        load(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("base.lrr=1", "^--set base.lrr=1: unknown key 'lrr'"),
        ("base.lr=[much]", r"^--set base.lr=\[much\]: lr = "),
        ("text.shape={widht: 2}", r"^--set text.shape=\{widht: 2\}: unknown key 'shape.widht'"),
        ("text.shape.width=0", "^--set text.shape.width=0: shape.width = 0: "),
        ("text.shape.widht=2", "^--set text.shape.widht=2: unknown key 'shape.widht'"),
        ("base.corpus=[text, other]", r"^--set base.corpus=\[text, other\]: `corpus` takes one"),
        ("other.stage=wrds", "^--set other.stage=wrds: unknown stage 'wrds'"),
        ("seed=one", "^--set seed=one: seed = 'one'"),
        ("name=a b", "^--set name=a b: 'a b' is not a name"),
    ],
)
def test_what_comes_from_the_command_line_has_no_line_of_the_recipe(write, override, message):
    def read(page):
        recipe = load(page, override)
        return [config(recipe, entry) for entry in recipe.entries]

    with pytest.raises(ConfigError, match=message):
        read(write(RECIPE))


def test_beside_an_override_the_recipe_keeps_its_lines(write):
    page = write("stages:\n  a:\n    stage: words\n    shape: {width: 2}\n    cuont: 3\n")
    with pytest.raises(ConfigError, match=r"page.yaml:5: unknown key 'cuont'"):
        config(load(page, "a.shape.width=3"), "a")


def test_a_stage_command_names_its_own_override(tmp_path):
    recipe = single_stage(
        STAGES["train"], name="m", config=None, overrides=["evry=2"], inputs={"corpus": ("text",)}
    )
    with pytest.raises(ConfigError, match=r"^--set evry=2: unknown key 'evry'.*mean 'every'"):
        parse_entry(recipe.entries["m"], seed=0)


def test_a_missing_recipe_names_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "mine").mkdir()
    for name in ("recipes/quickstart.yaml", "recipes/your-text.yaml", "mine/ladder.yaml"):
        (tmp_path / name).write_text(RECIPE)
    near = r"no file quikstart; did you mean recipes.quickstart.yaml\?"
    with pytest.raises(ConfigError, match=near):
        load(Path("quikstart"))
    with pytest.raises(ConfigError, match=r"no file mine.lader.yaml; .* mine.ladder.yaml"):
        load(Path("mine/lader.yaml"))
    with pytest.raises(ConfigError, match=r"no file zzz.yaml; there is recipes.quickstart.yaml, "):
        load(Path("zzz.yaml"))
    monkeypatch.chdir(tmp_path / "mine")
    (tmp_path / "mine" / "ladder.yaml").unlink()
    with pytest.raises(ConfigError, match=r"no file zzz.yaml$"):
        load(Path("zzz.yaml"))


def test_two_wrong_values_are_both_named_with_their_lines(write):
    page = write("stages:\n  a:\n    stage: words\n    count: many\n    seed: [1]\n")
    with pytest.raises(ConfigError) as caught:
        config(load(page), "a")
    first, second = str(caught.value).splitlines()
    assert "page.yaml:4: count = 'many'" in first
    assert "page.yaml:5: seed = [1]" in second


def test_numbers_are_read_the_way_people_write_them():
    text = "[1e-3, 3e4, -2.5E-1, 1_000, 4m, 0.1, '1e-3']"
    assert parse_yaml(text, path="x").value == [1e-3, 3e4, -0.25, 1000, "4m", 0.1, "1e-3"]


def test_one_stage_from_the_command_line(tmp_path):
    page = tmp_path / "train.yaml"
    page.write_text("steps: 4\nlrr: 2\n")
    given = {"corpus": ("text",), "replay": ()}
    recipe = single_stage(
        STAGES["train"], name="m", config=page, overrides=["every=2"], inputs=given
    )
    with pytest.raises(ConfigError, match=r"train.yaml:2: unknown key 'lrr'.*mean 'lr'"):
        parse_entry(recipe.entries["m"], seed=0)
    page.write_text("steps: 4\n")
    recipe = single_stage(
        STAGES["train"], name="m", config=page, overrides=["every=2", "seed=5"], inputs=given
    )
    assert recipe.entries["m"].inputs == {"corpus": ("text",)}
    assert config(recipe, "m")["every"] == 2
    assert config(recipe, "m")["seed"] == 5
    assert recipe.artefact_name("m") == "m"
    page.write_text("corpus: text\n")
    with pytest.raises(ConfigError, match="give 'corpus' on the command line"):
        single_stage(STAGES["train"], name="m", config=page, overrides=[], inputs=given)
    with pytest.raises(ConfigError, match="train needs `corpus`"):
        single_stage(STAGES["train"], name="m", config=None, overrides=[], inputs={})


def test_every_recipe_of_the_repository_is_well_formed():
    pages = sorted((REPOSITORY / "recipes").glob("*.yaml"))
    assert pages
    for page in pages:
        recipe = load_recipe(page, stages=REAL)
        for entry in recipe.entries.values():
            for role in entry.stage.roles():
                for reference in entry.inputs.get(role.name, ()):
                    assert recipe.entries[reference].stage.output == role.kind, (page, entry.name)
