"""When layers are compiled: long runs, where a compiler works."""

import pytest
import torch

from rung.errors import ResourceError
from rung.train import compiled
from rung.train.compiled import MIN_FLOPS, should_compile
from rung.train.optim import TrainConfig

CPU = torch.device("cpu")


def decide(mode: str, flops: float) -> tuple[bool, list[str]]:
    said: list[str] = []
    config = TrainConfig(compile=mode)
    return should_compile(config, flops=flops, device=CPU, say=said.append), said


def test_long_runs_compile_where_a_compiler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not", lambda device: "")
    assert decide("auto", MIN_FLOPS) == (True, [])
    assert decide("auto", MIN_FLOPS / 2) == (False, [])
    assert decide("never", MIN_FLOPS) == (False, [])
    assert decide("always", 1.0) == (True, [])


def test_without_a_compiler_long_runs_go_on_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "why_not", lambda device: "no compiler found")
    does, said = decide("auto", MIN_FLOPS)
    assert not does
    assert "no compiler found" in said[0]
    assert decide("auto", 1.0) == (False, [])  # not asked, so not said
    with pytest.raises(ResourceError, match=r"no compiler found.*set compile: never"):
        decide("always", 1.0)


def test_a_missing_compiler_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("no g++\nand a long stack")

    monkeypatch.setattr(torch, "compile", refuse)
    compiled.why_not.cache_clear()
    assert compiled.why_not(CPU) == "no g++"
    compiled.why_not.cache_clear()
