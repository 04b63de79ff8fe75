"""Checkpoints and metrics: whole or absent, whatever instant the process dies at."""

import errno
import math
import os
import random
import shutil

import pytest

from rung.errors import ResourceError
from rung.store import checkpoint
from rung.store.runlog import RunLog, read_metrics


def write(text):
    def into(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "state").write_text(text)
        (folder / "other").write_text(text * 2)

    return into


def state(found):
    return (found.path / "sub" / "state").read_text()


def test_the_newest_is_found_and_old_ones_go(tmp_path):
    assert checkpoint.latest_valid(tmp_path / "none") == checkpoint.Found(0, None, ())
    for step in (5, 9, 10, 100):
        checkpoint.save(tmp_path, step, write(f"at {step}"), keep=2)
    found = checkpoint.latest_valid(tmp_path)
    assert (found.step, state(found), found.skipped) == (100, "at 100", ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-100"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_mutation_is_passed_over(tmp_path, keep):
    """Flip a bit, cut, grow, remove or swap any file: the one before is taken, and it is said."""
    rng = random.Random(keep)
    for step in range(1, 5):
        checkpoint.save(tmp_path / "good", step, write(f"state of {step}"), keep=3)
    for trial in range(40):
        folder = tmp_path / f"{trial}"
        shutil.copytree(tmp_path / "good", folder)
        newest = folder / "step-4"
        file = rng.choice([p for p in sorted(newest.rglob("*")) if p.is_file()])
        data = bytearray(file.read_bytes())
        match trial % 5:
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                file.write_bytes(data)
            case 1:
                file.write_bytes(data[: rng.randrange(len(data))])
            case 2:
                (newest / "added").write_text("x")
            case 3:
                file.unlink()
            case 4:
                shutil.copy(folder / "step-3" / "other", newest / "other")
        found = checkpoint.latest_valid(folder)
        assert (found.step, state(found)) == (3, "state of 3"), (trial, file)
        assert len(found.skipped) == 1
        assert "step-4 passed over" in found.skipped[0]


class Cut(BaseException):
    """Stands for a kill: nothing in the product catches it."""


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_before_any_operation_loses_nothing(tmp_path, monkeypatch, keep):
    """Die before the n-th durable operation of a save, also of the same step once more."""
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
    for second in (20, 10):  # a later step, and the same step saved again
        cuts = 0
        for point in range(1000):
            folder = tmp_path / f"{second}-{point}"
            checkpoint.save(folder, 10, write("first"), keep=keep)
            left = point
            try:
                checkpoint.save(folder, second, write("second"), keep=keep)
            except Cut:
                cuts += 1
            else:
                break
            finally:
                left = None
            found = checkpoint.latest_valid(folder)
            assert found.path is not None, point
            assert state(found) in ("first", "second")
            assert state(found) == "first" or found.step == second
            checkpoint.save(folder, 30, write("third"), keep=1)
            assert state(checkpoint.latest_valid(folder)) == "third"
            assert [p.name for p in folder.iterdir()] == ["step-30"]
        assert cuts > 8


def test_a_full_disk_keeps_the_older_and_leaves_no_rubbish(tmp_path):
    checkpoint.save(tmp_path, 1, write("one"))

    def full(folder):
        write("two")(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match=r"disk full while writing checkpoint 2 .*are kept"):
        checkpoint.save(tmp_path, 2, full)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]

    def denied(folder):
        raise PermissionError(errno.EACCES, "no")

    with pytest.raises(PermissionError):
        checkpoint.save(tmp_path, 2, denied)
    assert checkpoint.latest_valid(tmp_path).step == 1


def test_older_ones_stay_when_the_new_one_does_not_read_back(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, write("one"), keep=1)
    put = checkpoint._put

    def rotten(temporary, target):
        put(temporary, target)
        (target / "other").write_text("rotten")

    monkeypatch.setattr(checkpoint, "_put", rotten)
    with pytest.raises(ResourceError, match="does not read back"):
        checkpoint.save(tmp_path, 2, write("two"), keep=1)
    assert checkpoint.latest_valid(tmp_path).step == 1


def test_metrics_survive_a_torn_line_and_are_not_doubled(tmp_path):
    log = RunLog(tmp_path)
    for step in range(5):
        log.append({"step": step, "loss": step / 2})
    log.append({"step": 5, "loss": math.nan, "low": -math.inf, "word": "nan-like"})
    log.sync()
    with log.path.open("a") as file:
        file.write('{"step": 6, "lo')  # the kill
    assert [line["step"] for line in read_metrics(log.path)] == [0, 1, 2, 3, 4, 5]

    resumed = RunLog(tmp_path)
    last = resumed.read()[-1]
    assert math.isnan(last["loss"])
    assert last["low"] == -math.inf
    assert last["word"] == "nan-like"
    resumed.truncate_after(3)
    resumed.append({"step": 4, "loss": 9.0})
    assert [(line["step"], line["loss"]) for line in resumed.read()] == [
        (0, 0.0), (1, 0.5), (2, 1.0), (3, 1.5), (4, 9.0),
    ]  # fmt: skip
    assert "NaN" not in log.path.read_text()
    assert read_metrics(tmp_path / "none.jsonl") == []
