"""Do Rung's preference objectives compute what TRL's do? `python benchmarks/check_preferences.py`

The same weights, the same pairs, a policy and another model as its reference, float32. TRL's own
trainers say the loss and gradient norm of a batch, ours the same from a forest. The last line is
JSON; the exit code is 1 where any of them differs by more than 1e-4 of its value.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cells import HERE, PEERS_PYTHON
from compare import cell_environment
from workload import Plan, Shape, build_model, build_workload, read_samples

SHAPE = Shape(width=128, layers=2, inner=256, vocab=512)
PLAN = Plan(samples=4, warmup=1, steps=1)
BETA = 0.3
TOLERANCE = 1e-4

OURS = {
    "dpo": ("dpo", {}),
    "dpo per_token": ("dpo", {"per_token": True}),
    "dpo hinge": ("dpo", {"loss": "hinge"}),
    "dpo robust": ("dpo", {"label_smoothing": 0.1, "robust": True}),
    "ipo": ("ipo", {}),
    "apo": ("apo", {}),
    "simpo": ("simpo", {}),
    "simpo smoothed": ("simpo", {"label_smoothing": 0.1}),
    "orpo without nll": ("orpo", {"nll_weight": 0.0}),
    "kto": ("kto", {"undesirable_weight": 1.3}),
}


def our_value(name: str, folder: Path) -> dict[str, float]:
    """Loss and gradient norm of the one update, and KTO's KL."""
    import torch

    from rung.model.load import context_length, load_model
    from rung.stages import STAGES
    from rung.train.reference import answer_logps_of

    command, options = OURS[name]
    module = STAGES[command].load()
    kind = next(v for k, v in vars(module).items() if k.lower() == f"{command}objective")
    rows = read_samples(folder)
    config = module.Config(
        precision="fp32", device="cpu", beta=BETA, rankings_per_update=len(rows), **options
    )
    trees = in_order(single(rows) if command == "kto" else both(rows), config.seed)
    frozen, policy = (load_model(folder / part) for part in ("model", "policy"))
    wanted = kind.reference_trees(trees, config, limit=context_length(frozen))
    known = answer_logps_of(frozen, wanted, config=config, microbatch_tokens=4096) if wanted else []
    objective = kind(policy, trees, known, config)
    loss, count = 0.0, 0.0
    for batch in next(iter(objective.updates(0))):
        part = objective.loss(batch)
        part.loss.backward()
        loss, count = loss + float(part.loss.detach()), count + part.count
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters()]))
    more = {"kl": objective.kl} if command == "kto" else {}
    return {"loss": loss / count, "grad_norm": norm / count, **more}


def both(rows):  # type: ignore[no-untyped-def]
    return [_tree(row, ("chosen", "rejected"), [1, 2], None) for row in rows]


def single(rows):  # type: ignore[no-untyped-def]
    """Chosen and rejected answers by turns, one of each prompt, as on TRL's side."""
    sides = ("chosen", "rejected") * len(rows)
    return [
        _tree(row, (side,), [1], [side == "chosen"]) for row, side in zip(rows, sides, strict=False)
    ]


def _tree(row, sides, ranks, labels):  # type: ignore[no-untyped-def]
    from rung.feedback.schema import Ranking
    from rung.tokens.forest import group
    from rung.train.ranked import RankedTree

    empty = [[] for _ in sides]
    record = Ranking("x", [], [""] * len(sides), [True] * len(sides), ranks, empty, labels=labels)
    answers = [np.array(row[side]) for side in sides]
    return RankedTree(group(np.array(row["prompt"]), answers), np.array(ranks), record)


def in_order(trees, seed):  # type: ignore[no-untyped-def]
    """Shuffled so that the first update sees them in the order of the file: whose answers are
    strangers to which prompt depends on it."""
    from rung.train.ranked import EpochOrder

    shuffled = list(trees)
    for tree, place in zip(trees, EpochOrder(len(trees), len(trees), seed).at(0), strict=True):
        shuffled[place] = tree
    return shuffled


def sharpen(folder: Path) -> None:
    """Weights times 2: a reference that is surer than the policy, so that the KL is above 0."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {name: value * 2 for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def main() -> None:
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"no peers' environment in {PEERS_PYTHON.parents[1]}: `make bench-dpo`")
    sys.path.insert(0, str(HERE.parent))
    with TemporaryDirectory(prefix="rung-check-") as name:
        folder = Path(name)
        build_workload(folder, "dpo", SHAPE, PLAN)
        build_model(folder / "policy", SHAPE, seed=1)
        sharpen(folder / "model")
        done = subprocess.run(
            [str(PEERS_PYTHON), str(HERE / "peers_trl_losses.py"), name],
            env=cell_environment(folder, threads=1),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit("\n".join(done.stderr.strip().splitlines()[-15:]))
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        ours = {name: our_value(name, folder) for name in OURS}
    worst = 0.0
    print(f"{'objective':<20} {'figure':<10} {'rung':>14} {'TRL':>14} {'difference':>12}")
    for name, figures in theirs.items():
        for figure, value in figures.items():
            gap = abs(ours[name][figure] - value) / max(abs(value), 1e-9)
            worst = max(worst, gap)
            print(
                f"{name:<20} {figure:<10} {ours[name][figure]:>14.7f} {value:>14.7f} {gap:>12.1e}"
            )
    print(json.dumps({"ours": ours, "theirs": theirs, "worst": worst}))
    if worst > TOLERANCE:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
