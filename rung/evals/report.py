"""The report: one self-contained HTML page, and a short table for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rung.evals import charts, numerals, tables
from rung.evals.changes import versus_parent
from rung.evals.charts import Chart
from rung.evals.cost import GPU
from rung.evals.drawing import draw_lineage
from rung.evals.figures import collect_figures
from rung.evals.ladder import ALIGNED, Ladder
from rung.evals.overview import OverviewRow, overview
from rung.evals.sections import Section, stage_sections
from rung.evals.side_by_side import SampleRow, fixed_samples, heldout_samples
from rung.evals.tables import Table
from rung.evals.words import LIMITS
from rung.store.artefact import Artefact
from rung.store.runlog import read_metrics

TEMPLATES = Path(__file__).parent / "templates"
MAX_POINTS = 600
"""Points of one curve: enough for a screen, and the page stays small however long the run."""


@dataclass(frozen=True)
class Page:
    """Everything the template shows."""

    title: str
    figures: Mapping[str, Any]
    overview: list[OverviewRow]
    gpu: str
    svg: str
    sections: list[Section]
    text_charts: list[Chart]
    text_tables: list[Table]
    answer_charts: list[Chart]
    answer_tables: list[Table]
    continuations: list[SampleRow]
    answers: list[SampleRow]
    questions: list[SampleRow]
    temperature: Any
    limits: Sequence[str]


def write_report(names: Mapping[str, Artefact], metrics: Mapping[str, Path], out: Path) -> None:
    """One HTML file at `out` with its scripts and styles inside; it needs no network.

    names: artefacts by entry name. metrics: metrics.jsonl by entry name, where there is one.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_page(build_page(names, metrics, title=out.stem)), encoding="utf-8")


def build_page(names: Mapping[str, Artefact], metrics: Mapping[str, Path], *, title: str) -> Page:
    """The page's contents from artefacts and logged steps."""
    ladder = Ladder(names)
    steps = {name: thin(read_metrics(path)) for name, path in metrics.items()}
    named = [
        (ladder.name(model.id), found.result)
        for model in ladder.models
        if (found := ladder.evaluation(model)) is not None
    ]
    aligned = [(ladder.name(m.id), versus_parent(ladder, m)) for m in ladder.of_stage(*ALIGNED)]
    return Page(
        title=title,
        figures=collect_figures(names)["figures"],
        overview=overview(ladder, steps),
        gpu=GPU,
        svg=draw_lineage(ladder),
        sections=stage_sections(ladder, steps),
        text_charts=_text_charts(ladder, named),
        text_tables=_text_tables(ladder, named),
        answer_charts=_answer_charts(named, aligned),
        answer_tables=_answer_tables(named, aligned),
        continuations=fixed_samples(named, "continuations"),
        answers=fixed_samples(named, "answers"),
        questions=heldout_samples(ladder),
        temperature=next((r["settings"]["temperature"] for _, r in named if "settings" in r), None),
        limits=LIMITS,
    )


def thin(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most about MAX_POINTS steps, evenly; steps with rare figures (held-out looks) stay."""
    if len(steps) <= MAX_POINTS:
        return list(steps)
    common = min(len(step) for step in steps)
    stride = -(-len(steps) // MAX_POINTS)
    last = len(steps) - 1
    return [s for i, s in enumerate(steps) if i % stride == 0 or i == last or len(s) > common]


def render_page(page: Page) -> str:
    """HTML text. Everything but our own files and drawing is escaped by the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = numerals.seconds
    environment.filters["amount"] = numerals.amount
    environment.filters["usd"] = numerals.usd
    return environment.get_template("report.html").render(
        page=page,
        svg=Markup(page.svg),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
        plotly=Markup(get_plotlyjs()),
    )


def summary(collected: Mapping[str, Any]) -> str:
    """The figures as a table for the terminal: the text `rung run` ends with."""
    figures = collected.get("figures", collected)
    shown = [(name, value) for name, value in figures.items() if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"  {name:<{width}}  {numerals.number(value)}" for name, value in shown]
    missing = sum(value is None for value in figures.values())
    if missing:
        lines.append(f"  {missing} figures were not measured by this recipe")
    return "\n".join(["figures", *lines])


def _corpora(named: tables.Named) -> list[str]:
    return list(dict.fromkeys(c for _, result in named for c in result.get("likelihood", {})))


def _text_charts(ladder: Ladder, named: tables.Named) -> list[Chart]:
    models = [name for name, result in named if result.get("likelihood")]
    made_from = {ladder.name(m.id): ladder.name(m.parents.get("model")) for m in ladder.models}
    by_domain = {
        ladder.name(corpus): {
            name: result["likelihood"][corpus]["total"]["value"]
            for name, result in named
            if corpus in result.get("likelihood", {})
        }
        for corpus in sorted(_corpora(named), key=ladder.name)
    }
    drawn = charts.forgetting_chart(models, made_from, by_domain)
    return [drawn] if drawn else []


def _text_tables(ladder: Ladder, named: tables.Named) -> list[Table]:
    counted = []
    for model in ladder.of_stage("pretrain"):
        found = ladder.ngram(model)
        if found is not None:
            counted.append(("5-gram", found.result))
    made = [
        tables.domain_table([*counted, *named], corpus, f"Bits per byte: {ladder.name(corpus)}")
        for corpus in sorted(_corpora(named), key=ladder.name)
    ]
    return [table for table in made if table is not None]


def _answer_charts(
    named: tables.Named, aligned: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Chart]:
    have = [(name, r["instruct"]["totals"]) for name, r in named if r.get("instruct")]
    if not have:
        return []
    groups = [name for name, _ in have]
    made = [
        charts.bars_chart(
            "Answers after each stage",
            groups,
            {
                label: [totals.get(key) for _, totals in have]
                for key, label in (
                    ("utility", "noise-free utility"),
                    ("stop_rate", "answers that stop"),
                    ("false_claim_rate", "claims about made-up functions"),
                    ("refusal_rate_on_real", "refusals of real functions"),
                )
            },
            y="share or utility",
        )
    ]
    won = [(name, versus["win_rate"]) for name, versus in aligned if "win_rate" in versus]
    if won:
        bars = charts.bars_chart(
            "Win rate against the model before (ties count half)",
            [name for name, _ in won],
            {"win rate": [rate for _, rate in won]},
            y="win rate",
        )
        bars["layout"]["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5}
        ]
        bars["layout"]["yaxis"]["range"] = [0, 1]
        made.append(bars)
    return made


def _answer_tables(
    named: tables.Named, aligned: Sequence[tuple[str, Mapping[str, Any]]]
) -> list[Table]:
    made = [
        tables.format_table(named, key="rouge_l", title="Agreement with the truth (ROUGE-L)"),
        tables.format_table(named, key="exact", title="Exactly right", as_percent=True),
        tables.format_table(
            named, key="reference_bpb", title="Bits per byte of the true answers (lower is better)"
        ),
        tables.format_table(named, key="utility", title="Noise-free utility"),
        tables.format_table(named, key="stop_rate", title="Answers that stop", as_percent=True),
        tables.difference_table(aligned),
        tables.task_table(named),
    ]
    return [table for table in made if table is not None]
