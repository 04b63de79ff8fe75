"""Every verb of the command line, as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from toy.table import RECIPE
from toy.table import STAGES as TOY
from typer.testing import CliRunner

import rung.stages
from rung.cli import app
from rung.cli_output import guarded
from rung.cli_run import make_stage_command
from rung.errors import ArtefactError
from rung.store.store import Store

HERE = Path(__file__).parent
VERBS = [
    "run",
    "chat",
    "generate",
    "import",
    "export",
    "predict",
    "serve",
    "report",
    "ls",
    "show",
    "lineage",
    "diff",
    "verify",
    "merge",
    "gc",
    "doctor",
    "curate",
    "tokenizer",
    "pretrain",
    "continue",
    "instruct",
    "dataset",
    "labels",
    "sft",
    "classify",
    "collect",
    "feedback",
    "reward",
    "dpo",
    "ppo",
    "grpo",
    "ngram",
    "evaluate",
]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command line in an empty folder with the toy stages beside the real ones."""
    for command, stage in TOY.items():
        monkeypatch.setitem(rung.stages.STAGES, command, stage)
    (tmp_path / "ladder.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RUNG_STORE", raising=False)

    def call(*words, code=0, on=app, input=None):
        result = CliRunner().invoke(on, list(words), input=input)
        unexpected = result.exception and not isinstance(result.exception, SystemExit)
        assert not unexpected, result.exception
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.fixture
def built(call):
    call("run", "ladder.yaml", "--no-report")
    return call


def test_help_lists_the_verbs_and_each_has_an_example(call):
    listed = call("--help").output
    for verb in VERBS:
        assert f"\n  {verb} " in listed
        page = call(verb, "--help").output
        assert f"Example: rung {verb}" in page, page
        assert verb == "chat" or "--json" in page


def test_the_stage_commands_have_an_option_per_role(call):
    page = call("evaluate", "--help").output
    for role, mark in (("model", "[required]"), ("corpora", "repeat"), ("baseline", "A model.")):
        line = next(line for line in page.splitlines() if f"--{role} " in line)
        assert mark in line
    assert "Missing option '--corpus'" in call("pretrain", code=2).stderr


def test_run_says_one_line_a_stage(call):
    said = call("run", "ladder.yaml", "--no-report").stdout
    store = Store()
    for entry in ("text", "base", "other", "scores"):
        artefact = store.open(entry)
        line = next(line for line in said.splitlines() if artefact.short_id in line)
        assert line.startswith(entry)
        assert "built in" in line
    assert "4 built, 0 re-used" in said
    assert "0 built, 4 re-used" in call("run", "ladder.yaml", "--no-report").stdout


def test_run_json_is_one_value_and_progress_goes_to_stderr(call):
    result = call("run", "ladder.yaml", "--no-report", "--json", "--set", "seed=2")
    content = json.loads(result.stdout)
    assert [e["entry"] for e in content["entries"]] == ["text", "base", "other", "scores"]
    assert all(e["built"] for e in content["entries"])
    assert "built in" in result.stderr


def test_dry_run_prints_the_plan_and_builds_nothing(call):
    said = call("run", "ladder.yaml", "--dry-run").stdout
    assert "text    words  build   3.0 s" in said
    assert "nothing is known yet: base, other, scores" in said
    content = json.loads(call("run", "ladder.yaml", "--dry-run", "--json").stdout)
    assert content["total"]["seconds"] == 3.0
    assert len(content["entries"]) == 4
    assert not Store().ids()
    call("run", "ladder.yaml", "--no-report", "--until", "base")
    said = call("run", "ladder.yaml", "--dry-run").stdout
    assert f"re-used {Store().open('base').short_id}" in said


def test_mistakes_end_with_code_2_and_one_sentence(call):
    result = call("run", "ladder.yaml", "--set", "base.lrr=1", code=2)
    assert result.stderr.startswith("error: ")
    assert "did you mean 'lr'" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert "no file none.yaml" in call("run", "none.yaml", code=2).stderr
    assert "is empty" in call("show", "x", code=2).stderr
    assert "no recipe has been run" in call("report", code=2).stderr


def test_one_stage_by_its_own_command(built):
    one = typer.Typer()
    one.command("train")(guarded(make_stage_command(TOY["train"])))
    Path("train.yaml").write_text("steps: 3\n")
    words = ("--corpus", "text", "-c", "train.yaml", "--set", "lr=0.125", "--name", "mine")
    said = built(*words, on=one).stdout
    artefact = Store().open("mine")
    assert artefact.short_id in said
    assert artefact.config["steps"] == 3
    assert artefact.config["lr"] == 0.125
    assert artefact.parents == {"corpus": Store().open("text").id}
    assert "re-used" in built(*words, on=one).stdout
    many = typer.Typer()
    many.command("score")(guarded(make_stage_command(TOY["score"])))
    built("--models", "base", "--models", "mine", "--name", "both", on=many)
    assert set(Store().open("both").parents) == {"models.0", "models.1"}
    stderr = built("--corpus", "base", on=one, code=2).stderr
    assert "takes a corpus, but 'base' is a model" in stderr


def test_ls_show_lineage_diff(built):
    listed = built("ls").stdout
    assert "ladder/base" in listed
    assert listed.splitlines()[0].startswith("name")
    rows = json.loads(built("ls", "--json").stdout)
    assert {row["stage"] for row in rows} == {"words", "train", "score"}

    shown = built("show", "base").stdout
    assert "lr: 0.5" in shown
    assert "corpus: " in shown
    assert "weights  64 B" in shown
    assert json.loads(built("show", "base", "--json").stdout)["names"] == ["ladder/base"]

    assert "|- models.0: ladder/base" in built("lineage", "scores").stdout
    drawn = json.loads(built("lineage", "scores", "--json").stdout)
    assert [node["stage"] for node in drawn] == ["words", "train", "train", "score"]

    changed = built("diff", "base", "other").stdout
    assert "config.lr: 0.5 -> 0.001" in changed
    assert "parents.replay: - -> " in changed
    assert json.loads(built("diff", "base", "other", "--json").stdout)["config"]["seed"] == [7, 1]
    assert "no difference" in built("diff", "base", "base").stdout


def test_verify_names_the_file_and_gc_makes_room(built):
    assert "4 of 4 artefacts are whole" in built("verify").stdout
    weights = Store().open("base").file("weights")
    weights.write_text("x" * 64)
    result = built("verify", code=2)
    assert "weights has other bytes" in result.stdout
    assert "rung gc --damaged" in result.stderr
    assert json.loads(built("verify", "text", "--json").stdout) == {"verified": 1, "damaged": {}}
    assert "weights has other bytes" in built("verify", "base", code=2).stdout

    assert "0 folders" in built("gc").stdout
    listed = built("gc", "--dry-run", "--damaged").stdout
    assert "1 folders, would free" in listed
    assert weights.exists()
    freed = json.loads(built("gc", "--damaged", "--json").stdout)
    assert len(freed["removed"]) == 1
    assert not weights.exists()
    assert "1 built, 3 re-used" in built("run", "ladder.yaml", "--no-report").stdout


@pytest.fixture
def tiny(call):
    """A store with one untrained model, so small that it answers at once."""
    from rung.model.build import build_model
    from rung.model.load import save_model
    from rung.model.shape import ModelConfig, resolve
    from rung.tokens.bpe import MIN_VOCAB, train_bpe, write_tokenizer
    from rung.tokens.tokenizer import load_tokenizer

    store = Store()
    work = store.begin("0" * 64)
    write_tokenizer(train_bpe(["aaa"], vocab_size=MIN_VOCAB), work.out)
    shape = resolve(ModelConfig(size="1m", width=64, layers=1, context=128))
    save_model(build_model(shape, load_tokenizer(work.out), seed=0), work.out)
    described = {"stage": "pretrain", "config": {}, "parents": {}, "notes": {}}
    store.set_name("tiny", store.commit(work, kind="model", **described))
    work.release()
    return call


def test_generate_answers_scripts(tiny):
    words = ("generate", "tiny", "--max-new-tokens", "30", "--temperature", "1")
    out = tiny(*words, "--prompt", "a", "--prompt", "b", "--json").stdout
    rows = json.loads(out)
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert out == tiny(*words, "--json", input="a\nb\n").stdout  # prompts from stdin, same seed
    assert rows != json.loads(tiny(*words, "--raw", "--json", input="a\nb\n").stdout)
    assert tiny(*words, "--prompt", "a").stdout.strip("\n") == rows[0]["text"].strip("\n")


@pytest.fixture
def tuned(tiny):
    """The same store with an adapter on its model."""
    from rung.model.adapters import AdapterConfig, add_adapter, save_trained
    from rung.model.load import load_model
    from rung.tokens.tokenizer import load_tokenizer

    store = Store()
    base = store.open("tiny")
    model = load_model(base.path)
    add_adapter(model, AdapterConfig(adapter="lora"), dtype=model.dtype)
    work = store.begin("1" * 64)
    save_trained(model, work.out, base=base.id)
    load_tokenizer(base.path).save_into(work.out)
    described = {"stage": "sft", "config": {}, "parents": {"model": base.id}, "notes": {}}
    store.set_name("tuned", store.commit(work, kind="model", **described))
    work.release()
    return tiny


def test_an_adapter_talks_and_merges(tuned):
    words = ("--max-new-tokens", "5", "--temperature", "0", "--prompt", "a", "--json")
    # its B is zero still: it says what its base says
    assert tuned("generate", "tuned", *words).stdout == tuned("generate", "tiny", *words).stdout
    assert "pass" in tuned("merge", "tuned", "--as", "whole").stdout
    merged = Store().open("whole")
    assert merged.stage == "merge"
    assert "model.safetensors" in merged.files
    tuned("merge", "tuned")
    assert Store().open("tuned-merged").id == merged.id
    assert "whole model already" in tuned("merge", "tiny", code=2).stderr


def test_gc_keeps_the_base_of_an_adapter_and_verify_misses_it(tuned):
    store = Store()
    (store.root / "names/tiny").unlink()
    base = store.open("tuned").parents["model"]
    assert "0 folders" in tuned("gc").stdout
    assert "2 of 2 artefacts are whole" in tuned("verify", "tuned").stdout
    weights = store.root / "objects" / base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtefactError, match="damaged"):
        store.checked(store.open("tuned"))
    assert base[:12] in tuned("verify", "tuned", code=2).stdout
    (store.root / "objects" / base).rename(store.root / "elsewhere")
    assert f"adapter on {base}" in tuned("verify", "tuned", code=2).stdout
    assert f"adapter on {base}" in tuned("generate", "tuned", "--prompt", "a", code=2).stderr


def test_chat_talks_until_quit(tiny):
    said = tiny("chat", "tiny", "--max-new-tokens", "3", input="hello\n/quit\n").stdout
    assert "/quit leaves" in said


def test_only_models_talk(built):
    stderr = built("chat", "text", code=2).stderr
    assert "text is a corpus, not a model; models: ladder/base, ladder/other" in stderr


def test_report_prints_figures_and_writes_the_page(built):
    built("run", "ladder.yaml", "--no-report", "--until", "base", "--set", "name=short")
    figures = json.loads(built("report", "short", "--json").stdout)
    assert figures["figures"]["total_seconds"] >= 0
    assert [stage["stage"] for stage in figures["stages"]] == ["words", "train"]
    assert "report: page.html" in built("report", "short", "--out", "page.html").stdout
    assert "<html" in Path("page.html").read_text()


def test_doctor_describes_the_machine(call):
    findings = json.loads(call("doctor", "--json").stdout)
    assert findings["usable_cores"] >= 1
    assert findings["versions"]["torch"]
    assert findings["training"]["precision"].split()[0] in ("bf16", "fp32")
    assert "problems" in call("doctor").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_says_how_to_go_on(tmp_path, number):
    (tmp_path / "ladder.yaml").write_text(RECIPE)
    # a suite that runs in the background inherits an ignored SIGINT, which Python respects
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import rung.stages; from toy.table import STAGES; rung.stages.STAGES.update(STAGES); "
        "from rung.cli import main; main()"
    )
    words = ["run", "ladder.yaml", "--set", "base.sleep=0.2", "--no-report"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob(".rung/work/*/run/metrics.jsonl")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted in base (train)" in said
    assert "same command again" in said
    assert "Traceback" not in said


def test_a_bug_of_ours_shows_its_traceback_and_ends_with_1(tmp_path):
    (tmp_path / "ladder.yaml").write_text(RECIPE)
    code = (
        "import rung.stages, toy.words; from toy.table import STAGES; "
        "rung.stages.STAGES.update(STAGES); toy.words.run = lambda *a: 1 / 0; "
        "from rung.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "ladder.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
