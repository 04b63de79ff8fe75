"""What a person sees of a stage at work, and what it is said to have cost."""

import io
import multiprocessing
import time

import pytest

from rung.meter import Meter, tree_rss
from rung.progress import PlainProgress, TerminalProgress, make_progress, show_figures, show_seconds


def test_plain_lines_have_done_total_eta_and_figures():
    out = io.StringIO()
    progress = PlainProgress(out, every=0.0)
    progress.start("base", total=200, unit="steps")
    progress._start -= 10.0  # as if 10 s had passed: 50 of 200 took 10 s, so 30 s are left
    progress.update(50, loss=2.123456, tokens_per_s=4321.0, lr=3e-4)
    progress.say("a sample")
    progress.finish()
    first, second = out.getvalue().splitlines()
    assert first == "  base: 50/200 steps 30.0 s left loss=2.123 tokens/s=4,321 lr=0.0003"
    assert second == "a sample"


def test_plain_lines_are_few():
    out = io.StringIO()
    progress = PlainProgress(out, every=60.0)
    progress.start("base")
    for step in range(1000):
        progress.update(step)
    assert out.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_keeps_the_lines_that_are_said():
    out = Terminal()
    progress = make_progress(out)
    assert isinstance(progress, TerminalProgress)
    progress.start("base", total=10, unit="steps")
    progress.update(3, loss=2.5)
    progress.say("[a] line with [brackets]")
    progress.start("next")  # a new task ends the old one
    progress.finish()
    progress.finish()
    assert "[a] line with [brackets]" in out.getvalue()
    assert isinstance(make_progress(io.StringIO()), PlainProgress)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.25, "0.2 s"), (99, "99.0 s"), (150, "2.5 min"), (7200, "2.0 h")]
)
def test_seconds_are_readable(seconds, shown):
    assert show_seconds(seconds) == shown


def test_figures_that_are_not_finite_are_shown():
    assert show_figures({"loss": float("nan"), "kl": float("inf"), "n": 3}) == "loss=nan kl=inf n=3"


def test_peak_memory_sees_a_short_peak_and_is_reset(tmp_path):
    with Meter(tmp_path / "1") as first:
        block = bytearray(300_000_000)
        del block  # gone before anyone looks: only the kernel's own peak knows
    with Meter(tmp_path / "2") as second:
        pass
    assert first.peak_rss_gb > second.peak_rss_gb + 0.25


def _hold(size, ready):
    block = bytearray(b"x") * size
    ready.set()
    time.sleep(20)
    del block


def test_memory_of_children_counts(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    child = context.Process(target=_hold, args=(200_000_000, ready))
    with Meter(tmp_path) as meter:
        child.start()
        assert ready.wait(20)
        meter._look()
        child.kill()
        child.join()
    assert meter.peak_rss_gb > tree_rss(multiprocessing.current_process().pid) / 1e9 + 0.15


def test_cost_adds_up_over_sessions(tmp_path):
    with Meter(tmp_path) as killed:
        time.sleep(0.1)
        killed._save()
    with Meter(tmp_path) as resumed:
        time.sleep(0.1)
    assert resumed.seconds >= 0.2
    (tmp_path / ".cost").write_text("{")
    with Meter(tmp_path) as fresh:  # a torn record is not worth failing for
        pass
    assert fresh.seconds < 0.1
