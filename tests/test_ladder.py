"""The whole ladder in small, through the command line: built, re-used, killed, damaged, asked."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from evals_ladder import PROMISED
from typer.testing import CliRunner

from rung.cli import app
from rung.errors import ArtefactError
from rung.evals.ladder import PREFERRED
from rung.recipe import load_recipe
from rung.stages import STAGES
from rung.store.store import Store

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kills  # noqa: E402

MODELS = ("base", "continued", "without-replay", "chat", "dpo", "ppo", "grpo")
pytestmark = [
    pytest.mark.timeout(900),  # a busy machine takes five times as long
    pytest.mark.skipif(
        not Path("/proc/self/stat").exists(), reason="a run's processor time is read from /proc"
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("ladder") / "store"


@pytest.fixture(scope="module")
def whole(store):
    """The ladder, run once in peace by `python -m rung run ... --json`."""
    return kills.run_whole(kills.RECIPE, store)


@pytest.fixture
def call(store, whole):
    """Run one command of rung on that store; checks its exit code."""

    def call(*words, code=0, input=None, on=store):
        arguments = [*map(str, words), "--store", str(on)]
        result = CliRunner().invoke(app, arguments, input=input, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return call


def graph(path):
    entries = load_recipe(path).entries
    return {name: (entry.stage.command, dict(entry.inputs)) for name, entry in entries.items()}


def test_the_tiny_recipe_is_the_quickstart_in_small():
    tiny = graph(kills.RECIPE)
    assert tiny == graph(ROOT / "recipes" / "quickstart.yaml")
    other = {"import", "dataset", "labels", "classify", "feedback", *PREFERRED} - {"dpo"}
    assert {stage for stage, _ in tiny.values()} == STAGES.keys() - other


def test_a_second_run_builds_nothing(call, whole):
    assert set(whole.built) == set(whole.ids) == set(graph(kills.RECIPE))
    again = json.loads(call("run", kills.RECIPE, "--no-report", "--json").stdout)["entries"]
    assert not any(entry["built"] for entry in again)
    assert {entry["entry"]: entry["id"] for entry in again} == whole.ids


def test_the_store_is_whole(call, whole):
    count = len(set(whole.ids.values()))
    assert f"{count} of {count} artefacts are whole" in call("verify").stdout


def test_the_report_keeps_its_contract(call, whole, tmp_path):
    content = json.loads(call("report", "tiny", "--json").stdout)
    figures = content["figures"]
    assert set(PROMISED) <= figures.keys()
    assert [name for name in PROMISED if not isinstance(figures[name], (int, float))] == []
    assert {stage["name"]: stage["id"] for stage in content["stages"]} == whole.ids
    # Every artefact was made once, so the total is the sum of the stages.
    total = sum(stage["seconds"] for stage in content["stages"])
    assert figures["total_seconds"] == pytest.approx(total, abs=0.01)
    # 256 bytes need 8 bits each at worst; a model that has learned anything needs fewer.
    assert 0 < figures["pretrain.heldout_bpb"] < 8
    call("report", "tiny", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(name in page for name in MODELS)


def test_every_model_answers(call):
    texts = {}
    for name in MODELS:
        words = ("generate", name, "--prompt", "function ", "--max-new-tokens", 12, "--json")
        (row,) = json.loads(call(*words, "--temperature", 1, "--raw").stdout)
        texts[name] = row["text"]
        assert row["text"].strip()
        assert json.loads(call(*words).stdout)[0]["prompt"] == "function "
        said = call("chat", f"tiny/{name}", "--max-new-tokens", 4, input="hello\n/quit\n").stdout
        _, answer, rest = said.split("\n> ")
        assert answer
        assert not rest.strip()
    assert len({texts["base"], texts["continued"], texts["without-replay"]}) == 3


def test_three_kills_change_no_id(whole, tmp_path):
    """Killed three times on the way up, in one store; each run goes on where the last one died."""
    store, built = tmp_path / "store", 0
    for instant in kills.draw_instants(whole, 3, seed=0):
        assert kills.run_and_kill(kills.RECIPE, store, instant)
        left, built = built, len(Store(store).ids())
        assert left <= built < len(whole.ids)
    again = kills.run_whole(kills.RECIPE, store)
    assert built > 0
    assert len(again.built) == len(whole.ids) - built
    assert kills.differences(again.ids, whole.ids) == []


def test_one_flipped_bit_is_refused_with_the_name_of_its_file(call, store, whole, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(store, damaged)
    weights = Store(damaged).open("tiny/base").file("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)

    changed = ("run", kills.RECIPE, "--no-report", "--set", "continued.seed=1")
    refused = call(*changed, code=2, on=damaged).stderr
    assert "model.safetensors has other bytes" in refused
    assert "gc --damaged" in refused
    assert (
        "model.safetensors" in call("generate", "base", "--prompt", "a", code=2, on=damaged).stderr
    )
    found = json.loads(call("verify", "--json", code=2, on=damaged).stdout)["damaged"]
    assert list(found) == [whole.ids["base"]]
    assert "model.safetensors has other bytes" in str(found)
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        Store(damaged).checked(Store(damaged).open("base"))


def test_the_arithmetic_of_the_kill_proof():
    """Instants lie one in each span of the run; a missing or another id is a difference."""
    begins = {"a": 0.0, "b": 5.0, "c": 15.0}
    whole = kills.Whole(ids={}, built=(), begins=begins, end=20.0)
    instants = kills.draw_instants(whole, 4, seed=3)
    assert [int((begins[i.entry] + i.offset) // 5) for i in instants] == [0, 1, 2, 3]
    assert [i.entry for i in instants] == ["a", "b", "b", "c"]
    assert instants == kills.draw_instants(whole, 4, seed=3)
    assert instants != kills.draw_instants(whole, 4, seed=4)
    assert kills.differences({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == ["b", "c"]
    assert kills.differences({"a": "1"}, {"a": "1"}) == []


def test_a_line_that_announces_an_entry():
    assert kills.entry_of("base (pretrain) ...") == "base"
    assert kills.entry_of("base  pretrain  model  3f2a9c81d0b7  re-used, cost 61.2 s") == "base"
    assert kills.entry_of("base  pretrain  model  3f2a9c81d0b7  built in 61.2 s") is None
    assert kills.entry_of("held-out loss 5.366 nats per token") is None
