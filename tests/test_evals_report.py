"""Figures and the HTML report of a whole invented ladder, in a real browser where there is one."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from evals_ladder import HOSTILE, PROMISED, build_ladder

from rung.evals import numerals
from rung.evals.changes import changes, versus_parent
from rung.evals.charts import forgetting_chart, over_optimisation_chart, smooth
from rung.evals.cost import GPU_FLOPS, cost_of, count_parameters
from rung.evals.drawing import draw_lineage
from rung.evals.figures import collect_figures
from rung.evals.ladder import Ladder
from rung.evals.overview import gains, overview
from rung.evals.report import build_page, summary, thin, write_report
from rung.evals.sections import health_table
from rung.evals.tables import drop_table, tables_of
from rung.store.artefact import Artefact, FileEntry

Built = tuple[dict[str, Artefact], dict[str, Path]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_ladder(tmp_path_factory.mktemp("ladder"))


@pytest.fixture(scope="module")
def page(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "quickstart.html"
    write_report(*built, out)
    return out


# figures


def test_every_promised_figure_is_there(built: Built) -> None:
    collected = collect_figures(built[0])
    assert set(collected) == {"stages", "figures"}
    assert [
        name for name in PROMISED if not isinstance(collected["figures"].get(name), float)
    ] == []
    json.dumps(collected, allow_nan=False)


def test_figures_are_found_by_lineage(built: Built) -> None:
    figures = collect_figures(built[0])["figures"]
    assert figures["pretrain.heldout_bpb"] == 1.60
    assert figures["pretrain.heldout_bpb_5gram"] == 1.67
    assert figures["pretrain.heldout_bpb_minus_5gram"] == pytest.approx(-0.07, abs=1e-3)
    assert (figures["continue.fresh_bpb_before"], figures["continue.fresh_bpb_after"]) == (
        2.1,
        1.75,
    )
    assert (figures["continue.old_bpb_before"], figures["continue.old_bpb_after"]) == (1.6, 1.63)
    assert figures["continue.no_replay.old_bpb_after"] == 1.80
    assert figures["total_seconds"] == 10.0 * len(built[0])
    assert figures["ppo.false_claim_rate_after"] < figures["ppo.false_claim_rate_before"]
    assert figures["ppo.kl"] == 3.0  # of the evaluation, not of training


def test_figures_do_not_depend_on_entry_names(built: Built) -> None:
    renamed = {f"x{i}": artefact for i, artefact in enumerate(built[0].values())}
    assert collect_figures(renamed)["figures"] == collect_figures(built[0])["figures"]


def test_figures_without_a_baseline_come_from_paired_items(tmp_path: Path, built: Built) -> None:
    names, _ = build_ladder(tmp_path, baselines=False)
    ours, theirs = (collect_figures(n)["figures"] for n in (names, built[0]))
    for name in PROMISED:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-9), name
    assert ours["ppo.kl"] == 3.3  # of training: the evaluation did not measure it
    assert ours["dpo.kl"] is None


def test_what_was_not_measured_is_none(built: Built) -> None:
    some = {name: built[0][name] for name in ("text", "tokenizer", "base")}
    collected = collect_figures(some)
    assert set(PROMISED) <= set(collected["figures"])
    assert collected["figures"]["ppo.win_rate"] is None
    assert collected["figures"]["pretrain.heldout_bpb"] is None
    assert "figures were not measured" in summary(collected)
    assert "ppo" not in summary(collected)


def test_order_is_parents_first(built: Built) -> None:
    ladder = Ladder(dict(reversed(list(built[0].items()))))
    place = {artefact.id: i for i, artefact in enumerate(ladder.entries.values())}
    for artefact in ladder.entries.values():
        assert all(place[parent] < place[artefact.id] for parent in artefact.parents.values())


def test_text_history_follows_the_parents(built: Built) -> None:
    ladder = Ladder(built[0])
    history = ladder.text_history(built[0]["ppo"])
    assert [ladder.name(id) for id in history] == ["text", "fresh"]


# cost


def test_cost_by_hand(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [30, 40], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [800], "data_offsets": [0, 1]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    files = {"model.safetensors": FileEntry("", 0)}
    model = Artefact("id", "model", tmp_path, "sft", {}, {}, files, {"tokens": 5000, "seconds": 2})
    assert count_parameters(model) == 2000
    cost = cost_of(model)
    assert cost.flop == 6 * 2000 * 5000
    # 6e7 operations at GPU_FLOPS a second, 2.50 USD an hour
    assert cost.usd == pytest.approx(6e7 / GPU_FLOPS / 3600 * 2.5)
    logged = Artefact("id", "model", tmp_path, "ppo", {}, {}, files, {"seconds": 2})
    assert cost_of(logged, [{"step": 0, "tokens": 30}, {"step": 1, "tokens": 12}]).tokens == 42
    assert cost_of(logged).flop is None


def test_numbers_as_people_read_them() -> None:
    assert numerals.seconds(9.04) == "9.0 s"
    assert numerals.seconds(185) == "3 min 5 s"
    assert numerals.seconds(3600 * 2 + 240) == "2 h 4 min"
    assert numerals.amount(1_700_000, "tokens") == "1.7 M tokens"
    assert numerals.amount(None) == "-"
    assert numerals.usd(0.0034) == "$0.003"
    assert numerals.usd(1e-7) == "< $0.0001"
    assert numerals.usd(1234.5) == "$1,234.50"
    sure = {"value": -0.5, "low": -0.7, "high": -0.3}
    assert numerals.signed(sure) == "-0.50 [-0.70, -0.30] *"
    assert numerals.estimate(sure | {"high": 0.1}) == "-0.50 [-0.70, 0.10]"


# gained and lost


def test_only_certain_changes_are_gains_or_losses(built: Built) -> None:
    ladder = Ladder(built[0])
    gained, lost = gains(ladder, built[0]["continued"])
    assert gained == ["bits per byte on fresh: 2.100 -> 1.750 (-16.7 %)"]
    assert lost == ["bits per byte on text: 1.600 -> 1.630 (+1.9 %)"]
    same = ladder.evaluation(built[0]["chat"])
    assert not any(change.certain for change in changes(ladder, same, same))


def test_an_undecided_win_is_called_so(built: Built) -> None:
    ladder = Ladder(built[0])
    rate = versus_parent(ladder, built[0]["dpo"])["win_rate"]
    assert rate["low"] < 0.5 < rate["value"]
    assert any(line.startswith("undecided: wins") for line in gains(ladder, built[0]["dpo"])[0])
    assert any(line.startswith("wins") for line in gains(ladder, built[0]["ppo"])[0])


def test_overview_has_a_row_for_every_stage_and_one_for_measuring(built: Built) -> None:
    rows = overview(Ladder(built[0]), {})
    evaluations = [a for a in built[0].values() if a.kind == "evaluation"]
    assert len(rows) == len(built[0]) - len(evaluations) + 1
    assert rows[-1].cost.seconds == 10.0 * len(evaluations)
    assert all(row.purpose for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["base"].data == "text: 1.7 M tokens"
    assert by_name["facts"].data.startswith("text + fresh: 12 k questions")


# curves and tables


def test_thinning_keeps_the_rare_steps_and_the_last() -> None:
    steps: list[dict[str, Any]] = [{"step": i, "loss": 1.0} for i in range(5000)]
    steps[1234]["heldout_loss"] = 2.0
    kept = thin(steps)
    assert len(kept) < 700
    assert steps[1234] in kept
    assert kept[-1]["step"] == 4999


def test_smoothing_by_hand() -> None:
    # span 2 halves the past: 2; (1 + 4) / 1.5; (2.5 + 0) / 1.75
    assert smooth([2, 4, 0], span=2) == pytest.approx([2, 5 / 1.5, 2.5 / 1.75])


def test_forgetting_lines_run_from_parent_to_child() -> None:
    made_from = {"b": "a", "c": "a"}
    drawn = forgetting_chart(["a", "b", "c"], made_from, {"text": {"a": 1.0, "b": 2.0, "c": 3.0}})
    assert drawn is not None
    assert drawn["data"][0]["x"] == ["a", None, "a", "b", None, "a", "c", None]
    assert drawn["data"][0]["y"] == [1.0, None, 1.0, 2.0, None, 1.0, 3.0, None]


def test_over_optimisation_needs_all_three_readings() -> None:
    whole = {"step": 0, "objective/kl": 0.1, "eval/scores": 1.0, "eval/utility": 0.5}
    part = {"step": 1, "objective/kl": 0.2}
    assert over_optimisation_chart([whole, part]) is None
    drawn = over_optimisation_chart([whole, part, whole | {"step": 2}])
    assert drawn is not None
    assert [len(trace["x"]) for trace in drawn["data"]] == [2, 2]


def test_health_findings_are_counted() -> None:
    steps = [{"step": i, "policy/clipfrac_avg": 0.5 if i > 5 else 0.0} for i in range(10)]
    (row,) = health_table(steps).rows
    assert row[:5] == ["clip fraction high", "4", "6", "0.500", "0.300"]
    assert health_table(steps[:3]).rows == []


def test_reports_become_tables() -> None:
    report = {
        "documents": 18,
        "dropped": {"too_short": {"count": 2, "examples": [{"text": "Hi  there"}]}, "copy": 5},
        "redactions": {"email": {"count": 3, "documents": 2}},
        "per_cell": {"explain/seen": 4},
    }
    dropped = drop_table(report)
    assert dropped is not None
    assert dropped.rows == [["copy", "5", ""], ["too short", "2", "Hi there"]]
    made = {table.title: table.rows for table in tables_of(report)}
    assert made["Counts"] == [["documents", "18"]]
    assert made["redactions"] == [["email", "3", "2"]]
    assert made["per cell"] == [["explain/seen", "4"]]
    assert drop_table({}) is None


# the page


def test_page_is_one_file_that_fetches_nothing(page: Path) -> None:
    text = page.read_text()
    assert "src=" not in text.split("</style>")[0]
    assert '<link rel="stylesheet"' not in text
    assert text.count("<script") == 2
    assert "SIMULATED" in text
    assert "often wrong" in text


def test_model_text_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert HOSTILE not in text
    assert "&lt;img src=x onerror=alert(1)&gt; {{ 7*7 }}" in text


def test_page_of_a_single_corpus(built: Built, tmp_path: Path) -> None:
    write_report({"text": built[0]["text"]}, {}, tmp_path / "small.html")
    assert "Not measured" in (tmp_path / "small.html").read_text()


def test_samples_of_every_stage_stand_side_by_side(built: Built) -> None:
    contents = build_page(*built, title="t")
    models = ["base", "without-replay", "continued", "chat", "dpo", "ppo", "grpo"]
    for row in [*contents.answers, *contents.continuations, *contents.questions]:
        assert [sample.model for sample in row.samples] == models
    assert contents.answers[0].prompt == "What is the capital of France?"
    assert len(contents.questions) == 12
    assert contents.questions[0].truth == "It sorts."


def test_page_in_a_browser(page: Path) -> None:
    with chromium() as browser:
        for width, scheme in ((1200, "light"), (390, "dark")):
            _look(browser, page, width=width, scheme=scheme)


def _look(browser: Any, page: Path, *, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    tab.on("dialog", lambda dialog: problems.append("a sample ran as a script"))
    local = ("file:", "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(local) else problems.append(r.url))
    tab.goto(page.as_uri())
    tab.locator("#text .plot").first.scroll_into_view_if_needed()
    tab.wait_for_selector("#text .plot .main-svg")
    assert problems == []
    assert "owned" not in tab.title()
    assert tab.locator("article.stage").count() == 13
    # wide tables scroll inside their frames; the page itself never scrolls sideways
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()


def test_names_in_the_drawing_are_escaped(built: Built) -> None:
    drawn = draw_lineage(Ladder({"<b>&": built[0]["text"], "base": built[0]["base"]}))
    assert "&lt;b&gt;&amp;" in drawn
    assert "<b>" not in drawn
    assert drawn.count("<rect") == 2
    assert drawn.count('class="edge"') == 1
