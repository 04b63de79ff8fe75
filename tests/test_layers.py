"""Imports point down the layers, lazy ones too, and heavy ones stay out of start-up."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rung"

# Later may import earlier. `tokens tasks feedback` stand side by side in the data flow; feedback
# may grade with tasks, tasks may count tokens, nothing goes back.
LAYERS = [
    "errors",
    "config",
    "store",
    "text",
    "tokens",
    "tasks",
    "feedback",
    "model",
    "engine",
    "train",
    "evals",
    "exchange",
    "serve",
    "stages",
    "samples",
    "survey",
    "progress",
    "meter",
    "yamlfile",
    "aliases",
    "recipe",
    "rates",
    "estimate",
    "plan",
    "pipeline",
    "cli_output",
    "cli",
]
HEAVY = {"torch", "transformers", "daft", "pyarrow", "plotly", "tokenizers", "numpy", "pydantic"}


def modules():
    """Every module of the package: dotted name -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = list(path.relative_to(ROOT.parent).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def layer(module):
    """`cli_store` and `__main__` belong to cli; `rung` itself to the bottom."""
    room = module.split(".")[1] if "." in module else "errors"
    if room == "__main__" or (room.startswith("cli_") and room != "cli_output"):
        room = "cli"
    assert room in LAYERS, f"{module} has no layer: add {room!r} to LAYERS"
    return LAYERS.index(room)


def imports(tree, known, *, lazy):
    """Modules of rung that `tree` imports, those inside functions too when `lazy`."""
    nodes = list(ast.walk(tree) if lazy else eager(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the layer"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def eager(tree):
    """Nodes that run when the module is imported: no function bodies, no TYPE_CHECKING."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)


def test_imports_point_down():
    known = modules()
    wrong = []
    for module, path in known.items():
        for target in imports(ast.parse(path.read_text()), known, lazy=True):
            if target.split(".")[0] == "rung" and layer(target) > layer(module):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_check_itself_sees_lazy_and_upward_imports():
    tree = ast.parse("def f():\n    from rung.train import loop\n")
    assert list(imports(tree, {"rung.train.loop"}, lazy=True)) == ["rung.train.loop"]
    assert list(imports(tree, {"rung.train.loop"}, lazy=False)) == []
    assert layer("rung.train.loop") > layer("rung.store.store")


def test_importing_does_nothing_at_the_top():
    """No call statement at module level outside `__main__`: no set-up, probe, download or print."""
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                allowed = module == "rung.__main__" or called.endswith(
                    ("add_implicit_resolver", "setdefault", ".register", ".register_autograd")
                )
                assert allowed, f"{path.name}: {called}(...) runs on import"


@pytest.mark.parametrize("module", ["rung", "rung.cli", "rung.stages"])
def test_start_up_imports_nothing_heavy(module):
    code = f"import sys, {module}; print(' '.join(sorted(m.split('.')[0] for m in sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent
    )
    assert not HEAVY & set(out.stdout.split())


@pytest.mark.parametrize("module", ["rung.recipe", "rung.store.store", "rung.pipeline"])
def test_the_spine_works_without_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_a_plan_waits_for_no_model_code():
    """Stages are loaded for their configs: transformers' models come when one is built or read."""
    code = (
        "import sys\nfrom rung.stages import STAGES\n"
        "for stage in STAGES.values(): stage.load()\n"
        "assert 'torch' in sys.modules\n"
        "assert 'transformers.modeling_utils' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


# The one place that speaks to another machine, and only to a url that the user names.
CLIENT = ROOT / "engine" / "transport.py"
BANNED = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "requests", "urllib", "httpx"}


def test_no_pickle_eval_shell_or_network():
    for path in modules().values():
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '?')}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert not BANNED & {name.split(".")[0] for name in named}, where
                assert path == CLIENT or "http.client" not in named, where
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load", "yaml.load", "os.system"), where
                assert not any(k.arg == "shell" for k in node.keywords), where
                for keyword in node.keywords:
                    off = ast.unparse(keyword.value) == "False"
                    assert keyword.arg != "trust_remote_code" or off, where
