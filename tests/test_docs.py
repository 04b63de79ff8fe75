"""README and docs say what is so: stages, tree, commands, options, recipes, shapes, links."""

import itertools
import json
import re
import shlex
import typing
from pathlib import Path

import pytest
import typer.main

from rung.cli import app
from rung.config import Config
from rung.evals.ladder import PREFERRED
from rung.feedback.shapes import SHAPES as FEEDBACK_SHAPES
from rung.model.shape import SIZES, ModelConfig, resolve
from rung.plan import prepare
from rung.recipe import load_recipe, parse_entry, single_stage
from rung.stages import STAGES
from rung.store.store import Store
from rung.tasks.files import SHAPES as CONVERSATION_SHAPES
from rung.text.rows import find_shape

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")
OWN_DATA = (ROOT / "docs/your-own-data.md").read_text(encoding="utf-8")
STAGES_PAGE = (ROOT / "docs/stages.md").read_text(encoding="utf-8")
CLI = typer.main.get_command(app)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text, language):
    return [body for found, body in FENCE.findall(text) if found == language]


def section(text, title):
    """The text under a heading, up to the next one of its level."""
    level = title.split(" ")[0]
    start = text.index(f"\n{title}\n")
    end = re.search(rf"^#{{1,{len(level)}}} ", text[start + len(title) + 2 :], re.MULTILINE)
    return text[start : start + len(title) + 2 + end.start()] if end else text[start:]


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table(text, head):
    """Rows of the first table whose first column is called `head`."""
    lines = text[text.index(f"| {head} |") :].split("\n\n")[0].splitlines()
    return [cells(line) for line in lines[2:] if line.startswith("|")]


def commands(text):
    """Every `rung ...` line of the fenced blocks, as words; comments and continuations resolved."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(blocks(text, "")))
    lines = [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("rung ")]


FENCED = [(page.name, words) for page in PAGES for words in commands(page.read_text("utf-8"))]


def named(case):
    return " ".join([case[0], "rung", *case[1]])


def test_commands_are_found_in_the_pages():
    assert {"README.md", "your-own-data.md"} <= {page for page, _ in FENCED}
    assert len(FENCED) > 20


def test_stage_table_of_the_readme_is_the_table_of_stages():
    expected = [
        [
            f"`{stage.command}`",
            ", ".join(r if spec == r else f"{r}: {spec}" for r, spec in stage.inputs.items())
            or "-",
            stage.output,
            stage.help,
        ]
        for stage in STAGES.values()
    ]
    assert table(README, "command") == expected


def test_tree_of_the_readme_lists_what_is_there():
    tree = blocks(section(README, "## Tree"), "")[0]
    top = re.findall(r"^(\w[\w.]*)/ ", tree, re.MULTILINE)
    made = {"build", "dist", "__pycache__"}
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert set(top) == folders - made
    inside = re.findall(r"^  (\w[\w.]*/?) ", tree, re.MULTILINE)
    rooms = {f"{path.parent.name}/" for path in (ROOT / "rung").glob("*/__init__.py")}
    assert {name for name in inside if name.endswith("/")} == rooms
    for name in inside:
        assert (ROOT / "rung" / name).exists(), name


@pytest.mark.parametrize("case", FENCED, ids=named)
def test_fenced_commands_parse(case):
    """Parsed by the real command line: the command exists, so do its options, none is missing."""
    name, *words = case[1]
    assert name in CLI.commands, f"no command {name!r}"
    if "--help" not in words:
        CLI.commands[name].make_context(name, words)


def test_inline_commands_exist_with_their_options():
    checked = 0
    for page in PAGES:
        for code in re.findall(r"`rung ([^`\n]+)`", page.read_text("utf-8")):
            name, *words = shlex.split(code)
            if name == "--help":
                continue
            assert name in CLI.commands, f"{page.name}: rung {code}"
            known = {o for p in CLI.commands[name].params for o in (*p.opts, *p.secondary_opts)}
            options = {word.split("=")[0] for word in words if word.startswith("-")}
            assert options <= known | {"--help"}, f"{page.name}: rung {code}"
            checked += 1
    assert checked > 10


def values_of(words, option):
    return [after for word, after in itertools.pairwise(words) if word == option]


@pytest.mark.parametrize("case", [c for c in FENCED if c[1][0] == "run"], ids=named)
def test_recipes_of_the_commands_load_with_their_overrides(case, tmp_path):
    """Every key that --set names is a key, and every entry that --until names an entry."""
    words = case[1]
    until = values_of(words, "--until")
    recipe = load_recipe(ROOT / words[1], overrides=values_of(words, "--set"))
    assert prepare(recipe, Store(tmp_path), until=until[0] if until else None)


@pytest.mark.parametrize("case", [c for c in FENCED if c[1][0] in STAGES], ids=named)
def test_overrides_of_single_stages_are_options(case):
    stage, words = STAGES[case[1][0]], case[1]
    recipe = single_stage(
        stage,
        name=stage.command,
        config=None,
        overrides=values_of(words, "--set"),
        inputs={r.name: tuple(values_of(words, f"--{r.name}")) for r in stage.roles()},
    )
    parse_entry(recipe.entries[stage.command], seed=0)


def test_every_recipe_that_is_named_exists_and_every_recipe_is_named(tmp_path):
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named_recipes = set(re.findall(r"recipes/([\w-]+\.yaml)", text))
    assert named_recipes == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    for name in named_recipes:
        assert prepare(load_recipe(ROOT / "recipes" / name), Store(tmp_path))


def test_inline_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    targets = set(re.findall(r"(?:`|^)make ([\w-]+)", text, re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^[\w -]*\b{target}\b[\w -]*:", makefile, re.MULTILINE), target


def anchors(text):
    """GitHub's anchors of the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_ascii(page):
    page.read_text("ascii")


def default_of(cls, path):
    """The default of an option such as "model.size"; KeyError where there is none."""
    *above, last = path.split(".")
    for key in above:
        annotation = cls.model_fields[key].annotation
        kinds = [annotation, *typing.get_args(annotation)]
        cls = next(k for k in kinds if isinstance(k, type) and issubclass(k, Config))
    return cls.model_fields[last].get_default()


def shown(value):
    if value in (None, "", ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{value}`" if isinstance(value, str) else str(value)


@pytest.mark.parametrize("command", STAGES)
def test_stages_page_has_the_options_with_their_defaults(command):
    rows = table(section(STAGES_PAGE, f"## {command}"), "option")
    assert rows
    for option, default, _ in rows:
        value = default_of(STAGES[command].load().Config, option.strip("`"))
        if not default.startswith("("):  # "(questions about Python)": too long for a cell
            assert default == shown(value), f"{command}: {option}"


def test_shared_options_of_the_stages_page_hold_for_every_training_stage():
    rows = table(STAGES_PAGE, "option")
    for command in ("pretrain", "continue", "sft", "reward", *PREFERRED, "ppo", "grpo"):
        for option, default, _ in rows:
            if (command, option) not in {("ppo", "`checkpoints`"), ("grpo", "`checkpoints`")}:
                value = default_of(STAGES[command].load().Config, option.strip("`"))
                assert default == shown(value), f"{command}: {option}"


@pytest.mark.parametrize(
    ("title", "shapes"),
    [("## Conversations", CONVERSATION_SHAPES), ("## Preferences", FEEDBACK_SHAPES)],
)
def test_worked_examples_are_of_the_shapes_they_show(title, shapes):
    """One example for each shape that is read, each taken by the real reader."""
    text = section(OWN_DATA, title)
    seen = set()
    for line in blocks(text, "jsonl")[0].splitlines():
        row = json.loads(line)
        shape = find_shape(row, shapes, where="docs")
        assert shape.read({**row, "where": "docs"})
        seen.add(shape.name)
    listed = {row[0] for row in table(text, "shape")}
    assert seen == listed == {shape.name for shape in shapes}


def test_sizes_are_those_of_the_dial():
    for size, parameters, context, *_ in table(OWN_DATA, "size"):
        vocab = {"1m": 4096, "4m": 4096, "10m": 4096, "30m": 8192}.get(size, 32768)
        shape = resolve(ModelConfig(size=size))
        assert parameters == f"{shape.num_parameters(vocab) / 1e6:.1f} M"
        assert context == str(shape.context)
    listed = section(README, "## Sizes").split(".")[0]
    assert re.findall(r"`(\d+[mb])`", listed) == list(SIZES)
