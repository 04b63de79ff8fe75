"""The table of clients: what counts as passed, what as failed, and what is said of a client."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "clients")]

import behaviours  # noqa: E402
import clients  # noqa: E402
import environments  # noqa: E402


def test_what_a_script_announced_and_did_not_come_to_fails():
    told = [
        {"version": "3.1", "behaviours": ["stream", "chat", "n"]},
        {"behaviour": "chat", "error": None},
        {"behaviour": "stream", "error": "AssertionError"},
    ]
    column = clients.read_column(told, end="exit code -9: killed")
    assert [column.word(b) for b in ("chat", "stream", "n", "tools")] == ["ok", "FAIL", "FAIL", "-"]
    assert "exit code -9" in column.errors["n"]
    summary = clients.summarise({"x": column}, {"y": "npm is not here"})
    assert (summary["passed"], summary["cells"]) == (1, 3)
    assert summary["clients"]["x"]["version"] == "3.1"
    assert summary["left_out"] == {"y": "npm is not here"}


def test_a_script_that_does_not_start_fails_everywhere():
    column = clients.read_column([], end="exit code 1: No module named 'x'")
    assert column.errors.keys() == behaviours.BEHAVIOURS.keys()
    assert "No module" in column.errors["chat"]


def test_the_table_shows_the_words_and_the_errors(capsys):
    column = clients.Column("2.0", {"chat": None, "stop": "check_x.py:9 -> NotFoundError: no"})
    clients.print_table({"some-client": column})
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:30].strip(): line[30:].strip() for line in lines if line[:30].strip()}
    assert (rows["chat"], rows["stop strings"], rows["stream"]) == ("ok", "FAIL", "-")
    assert rows["version"] == "2.0"
    assert "NotFoundError: no" in lines[-1]


def test_an_error_says_the_check_s_line():
    def broken() -> None:
        raise ValueError("too small")

    assert behaviours.error_of(broken) == " -> ValueError: too small"
    assert behaviours.error_of(lambda: None) is None


def test_stop_strings_are_found_where_the_text_has_them_first():
    # The first two letters in a row from the third character on: "cd"; it stands first at 3.
    assert behaviours.stop_in("ab cd cd") == ("cd", "ab ")
    # "ab" from the third character on is also at 0: nothing comes before it.
    assert behaviours.stop_in("ab ab") == ("ab", "")


def test_every_client_has_its_script_and_no_name_is_made_up(monkeypatch):
    for client in environments.CLIENTS.values():
        assert (BENCHMARKS / "clients" / client.script).exists()
    assert clients.parse_options(["--clients", "curl,llm"]).clients == ["curl", "llm"]
    with pytest.raises(SystemExit):
        clients.parse_options(["--clients", "nobody"])


def test_a_client_whose_program_is_missing_is_left_out_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    curl = environments.CLIENTS["curl"]
    with pytest.raises(environments.NotInstalledError, match="curl is not on this machine"):
        environments.make_environment(curl, tmp_path / "home")


def test_an_environment_is_made_once_and_again_for_other_packages(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(environments, "_install_python", lambda client, _: made.append(client))
    one = environments.Client("check_openai.py", ("openai>=2,<3",))
    two = environments.Client("check_openai.py", ("openai>=3",))
    for client in (one, one, two):
        python = environments.make_environment(client, tmp_path / "home")
    assert made == [one, two]
    assert python == [str(tmp_path / "home" / "bin" / "python")]


def test_scripts_see_nothing_of_the_user_s_own_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    found = clients.environment_of_client(tmp_path, url="http://x", scratch=tmp_path)
    assert "secret" not in json.dumps(found)
    assert found["CHECK_URL"] == "http://x/v1"
