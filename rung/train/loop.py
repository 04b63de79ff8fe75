"""The one training loop: pretrain, SFT, classify, reward, DPO, PPO and GRPO all run in it.

An objective says what to train, on which batches, with which loss. The loop owns devices,
precision, accumulation, clipping, the schedule, non-finite values, metrics, checkpoints, signals.
A run is a pure function of (objective, config): killed at any instant and started again it ends in
the same bytes, because batches, schedule and random numbers derive from the iteration alone.
"""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from rung.errors import Interrupted, ResourceError, TrainingError
from rung.model.memory import used_memory
from rung.model.precision import autocast, pick_device, pick_dtype
from rung.store import checkpoint
from rung.store.context import StageContext
from rung.store.runlog import SAMPLES, RunLog
from rung.train.optim import TrainConfig, build_optimizers, clip_gradients, lr_factor, set_lr
from rung.train.state import load_state, save_state

B = TypeVar("B")


@dataclass
class LossSums:
    """One microbatch: sums, never means; only the loop divides, once, by the count of the update.

    loss: differentiable sum. count: what it sums over (tokens, pairs, rankings). tokens: how many
    tokens went through the model. metrics: name -> (sum, count), averaged over the update.
    """

    loss: Tensor
    count: float
    tokens: int
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What the model wrote in training, for people to read. score: by whatever graded it."""

    prompt: str
    text: str
    score: float | None = None


class EarlyStop(Exception):
    """Raised by an objective's `after_iteration`: a stop rule fired; the reason is reported."""


class Objective(Generic[B]):
    """A training algorithm. Subclasses give modules, iterations, updates and a loss.

    An iteration is one optimizer update for likelihood objectives, a rollout and several updates
    for reinforcement learning. Checkpoints fall between iterations.
    """

    name = "objective"
    watch: Callable[[int], list[Sample]] | None = None
    """Asked for samples after each iteration, where a stage sets it (rung/train/watch.py)."""

    def modules(self) -> nn.Module:
        """What is trained and checkpointed (frozen parameters inside are kept, not trained)."""
        raise NotImplementedError

    def num_iterations(self) -> int:
        raise NotImplementedError

    def updates(self, iteration: int) -> Iterable[list[B]]:
        """The optimizer updates of an iteration, each a list of microbatches."""
        raise NotImplementedError

    def loss(self, batch: B) -> LossSums:
        raise NotImplementedError

    def after_iteration(self, iteration: int, metrics: dict[str, float]) -> list[str]:
        """Adapt coefficients, add figures to `metrics` (they are logged), raise EarlyStop.

        Returns lines worth showing to the user: samples, warnings.
        """
        return []

    def take_samples(self) -> list[Sample]:
        """What the model wrote since the last call; asked after `after_iteration`."""
        return []

    def state(self) -> dict[str, Any]:
        """JSON state beyond the weights."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class TrainResult:
    """What a run did. seconds and session_tokens count this process only, after a resume.

    dtype: the compute type of its matrix products.
    """

    iterations: int
    tokens: int
    session_tokens: int
    seconds: float
    skipped: int
    stopped: str
    last: dict[str, float]
    resumed_at: int
    dtype: torch.dtype


def train(objective: Objective[Any], config: TrainConfig, context: StageContext) -> TrainResult:
    """Run `objective` to its end, from the newest valid checkpoint under `context.run` if any.

    Raises Interrupted after Ctrl-C (a checkpoint is written first) and TrainingError when the
    loss stays non-finite.
    """
    return _Run(objective, config, context).run()


class _Run:
    def __init__(
        self, objective: Objective[Any], config: TrainConfig, context: StageContext
    ) -> None:
        self.objective, self.config, self.context = objective, config, context
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        self.modules = objective.modules()
        self.optimizers = build_optimizers(self.modules, config)
        self.log = RunLog(context.run)
        self.samples = RunLog(context.run, SAMPLES)
        self.total = objective.num_iterations()
        self.every = math.ceil(self.total / config.checkpoints) if config.checkpoints else 0
        self.folder = context.run / "checkpoints"
        self.skipped = 0
        self.in_a_row = 0
        self.rollbacks = 0
        self.barred: set[int] = set()  # iterations that are left out after a roll-back
        self.tokens = 0

    def run(self) -> TrainResult:
        started = time.perf_counter()
        first = self._resume()
        before = self.tokens
        progress = self.context.progress
        progress.start(self.objective.name, total=self.total, unit="step")
        iteration, stopped = first, ""
        last: dict[str, float] = {}
        with _signals() as stop:
            while iteration < self.total:
                if iteration in self.barred:
                    iteration += 1
                    continue
                metrics = self._iteration(iteration)
                if self.in_a_row > self.config.max_skips:
                    iteration = self._roll_back(iteration)
                    continue
                try:
                    lines = self.objective.after_iteration(iteration, metrics)
                except EarlyStop as reason:
                    stopped, lines = str(reason), [f"stopped at iteration {iteration}: {reason}"]
                last = metrics
                self.log.append({"step": iteration, **metrics})
                watched = self.objective.watch(iteration) if self.objective.watch else []
                for sample in [*self.objective.take_samples(), *watched]:
                    self.samples.append({"step": iteration, **asdict(sample)})
                for line in lines:
                    progress.say(line)
                iteration += 1
                progress.update(iteration, **_shown(metrics))
                if stopped:
                    break
                # never in a streak of bad updates: going back must lead to good weights
                due = self.every and iteration % self.every == 0 and iteration < self.total
                due = due and not self.in_a_row
                if due or stop.requested:
                    self._checkpoint(iteration)
                if stop.requested:
                    raise Interrupted(
                        f"stopped at step {iteration} of {self.total}; a checkpoint is written."
                        " Run the same command again to go on from here"
                    )
        progress.finish()
        return TrainResult(
            iterations=iteration,
            tokens=self.tokens,
            session_tokens=self.tokens - before,
            seconds=time.perf_counter() - started,
            skipped=self.skipped,
            stopped=stopped,
            last=last,
            resumed_at=first,
            dtype=self.dtype,
        )

    def _iteration(self, iteration: int) -> dict[str, float]:
        began, tokens, sums = time.perf_counter(), 0, _Averages()
        torch.manual_seed(_seed(self.config.seed, iteration))  # dropout is all that draws from it
        factor = lr_factor(self.config, at=(iteration + 1) / (self.total + 1))
        set_lr(self.optimizers, factor)
        for microbatches in self.objective.updates(iteration):
            tokens += self._update(microbatches, sums)
        seconds = time.perf_counter() - began
        self.tokens += tokens
        metrics = sums.means()
        metrics["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        metrics["tokens"] = tokens
        metrics["tokens_per_s"] = tokens / seconds if seconds else 0.0
        metrics["seconds"] = seconds
        metrics |= self._memory()
        return metrics

    def _memory(self) -> dict[str, float]:
        """Gigabytes at this moment; of a GPU the most so far. Costs some microseconds."""
        used = used_memory()
        found = {} if used is None else {"memory_gb": used / 1e9}
        if self.device.type == "cuda":
            found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return found

    def _update(self, microbatches: list[Any], sums: "_Averages") -> int:
        """One optimizer update from all of `microbatches`; returns the tokens it saw."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, count, tokens, parts = 0.0, 0.0, 0, _Averages()
        for batch in microbatches:
            with autocast(self.dtype, self.device):
                part = self.objective.loss(batch)
            if part.loss.requires_grad:
                part.loss.backward()
            loss += float(part.loss.detach())
            count += part.count
            tokens += part.tokens
            parts.add(part.metrics)
        if count <= 0:
            sums.add({"empty_updates": (1.0, 1.0)})
            return tokens
        grads = [p.grad for p in self.modules.parameters() if p.grad is not None]
        torch._foreach_mul_(grads, 1.0 / count)
        norm = clip_gradients(self.modules, limit=self.config.clip)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            self.in_a_row += 1
            self.context.progress.say(
                f"update skipped: loss {loss / count:.4g}, gradient norm {norm:.4g}"
                f" ({self.skipped} skipped so far)"
            )
            sums.add({"skipped": (1.0, 1.0)})
            return tokens
        self.in_a_row = 0
        for optimizer in self.optimizers:
            optimizer.step()
        sums.add({"loss": (loss, count), "grad_norm": (norm, 1.0)})
        sums.merge(parts)
        return tokens

    def _resume(self) -> int:
        found = checkpoint.latest_valid(self.folder)
        if found.path is None:
            self._cut_records(-1)
            return 0
        for line in found.skipped:
            self.context.progress.say(line)
        extra = load_state(found.path, self.modules, self.optimizers)
        self.objective.load_state(extra["objective"])
        self.skipped, self.rollbacks = extra["skipped"], extra["rollbacks"]
        self.tokens, self.barred = extra["tokens"], set(extra["barred"])
        self.in_a_row = extra["in_a_row"]
        self._cut_records(found.step - 1)
        self.context.progress.say(f"resumed at step {found.step} of {self.total}")
        return found.step

    def _cut_records(self, step: int) -> None:
        self.log.truncate_after(step)
        self.samples.truncate_after(step)

    def _checkpoint(self, iteration: int) -> None:
        extra = {
            "objective": self.objective.state(),
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "tokens": self.tokens,
            "barred": sorted(self.barred),
            "in_a_row": self.in_a_row,
        }
        self.log.sync()
        try:
            checkpoint.save(
                self.folder,
                iteration,
                lambda path: save_state(path, self.modules, self.optimizers, extra=extra),
            )
        except ResourceError as error:  # a full disk must not end the training itself
            self.context.progress.say(f"checkpoint at step {iteration} not written: {error}")

    def _roll_back(self, iteration: int) -> int:
        """Back to the last checkpoint, leaving out the iterations that led here."""
        if self.rollbacks >= 1:
            raise TrainingError(
                f"the loss is non-finite again at step {iteration} after going back once; "
                "lower lr and matrix_lr, or set precision: fp32"
            )
        bad = range(iteration - self.in_a_row + 1, iteration + 1)
        barred = self.barred | set(bad)
        if checkpoint.latest_valid(self.folder).path is None:
            raise TrainingError(
                f"the loss is non-finite since step {bad[0]} and no checkpoint exists yet; "
                "lower lr and matrix_lr, or set precision: fp32"
            )
        skipped = self.skipped
        start = self._resume()
        self.barred, self.skipped, self.in_a_row = barred, skipped, 0
        self.rollbacks += 1
        self.context.progress.say(
            f"{len(bad)} updates in a row were non-finite: back to step {start}, leaving them out"
        )
        return start


def _seed(seed: int, iteration: int) -> int:
    """Of an iteration's random numbers: the same after a resume."""
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1)[0])


class _Averages:
    """Means from (sum, count) pairs."""

    def __init__(self) -> None:
        self.sums: dict[str, list[float]] = {}

    def add(self, pairs: dict[str, tuple[float, float]]) -> None:
        for name, (total, count) in pairs.items():
            entry = self.sums.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += count

    def merge(self, other: "_Averages") -> None:
        self.add({name: (total, count) for name, (total, count) in other.sums.items()})

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items() if count}


def _shown(metrics: dict[str, float]) -> dict[str, float | str]:
    names = ("loss", "tokens_per_s", "objective/kl", "objective/scores", "reward", "kl")
    return {name.split("/")[-1]: metrics[name] for name in names if name in metrics}


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _signals() -> Iterator[_Stop]:
    """The first Ctrl-C or SIGTERM asks for a stop after this iteration, the second ends at once."""
    stop = _Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever started it handles signals
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
