"""An environment a client, made once: a venv, or a folder of node_modules."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class NotInstalledError(Exception):
    """This machine cannot have the client; says why."""


@dataclass(frozen=True)
class Client:
    """script: in this folder. packages: for pip, or for npm where the script is JavaScript; none:
    this Python will do. program: what must be on the path. hashes: of the first package, where a
    release of its was once not its makers' own."""

    script: str
    packages: tuple[str, ...] = ()
    program: str = ""
    hashes: tuple[str, ...] = ()

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")


CLIENTS = {
    "openai-2": Client("check_openai.py", ("openai>=2,<3",)),
    "openai-3": Client("check_openai.py", ("openai>=3",)),
    "openai-node": Client("check_openai.mjs", ("openai@7",), program="npm"),
    "langchain": Client("check_langchain.py", ("langchain-openai",)),
    "litellm": Client(
        "check_litellm.py",
        ("litellm==1.109.1",),
        hashes=("sha256:1c8b4dd671fa0cd0850aa751678704ff77e595fb1e6085b2dc3be39ee19bdaaf",),
    ),
    "pydantic-ai": Client("check_pydantic_ai.py", ("pydantic-ai-slim[openai]",)),
    "llm": Client("check_llm.py", ("llm",)),
    "lm-eval": Client("check_lm_eval.py", ("lm-eval[api]",)),
    "inspect-ai": Client("check_inspect_ai.py", ("inspect-ai", "openai")),
    "curl": Client("check_curl.py", program="curl"),
}


def make_environment(client: Client, folder: Path) -> list[str]:
    """Words that begin the command of a check; NotInstalledError where it cannot be had."""
    if client.program and shutil.which(client.program) is None:
        raise NotInstalledError(f"{client.program} is not on this machine")
    if not client.packages:
        return [sys.executable]
    installed = folder / "installed"
    wanted = "\n".join([*client.packages, *client.hashes]) + "\n"
    if not installed.exists() or installed.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (_install_node if client.is_node else _install_python)(client, folder)
        installed.write_text(wanted)
    return ["node"] if client.is_node else [str(folder / "bin" / "python")]


def _install_python(client: Client, folder: Path) -> None:
    _call([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    if client.hashes:  # the package itself by its hash; what it needs comes after
        listed = folder / "hashed.txt"
        hashes = " ".join(f"--hash={value}" for value in client.hashes)
        listed.write_text(f"{client.packages[0]} {hashes}\n")
        _call([*pip, "--no-deps", "--require-hashes", "-r", str(listed)])
    _call([*pip, *client.packages])


def _install_node(client: Client, folder: Path) -> None:
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    _call([*words, "--prefix", str(folder), *client.packages])


def _call(words: Sequence[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).splitlines()
        errors = [line for line in lines if "err" in line.lower()] or lines
        shown = " / ".join(line if len(line) < 150 else f"{line[:150]}..." for line in errors[-3:])
        raise NotInstalledError(f"{Path(words[0]).name}: {shown}")
