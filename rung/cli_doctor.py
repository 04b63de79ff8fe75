"""The command doctor: is this machine fit for Rung?"""

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import typer

from rung.cli_output import JsonOption, StoreOption, guarded, print_json

_PACKAGES = [
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pyarrow",
    "daft",
    "pydantic",
    "typer",
    "rich",
    "plotly",
    "jinja2",
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file to `app`."""
    app.command("doctor", epilog="Example: rung doctor --json")(guarded(doctor))


def doctor(store: StoreOption = None, json: JsonOption = False) -> None:
    """Show processor, memory, disk, versions, and what training will use of them."""
    from rung.pipeline import where_and_when
    from rung.store.store import Store

    root = Store(store).root
    disk = shutil.disk_usage(next(p for p in (root, *root.parents) if p.exists()))
    versions = {name: _version(name) for name in _PACKAGES}
    findings: dict[str, Any] = {
        **{k: v for k, v in where_and_when().items() if k != "time"},
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 2),
        "available_memory_gb": _available_gb(),
        "disk_free_gb": round(disk.free / 1e9, 2),
        "store": str(root),
        "versions": versions,
    }
    problems = [f"package {name} is not installed" for name, v in versions.items() if v is None]
    if versions["torch"]:
        findings["training"] = _training()
        findings["generation"] = _generation()
    if (findings["available_memory_gb"] or 99) < 6:
        problems.append("less than 6 GB of memory free; the quickstart was planned for 6 GB")
    if findings["disk_free_gb"] < 5:
        problems.append("less than 5 GB of disk free")
    findings["problems"] = problems
    if json:
        print_json(findings)
    else:
        for key, value in findings.items():
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            elif isinstance(value, list):
                value = "; ".join(value) or "none"
            typer.echo(f"{key:20} {value}")
    if any("not installed" in problem for problem in problems):
        raise typer.Exit(2)


def _generation() -> str:
    from rung.engine.native import why_not

    reason = why_not()
    return f"steps in torch, slower: {reason}" if reason else "steps compiled for this processor"


def _training() -> dict[str, Any]:
    import torch

    from rung.model.precision import has_bf16, pick_device

    device = pick_device("auto")
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if has_bf16(device) else "fp32 (no bf16 products here)",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _available_gb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), None)
    return round(int(kilobytes) * 1024 / 1e9, 2) if kilobytes else None
