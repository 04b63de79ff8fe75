"""Which logged figures stand together on one chart, and what they are called."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """One figure: as it is logged, and as people call it."""

    name: str
    label: str


@dataclass(frozen=True)
class Panel:
    """One chart. main: shown at once; others are drawn when they are asked for."""

    title: str
    unit: str
    series: tuple[Series, ...]
    main: bool = True

    @property
    def from_zero(self) -> bool:
        """Whether the axis begins at zero: amounts, whose small changes are none."""
        return self.title in _AMOUNTS


MAIN: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "", (("loss", "training"), ("heldout_loss", "held-out text"))),
    ("Bits per byte", "of held-out text", (("heldout_bpb", "held-out text"),)),
    (
        "Reward",
        "score of the reward model",
        (
            ("reward", "reward"),
            ("objective/scores", "rollout"),
            ("eval/scores", "held-out prompts"),
            ("mean_reward", "mean"),
            ("rewards/chosen", "preferred answers"),
            ("rewards/rejected", "the others"),
        ),
    ),
    (
        "Truth",
        "share or utility, held-out prompts",
        (
            ("eval/utility", "noise-free utility"),
            ("eval/stop_rate", "answers that stop"),
            ("eval/false_claim_rate", "claims about made-up names"),
            ("eval/refusal_rate_on_real", "refusals of what exists"),
        ),
    ),
    (
        "KL",
        "to the model before, nats",
        (("objective/kl", "per answer"), ("kl", "per token")),
    ),
    (
        "Accuracy",
        "share of pairs",
        (
            ("accuracy", "training"),
            ("rewards/accuracies", "training"),
            ("heldout_accuracy", "held-out"),
        ),
    ),
    ("Speed", "tokens per second", (("tokens_per_s", "tokens per second"),)),
    ("Memory", "GB", (("memory_gb", "process"), ("gpu_memory_gb", "GPU, most so far"))),
)
AXES = (("step", "step"), ("tokens", "tokens"), ("seconds", "seconds of training"))
_AMOUNTS = ("Speed", "Memory")
_PLAIN = ("step", "tokens", "seconds")  # what the axes are made of


def panels_of(names: Sequence[str], *, growing: bool = False) -> list[Panel]:
    """The charts for figures of these names: main ones first, each figure on one chart.

    growing: a run still goes on: a chart waits for all figures it may get.
    """
    left = dict.fromkeys(name for name in names if name not in _PLAIN)
    found = []
    for title, unit, known in MAIN:
        if any(name in left for name, _ in known):
            series = [Series(name, label) for name, label in known if growing or name in left]
            found.append(Panel(title, unit, tuple(series)))
            for one in series:
                left.pop(one.name, None)
    # Figures of one prefix have different scales: a chart each.
    others = sorted(left, key=lambda name: (name.split("/")[0], name))
    return found + [Panel(say(n), "", (Series(n, say(n)),), main=False) for n in others]


def say(name: str) -> str:
    """health/stop_rate: "health: stop rate"."""
    return name.replace("/", ": ").replace("_", " ")
