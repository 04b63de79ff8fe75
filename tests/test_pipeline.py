"""The pipeline: only what changed runs; a kill at any instant changes no final id."""

import errno
import io
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy.table import RECIPE, STAGES

import rung.plan
from rung.errors import ArtefactError, ConfigError, Interrupted, ResourceError, RungError
from rung.estimate import Estimates
from rung.pipeline import run
from rung.plan import make_plan, prepare
from rung.progress import PlainProgress
from rung.recipe import load_recipe
from rung.store import durable, work
from rung.store.runlog import read_metrics
from rung.store.store import Store

HERE = Path(__file__).parent


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "ladder.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def started(tmp_path, monkeypatch):
    """The stages started so far, as "train text"; empties itself when read."""
    log = tmp_path / "starts"
    monkeypatch.setenv("TOY_LOG", str(log))

    def read():
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.strip() for line in lines]

    return read


def go(page, store, *overrides, **options):
    recipe = load_recipe(page, overrides=overrides, stages=STAGES)
    said = io.StringIO()
    outcomes = run(recipe, store, progress=PlainProgress(said), **options)
    return {o.entry: o for o in outcomes}, said.getvalue()


def ids(outcomes):
    return {entry: outcome.artefact.id for entry, outcome in outcomes.items()}


def test_an_unchanged_recipe_runs_nothing(page, tmp_path, started):
    store = Store(tmp_path / "store")
    first, said = go(page, store)
    assert started() == ["words", "train text", "train text,text", "score base,other,text"]
    assert all(outcome.built for outcome in first.values())
    assert said.count("built in") == 4

    second, said = go(page, store)
    assert started() == []
    assert ids(second) == ids(first)
    assert said.count("re-used") == 4


def test_only_what_changed_runs_again(page, tmp_path, started):
    store = Store(tmp_path / "store")
    before, _ = go(page, store)
    started()
    leaf, _ = go(page, store, "scores.digits=5")
    assert started() == ["score base,other,text"]
    assert ids(leaf)["scores"] != ids(before)["scores"]

    # A key with no effect on the bytes still is another config, so another artefact.
    middle, _ = go(page, store, "other.lr=0.25")
    assert started() == ["train text,text", "score base,other,text"]
    assert ids(middle)["base"] == ids(before)["base"]

    go(page, store)
    assert started() == []  # the first recipe is still built


def test_a_new_parent_with_the_same_bytes_is_the_same_artefact(page, tmp_path, started):
    folder = tmp_path / "outside"
    folder.mkdir()
    store = Store(tmp_path / "store")
    setting = f"text.folder={folder}"
    before, _ = go(page, store, setting)
    started()
    (folder / "new.txt").touch()  # the fingerprint changes, the words do not
    after, _ = go(page, store, setting)
    assert started() == ["words"]
    assert ids(after) == ids(before)


def test_a_raised_stage_version_builds_again(page, tmp_path, started, monkeypatch):
    store = Store(tmp_path / "store")
    go(page, store, until="base")
    started()
    import dataclasses

    monkeypatch.setitem(STAGES, "train", dataclasses.replace(STAGES["train"], version=2))
    go(page, store, until="base")
    assert started() == ["train text"]


def test_until_builds_only_what_is_needed(page, tmp_path, started):
    outcomes, _ = go(page, Store(tmp_path / "store"), until="base")
    assert list(outcomes) == ["text", "base"]
    assert started() == ["words", "train text"]
    with pytest.raises(ConfigError, match="did you mean 'base'"):
        go(page, Store(tmp_path / "store"), until="bas")


def test_names_seed_and_notes(page, tmp_path):
    store = Store(tmp_path / "store")
    outcomes, _ = go(page, store)
    assert store.open("ladder/base").id == store.open("base").id == outcomes["base"].artefact.id
    # seed 7 of the recipe where none is written, the entry's own where it is; defaults: every 3
    assert store.open("base").config == {
        "steps": 30, "every": 3, "sleep": 0.0, "lr": 0.5, "seed": 7,
    }  # fmt: skip
    assert store.open("other").config["seed"] == 1
    assert store.open("other").config["lr"] == 1e-3
    notes = store.open("base").notes
    assert notes["seconds"] > 0
    assert notes["peak_rss_gb"] > 0.005
    assert 0 <= notes["figures"]["loss"] < 1
    metrics = store.metrics(store.open("base"))
    assert [line["step"] for line in read_metrics(metrics)] == list(range(1, 31))
    assert not list((store.root / "work").iterdir())


def test_an_artefact_of_the_store_is_an_input(page, tmp_path, started):
    store = Store(tmp_path / "store")
    go(page, store)
    more = tmp_path / "more.yaml"
    more.write_text("stages: {again: {stage: score, models: [ladder/base]}}")
    outcomes, _ = go(more, store)
    parents = outcomes["again"].artefact.parents
    assert parents == {"models.0": store.open("ladder/base").id}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  base:\n", "  scores2: {stage: score, models: [bas]}\n  base:\n"), "mean 'base'"),
        (("models: [base, other]", "models: [base, text]"), "takes a model, but 'text' is a"),
        (("  text: {stage: words", "  text: {stage: words, corpus: base"), "unknown key 'corpus'"),
        (("count: 30", "count: 0"), r"ladder.yaml:6: count = 0: .*greater than or equal to 1"),
        (("lr: 1e-3", "lrr: 1e-3"), r"ladder.yaml:15: unknown key 'lrr'.*did you mean 'lr'"),
        (("count: 30", "shape: {widht: 2}"), r"ladder.yaml:6: .*'shape.widht'.*mean 'width'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(page, tmp_path, started, change, message):
    page.write_text(RECIPE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        go(page, Store(tmp_path / "store"))
    assert started() == []


def test_a_cycle_is_named(tmp_path):
    page = tmp_path / "cycle.yaml"
    page.write_text("stages: {a: {stage: score, models: [m]}, m: {stage: train, corpus: m}}")
    with pytest.raises(ConfigError, match="takes a corpus, but 'm' is a model"):
        go(page, Store(tmp_path / "store"))
    import rung.stages

    loop = {"mix": rung.stages.Stage("mix", "toy.words", {"of": "corpus?"}, "corpus", "Mix.")}
    page.write_text(
        "stages: {a: {stage: mix, of: b}, b: {stage: mix, of: c}, c: {stage: mix, of: b}}"
    )
    with pytest.raises(ConfigError, match="b -> c -> b"):
        make_plan(load_recipe(page, stages=loop), Store(tmp_path / "store"))


def test_the_plan_says_what_is_known(page, tmp_path, started):
    store = Store(tmp_path / "store")
    recipe = load_recipe(page, stages=STAGES)
    rows = {row.entry: row for row in make_plan(recipe, store)}
    assert started() == []
    assert not store.ids()
    assert [row.status for row in rows.values()] == ["build"] * 4
    assert rows["text"].seconds == 3.0
    assert rows["text"].basis == "stage"
    assert rows["base"].seconds is None

    go(page, store, until="base")
    rows = {row.entry: row for row in make_plan(recipe, store)}
    assert rows["base"].status == "re-used"
    assert rows["base"].id == store.open("base").id
    assert rows["other"].basis == "last run"
    assert rows["other"].seconds == store.open("base").notes["seconds"]
    assert rows["scores"].seconds is None


def test_an_estimate_is_corrected_by_the_last_run(page, tmp_path):
    store = Store(tmp_path / "store")
    go(page, store, until="text")
    last = replace(store.open("text"), notes={"seconds": 6.0, "peak_rss_gb": 0.5})
    size = sum(file.size for file in last.files.values())
    recipe = load_recipe(page, overrides=["text.count=90"], stages=STAGES)
    estimates = Estimates(recipe, store, prepare(recipe, store, until="text"))
    # 30 words were estimated at 3 s and took 6: three times as many are estimated at 9 and take 18
    assert estimates.cost(recipe.entries["text"], past={"words": last}) == {
        "seconds": pytest.approx(18.0), "memory_gb": 0.5, "disk_gb": pytest.approx(3 * size / 1e9),
        "basis": "stage and last run, last run",
    }  # fmt: skip


def test_the_recipes_own_figures_are_the_last_resort(page, tmp_path):
    page.write_text(RECIPE + "measured:\n  base: {seconds: 5, memory_gb: 2}\n")
    rows = make_plan(load_recipe(page, stages=STAGES), Store(tmp_path / "store"))
    base = next(row for row in rows if row.entry == "base")
    assert (base.seconds, base.memory_gb, base.disk_gb, base.basis) == (5.0, 2.0, None, "recipe")


def test_damaged_input_is_refused_and_can_be_rebuilt(page, tmp_path, started):
    from rung.store.sweep import sweep

    store = Store(tmp_path / "store")
    before, _ = go(page, store, until="base")
    weights = store.open("text").file("deep/words.txt")
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"?")  # same size: only a hash can tell
    started()
    with pytest.raises(ArtefactError, match=r"deep/words.txt has other bytes.*gc --damaged"):
        go(page, Store(store.root))
    assert started() == []
    weights.write_bytes(good + b"?")
    with pytest.raises(ArtefactError, match="bytes, it was written with"):
        go(page, Store(store.root))

    assert len(sweep(store, dry_run=False, damaged=True)) == 1
    after, _ = go(page, Store(store.root), until="base")
    assert started() == ["words"]
    assert ids(after) == ids(before)


def test_ctrl_c_says_how_to_go_on(page, tmp_path, monkeypatch, started):
    import toy.train

    real = toy.train.checkpoint.save

    def interrupted(folder, step, write):
        real(folder, step, write)
        if step == 9:
            raise KeyboardInterrupt

    store = Store(tmp_path / "store")
    monkeypatch.setattr(toy.train.checkpoint, "save", interrupted)
    with pytest.raises(Interrupted, match=r"in base \(train\); .*same command again"):
        go(page, store)
    monkeypatch.undo()
    recipe = load_recipe(page, stages=STAGES)
    assert [row.status for row in make_plan(recipe, store)][:2] == ["re-used", "resume"]
    resumed, _ = go(page, store)
    whole, _ = go(page, Store(tmp_path / "other"))
    assert ids(resumed) == ids(whole)


def test_a_full_disk_keeps_the_work(page, tmp_path, monkeypatch):
    import toy.train

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path / "store")
    monkeypatch.setattr(toy.train.RunLog, "append", full)
    with pytest.raises(ResourceError, match=r"disk full in base"):
        go(page, store)
    assert len(list((store.root / "work").iterdir())) == 1
    monkeypatch.undo()
    assert len(go(page, store)[0]) == 4


def test_too_little_disk_is_said_before_the_stage(page, tmp_path, started, monkeypatch):
    monkeypatch.setattr(rung.plan, "_LEAST_DISK_GB", 1e9)
    with pytest.raises(ResourceError, match=r"text \(words\) needs about 1000000000.00 GB"):
        go(page, Store(tmp_path / "store"))
    assert started() == []


def test_an_error_of_a_stage_names_the_stage(page, tmp_path, monkeypatch):
    import toy.score

    def refuse(*_):
        raise RungError("no models today")

    monkeypatch.setattr(toy.score, "run", refuse)
    with pytest.raises(RungError, match="no models today") as caught:
        go(page, Store(tmp_path / "store"))
    assert "in scores (score)" in caught.value.__notes__[0]


class Cut(BaseException):
    """Stands for a kill: nothing in the product catches it."""


def test_every_cut_point_of_a_run_resumes_to_the_same_ids(page, tmp_path, monkeypatch):
    """Die before the n-th durable operation, for every n; then run again in peace."""
    settings = ("text.count=3", "base.steps=7", "other.steps=2")
    reference = ids(go(page, Store(tmp_path / "reference"), *settings)[0])
    left = None

    def counted(real):
        def call(*args, **kwargs):
            nonlocal left
            if left is not None:
                left -= 1
                if left < 0:
                    raise Cut
            return real(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(os, "fsync", counted(lambda _: None))  # a cut point, without the wait
    cuts = 0
    for point in range(0, 10_000, 3):
        store = Store(tmp_path / f"cut{point}")
        left = point
        try:
            go(page, store, *settings)
        except Cut:
            cuts += 1
        else:
            break
        finally:
            left = None
        assert all(store.get(id) for id in store.ids())  # nothing half written is visible
        assert ids(go(page, store, *settings)[0]) == reference, point
        assert not list((store.root / "work").iterdir())
    assert cuts > 30


def test_a_finished_stage_is_not_run_again_when_its_commit_was_cut(page, tmp_path, started):
    store = Store(tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Cut()))
        with pytest.raises(Cut):
            go(page, store, until="text")
    assert started() == ["words"]
    assert store.ids() == []
    go(page, store, until="text")
    assert started() == []
    assert len(store.ids()) == 1


def spawn(page, store, *overrides):
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    command = [sys.executable, "-m", "toy.table", str(page), str(store), *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def test_kill_9_at_random_instants_gives_the_same_ids_and_metrics(page, tmp_path):
    settings = ("base.sleep=0.01", "other.sleep=0.01")
    whole = ids(go(page, Store(tmp_path / "whole"), *settings)[0])
    rng = random.Random(0)
    store, kills = tmp_path / "killed", 0
    for _ in range(3):
        process = spawn(page, store, *settings)
        # The first sign of work, then a random moment of the second that the run takes.
        while not (store / "work").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        kills += process.wait() == -9
    assert kills >= 2
    assert spawn(page, store, *settings).wait() == 0
    opened = Store(store)
    assert {entry: opened.open(f"ladder/{entry}").id for entry in whole} == whole
    for entry in ("base", "other"):
        steps = [line["step"] for line in read_metrics(opened.metrics(opened.open(entry)))]
        assert steps == list(range(1, 31))


def test_two_runs_do_not_build_the_same_stage_at_once(page, tmp_path):
    store = Store(tmp_path / "store")
    settings = ("base.sleep=0.2", "base.steps=20")
    process = spawn(page, store.root, *settings)
    try:
        while len(store.ids()) < 1 or not list((store.root / "work").glob("*/run/*")):
            time.sleep(0.02)
        with pytest.raises(ArtefactError, match=rf"another process.*\(process {process.pid}\)"):
            go(page, store, *settings)
        with pytest.raises(ArtefactError, match="a run is using"), store.exclusive():
            pass
    finally:
        process.kill()
        process.wait()
    outcomes, _ = go(page, store, *settings, "base.sleep=0.0")
    assert json.loads(outcomes["scores"].artefact.file("evaluation.json").read_text())


def test_lock_and_durable_are_what_the_cut_test_thinks():
    """The cut test replaces functions of `os`; these modules must call them through `os`."""
    assert durable.os is os
    assert work.os is os
