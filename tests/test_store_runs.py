"""Runs as records: what a stage at work leaves, how each end is told, curves as they grow."""

import io
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import train
from toy.table import RECIPE, STAGES

from rung.errors import Interrupted, TrainingError
from rung.pipeline import run as run_recipe
from rung.progress import PlainProgress
from rung.recipe import load_recipe
from rung.store.catalogue import Catalogue
from rung.store.curves import Curves, thin
from rung.store.journal import Journal
from rung.store.runlog import RunLog, read_metrics
from rung.store.runs import Run, find_run, read_runs, unfinished
from rung.store.store import Store

ABOUT = {"name": "r/base", "stage": "train", "kind": "model", "config": {"lr": 1}, "parents": {}}


def build(root, *overrides):
    page = root / "ladder.yaml"
    page.write_text(RECIPE)
    recipe = load_recipe(page, overrides=overrides, stages=STAGES)
    store = Store(root / "store")
    run_recipe(recipe, store, progress=PlainProgress(io.StringIO()))
    return store


def at_work(store, key="ab" * 32, **about):
    """The run folder of a stage at work, with a journal that was begun."""
    folder = store.root / "work" / key / "run"
    folder.mkdir(parents=True)
    journal = Journal(folder, PlainProgress(io.StringIO(), every=1e9), {**ABOUT, **about})
    return folder, journal


def change(path: Path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def only(store):
    (run,) = unfinished(Catalogue(store).view())
    return run


# what is done


def test_done_runs_come_from_the_notes_of_their_artefacts(tmp_path):
    store = build(tmp_path)
    view = Catalogue(store).view()
    runs = {run.name: run for run in read_runs(view)}
    assert set(runs) == {"ladder/text", "ladder/base", "ladder/other", "ladder/scores"}
    base = runs["ladder/base"]
    artefact = store.open("base")
    assert (base.state, base.artefact, base.stage) == ("done", artefact.id, "train")
    assert base.figures["loss"] == artefact.notes["figures"]["loss"]
    assert base.seconds == artefact.notes["seconds"]
    assert base.has_metrics
    assert not runs["ladder/text"].has_metrics
    assert find_run(view, base.key[:12]) == base
    assert find_run(view, "0" * 12) is None
    assert find_run(view, "../../etc") is None


def test_a_committed_run_keeps_its_journal_and_no_work_is_left(tmp_path):
    store = build(tmp_path)
    base = next(r for r in read_runs(Catalogue(store).view()) if r.name == "ladder/base")
    status = json.loads((base.folder / "status.json").read_text())
    assert status["state"] == "finished"
    about = json.loads((base.folder / "stage.json").read_text())
    assert about["name"] == "ladder/base"
    assert about["config"] == dict(store.open("base").config)
    assert unfinished(Catalogue(store).view()) == []


# what is not


def test_a_stage_at_work_says_how_far_it_is(tmp_path):
    store = Store(tmp_path)
    folder, journal = at_work(store)
    with journal:
        journal.start("train", total=40, unit="step")
        journal._written = 0  # more than a second ago
        journal.update(10, loss=2.5, reward=float("nan"))
        journal.say("held-out loss 2.4")
        (folder / ".cost").write_text(json.dumps({"seconds": 12, "rss_gb": 1.5, "peak_rss_gb": 2}))
        run = only(store)
    assert (run.state, run.name, run.task) == ("running", "r/base", "train")
    assert (run.done, run.total, run.share) == (10, 40, 0.25)
    assert run.figures == {"loss": 2.5, "reward": "nan"}
    assert (run.seconds, run.memory_gb, run.peak_gb) == (12, 1.5, 2)
    assert [line["text"] for line in run.said()] == ["held-out loss 2.4"]


def test_the_rest_is_told_by_the_pace_of_this_session():
    # resumed at 20; 10 more took 5 s, so 70 to go take 35 s
    run = Run(
        key="",
        name="",
        stage="",
        kind="",
        state="running",
        folder=Path(),
        begun=(20, 1000.0),
        done=30,
        total=100,
        updated=1005.0,
    )
    assert run.seconds_left == pytest.approx(35)
    assert replace(run, begun=None).seconds_left is None
    assert replace(run, done=20).seconds_left is None
    assert replace(run, state="silent").seconds_left is None


def test_updates_are_written_once_a_second_at_most(tmp_path):
    folder, journal = at_work(Store(tmp_path))
    with journal:
        journal.start("train", total=1000)
        for done in range(1000):
            journal.update(done)
        assert json.loads((folder / "status.json").read_text())["done"] < 999


def test_every_end_is_told_apart(tmp_path):
    store = Store(tmp_path)
    folder, journal = at_work(store)
    with pytest.raises(TrainingError), journal:
        raise TrainingError("the loss is non-finite")
    assert (only(store).state, only(store).error) == ("failed", "the loss is non-finite")
    with pytest.raises(ZeroDivisionError), journal:
        _ = 1 / 0
    assert only(store).error == "ZeroDivisionError: division by zero"
    with pytest.raises(Interrupted), journal:
        raise Interrupted("stopped at step 3")
    assert only(store).state == "stopped"
    with journal:
        pass
    assert only(store).state == "saving"
    change(folder / "status.json", state="running")
    assert only(store).state == "running"
    later = time.time() + 60
    assert [r.state for r in unfinished(Catalogue(store).view(), now=later)] == ["silent"]


def test_a_killed_process_is_seen_at_once_here_and_by_its_silence_elsewhere(tmp_path):
    store = Store(tmp_path)
    folder, journal = at_work(store)
    with journal:
        dead = os.fork()
        if not dead:
            os._exit(0)
        os.waitpid(dead, 0)
        change(folder / "stage.json", pid=dead)
        assert only(store).state == "stopped"
        change(folder / "stage.json", host=platform.node() + "-other")
        assert only(store).state == "running"


def test_a_failing_stage_of_a_recipe_is_there_with_its_error(tmp_path, monkeypatch):
    page = tmp_path / "ladder.yaml"
    page.write_text(RECIPE)
    recipe = load_recipe(page, stages=STAGES)
    store = Store(tmp_path / "store")

    class Broken:
        Config = train.Config

        @staticmethod
        def run(context, config):
            context.progress.say("about to fail")
            raise TrainingError("no luck")

    monkeypatch.setitem(sys.modules, "toy.train", Broken)
    with pytest.raises(TrainingError):
        run_recipe(recipe, store, progress=PlainProgress(io.StringIO()))
    run = only(store)
    assert (run.name, run.state, run.error) == ("ladder/base", "failed", "no luck")
    assert run.said()[-1]["text"] == "about to fail"
    assert run.parents == {"corpus": store.open("text").id}


def test_work_of_older_versions_and_garbled_journals_are_passed_over(tmp_path):
    store = Store(tmp_path)
    (store.root / "work" / "12" / "run").mkdir(parents=True)
    folder, journal = at_work(store)
    with journal:
        (folder / "status.json").write_text("{torn")
        assert only(store).state == "running"
        (folder / "stage.json").write_text("[]")
        assert unfinished(Catalogue(store).view()) == []


def test_a_journal_on_a_full_disk_ends_nothing(tmp_path, monkeypatch):
    folder, journal = at_work(Store(tmp_path))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(Path, "open", full)
    with journal:
        journal.start("train")
        journal.update(1)
        journal.say("still here")
    assert list(folder.iterdir()) == []


# the catalogue


def test_the_catalogue_sees_what_comes_and_goes_and_reads_nothing_twice(tmp_path, monkeypatch):
    import rung.store.catalogue as module

    store = build(tmp_path)
    catalogue = Catalogue(store)
    base = store.open("base")
    for folder in ("objects", "names"):  # at rest: what changed just now is looked at again anyway
        os.utime(store.root / folder, (1e9, 1e9))
    view = catalogue.view()
    assert set(view.artefacts) == set(store.ids())
    assert {a.id for _, a in view.children(base.id)} == {store.open("scores").id}
    read, real = [], module.read_manifest
    monkeypatch.setattr(module, "read_manifest", lambda p: read.append(p) or real(p))
    assert len(catalogue.view().artefacts) == 4
    assert read == []
    build(tmp_path, "base.seed=9")
    assert len(catalogue.view().artefacts) == 6  # another base, other scores
    assert len(view.artefacts) == 4  # a view is one moment
    assert len(read) == 2
    assert catalogue.view().names_of(base.id) == []
    assert catalogue.view().title(base.id) == "base"
    assert catalogue.view().recipes() == ["ladder"]


def test_an_unreadable_manifest_is_named_not_fatal(tmp_path):
    store = build(tmp_path)
    base = store.open("base")
    (base.path / "manifest.json").write_text("{}")
    view = Catalogue(store).view()
    assert base.id not in view.artefacts
    assert "damaged" in view.unreadable[base.id]


# curves


def test_curves_are_what_was_logged_and_grow_with_it(tmp_path):
    log = RunLog(tmp_path)
    for step in range(5):
        log.append({"step": step, "loss": 5.0 - step, "tokens": 100, "seconds": 0.5})
    curves = Curves(log.path)
    first = curves.read()
    assert first.whole
    assert first.lines["loss"].x == [0, 1, 2, 3, 4]
    assert first.lines["loss"].y == [row["loss"] for row in read_metrics(log.path)]
    log.append({"step": 5, "loss": float("nan"), "heldout_loss": 1.5, "tokens": 100})
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')  # a line that is being written
    then = curves.read(cursor=first.cursor)
    assert not then.whole
    assert "loss" not in then.lines  # not finite: a gap
    assert then.lines["heldout_loss"].x == [5]
    assert curves.read(cursor=then.cursor).lines == {}
    assert curves.read(["loss"], axis="tokens").lines["loss"].x == [100, 200, 300, 400, 500]
    assert curves.read(["loss"], axis="seconds").lines["loss"].x == [0.5, 1, 1.5, 2, 2.5]


def test_a_resumed_run_cuts_its_curves_back(tmp_path):
    log = RunLog(tmp_path)
    for step in range(10):
        log.append({"step": step, "loss": 1.0})
    curves = Curves(log.path)
    cursor = curves.read().cursor
    log.truncate_after(3)
    for step in range(4, 12):
        log.append({"step": step, "loss": 2.0})
    again = curves.read(cursor=cursor)
    assert again.whole
    assert again.lines["loss"].x == list(range(12))
    assert again.lines["loss"].y == [1.0] * 4 + [2.0] * 8


def test_a_cursor_from_elsewhere_gives_everything(tmp_path):
    log = RunLog(tmp_path)
    log.append({"step": 0, "loss": 1.0})
    curves = Curves(log.path)
    for cursor in ("", "x", "1-1.1", "0-1.-4", "9.9.9"):
        assert curves.read(cursor=cursor).whole, cursor
    assert Curves(tmp_path / "none").read().lines == {}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400),
    st.integers(1, 40),
)
def test_thinning_keeps_ends_and_extremes_in_order(values, buckets):
    y = np.array(values)
    line = thin(np.arange(len(y), dtype=float), y, buckets=buckets)
    assert len(line.x) <= 2 * buckets + 2
    assert line.x == sorted(set(line.x))
    assert (line.x[0], line.x[-1]) == (0, len(y) - 1)
    assert min(line.y) == pytest.approx(y.min(), rel=1e-8)
    assert max(line.y) == pytest.approx(y.max(), rel=1e-8)
    for x, shown in zip(line.x, line.y, strict=True):
        assert shown == pytest.approx(y[int(x)], rel=1e-8)
    if line.mean:  # the mean over all buckets, weighted, is the mean of all
        size = -(-len(y) // buckets)
        weights = [min(size, len(y) - i * size) for i in range(len(line.mean))]
        assert np.average(line.mean, weights=weights) == pytest.approx(y.mean(), abs=1e-2)
