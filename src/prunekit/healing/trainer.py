"""The training loop: a budget of tokens, a cosine schedule, the best kept, each step repeatable.

A step's samples follow from the seed and the step's number, so a run that was killed goes on from
its last saved state as if it had not been: on one CPU process to the same weights, bit for bit.
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.healing.engine import Engine
from prunekit.healing.student import Task

STATE = "state.pt"
SETTINGS = "settings.json"
LOSSES = "losses.jsonl"
BETAS = (0.9, 0.95)
MOST = 1e30  # more overflows in float32


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: `steps` of `batch` samples, `micro` of them at once in a process.

    The learning rate rises to `rate` over the share `warmup` of the steps and falls along a cosine
    to `floor` of it, which the last step has. The loss on held-out samples is taken `evaluations`
    times; after `patience` of them without a new best, if given, training stops. A state to go on
    from is saved every `save_every` seconds. Raises InputError for numbers that make no sense.
    """

    steps: int
    batch: int
    micro: int
    rate: float
    warmup: float = 0.03
    floor: float = 0.1
    weight_decay: float = 0.0
    clip: float = 1.0
    evaluations: int = 10
    patience: int | None = None
    save_every: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        shares = {"warmup": self.warmup, "floor": self.floor}
        least = {"evaluations": self.evaluations, "patience": self.patience}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name} {share}: a share from 0 to 1")
        for name, value in {"rate": self.rate, "clip": self.clip}.items():
            if not 0 < value < MOST:
                raise InputError(f"{name} {value}: a number above 0")
        for name, value in {"weight_decay": self.weight_decay,
                            "save_every": self.save_every}.items():  # fmt: skip
            if not 0 <= value < MOST:
                raise InputError(f"{name} {value}: a number from 0 on")
        for name, count in least.items():
            if count is not None and count < 1:
                raise InputError(f"{name} {count}: at least 1")

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with in step 0, 1, ..., steps - 1."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, self.steps - 1 - rising))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2

    def evaluated_at(self) -> set[int]:
        """After how many steps the held-out loss is taken: none, ..., all."""
        count = max(1, min(self.evaluations, self.steps))
        return {round(self.steps * part / count) for part in range(count + 1)}


@dataclass(frozen=True)
class History:
    """What a training was: the held-out losses before and at the best step, by name, and why it
    ended. `tokens_per_second` is of all processes together, held-out losses left out."""

    before: dict[str, float]
    best: dict[str, float]
    best_step: int
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    ended: str


class Report(Protocol):
    """Is told of every step."""

    def __call__(self, step: int, steps: int, loss: float, tokens_per_second: float) -> None: ...


def train(
    engine: Engine,
    task: Task,
    layers: Sequence[nn.Module],
    samples: Tensor,
    held: Tensor,
    schedule: Schedule,
    folder: Path,
    settings: dict[str, Any],
    *,
    pruned: Sequence[nn.Parameter] = (),
    report: Report | None = None,
) -> tuple[History, dict[str, Tensor]]:
    """Train the task's parameters that want gradients on `samples` (sample, token); what they were
    when they were best on `held`, by name.

    Zeros of the parameters `pruned` stay zeros. `folder` holds the state to go on from. Raises
    InputError if one is there that other `settings` made, or if the loss is not finite before
    anything was gained.
    """
    wrapped = engine.prepare(task, layers, pruned)
    optimiser = torch.optim.AdamW(
        engine.trained.values(), lr=schedule.rate, betas=BETAS, weight_decay=schedule.weight_decay
    )
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule.factor)
    # Random numbers (dropout) differ between processes, and are the same in every run.
    torch.manual_seed(schedule.seed * 1009 + engine.rank)
    wrapped = engine.begin(
        wrapped, optimiser, micro=schedule.micro, clip=schedule.clip,
        batches=schedule.batch // engine.ranks // schedule.micro,
    )  # fmt: skip
    run = _Run(engine, optimiser, rates, folder, settings)
    run.resume()
    loop = _Loop(engine, task, wrapped, samples, held, schedule)
    if not run.before:
        run.better(0, loop.held_out())
    asked_at = schedule.evaluated_at()
    ended, since_save = "all tokens seen", time.monotonic()
    loop.seconds_held_out = 0.0
    start, started_at = time.monotonic(), run.step
    with _told_to_stop() as told:
        while run.step < schedule.steps:
            losses = loop.step(run.step, optimiser)
            total = _total(task, losses)
            if not math.isfinite(total):
                ended = f"the loss became {total} in step {run.step}"
                break
            rates.step()
            run.step += 1
            seconds = time.monotonic() - start - loop.seconds_held_out
            pace = (run.step - started_at) * loop.tokens_a_step / seconds
            run.log(run.step, losses, float(rates.get_last_lr()[0]), pace)
            if report:
                report(run.step, schedule.steps, total, pace)
            if run.step in asked_at:
                run.better(run.step, loop.held_out())
                if schedule.patience and run.without_gain >= schedule.patience:
                    ended = f"{run.without_gain} held-out losses without a new best"
                    break
            if engine.agree(bool(told) or time.monotonic() - since_save > schedule.save_every):
                run.save()
                since_save = time.monotonic()
                if engine.agree(bool(told)):
                    raise KeyboardInterrupt
    if ended.startswith("the loss") and run.best_step == 0:
        raise InputError(f"{ended}, before anything was gained; try a lower --rate or float32")
    run.write_losses()
    seconds = run.seconds + time.monotonic() - start
    trained_for = max(1e-9, time.monotonic() - start - loop.seconds_held_out)
    history = History(
        before=run.before, best=run.losses, best_step=run.best_step, steps=run.step,
        tokens=run.step * loop.tokens_a_step, seconds=seconds,
        tokens_per_second=(run.step - started_at) * loop.tokens_a_step / trained_for, ended=ended,
    )  # fmt: skip
    return history, run.best


class _Loop:
    """Runs steps and takes held-out losses."""

    def __init__(
        self, engine: Engine, task: Task, wrapped: nn.Module, samples: Tensor, held: Tensor,
        schedule: Schedule,
    ) -> None:  # fmt: skip
        self.engine, self.task, self.wrapped = engine, task, wrapped
        self.samples, self.held, self.schedule = samples, held, schedule
        self.weights = torch.tensor(task.weights, device=engine.device)
        self.tokens_a_step = schedule.batch * samples.shape[1]
        self.seconds_held_out = 0.0

    def step(self, number: int, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """One step; the mean losses of its samples. Weights change only if they are finite."""
        rows = list(self._micro(self._rows(number)))
        batches = [self.samples[numbers].to(self.engine.device) for numbers in rows]
        self.wrapped.train()
        total = torch.zeros(len(self.task.names), device=self.engine.device)
        mine = self.schedule.batch // self.engine.ranks
        for turn, view in enumerate(self.task.views(batches, rows)):
            share = len(batches[turn]) / mine
            last = turn + 1 == len(batches)
            with self.engine.not_yet(self.wrapped, last):
                losses = self.wrapped(batches[turn], view)
                self.engine.backward((losses * self.weights).sum() * share, last)
            total += losses.detach() * share
        total = self.engine.mean(total)
        self.engine.step(optimiser, self.schedule.clip, bool(total.isfinite().all()))
        return dict(zip(self.task.names, total.tolist(), strict=True))

    def held_out(self) -> dict[str, float]:
        """The mean losses of the held-out samples, which lie behind those that are trained on."""
        start = time.monotonic()
        every = torch.arange(len(self.held))
        rows = list(self._micro(every[self.engine.rank :: self.engine.ranks]))
        weights = [len(few) / len(self.held) for few in rows]
        most = list(self._micro(every[:: self.engine.ranks]))
        while len(rows) < len(most):  # processes that share weights must run as often
            rows.append(torch.zeros(1, dtype=torch.long))
            weights.append(0.0)
        self.wrapped.eval()
        total = torch.zeros(len(self.task.names), device=self.engine.device)
        with torch.no_grad():
            for few, weight in zip(rows, weights, strict=True):
                tokens = self.held[few].to(self.engine.device)
                for view in self.task.views([tokens], [few + len(self.samples)]):
                    total += self.engine.evaluated(self.task)(tokens, view) * weight
        total = self.engine.mean(total) * self.engine.ranks
        self.seconds_held_out += time.monotonic() - start
        return dict(zip(self.task.names, total.tolist(), strict=True))

    def _rows(self, step: int) -> Tensor:
        """This process's samples of a step."""
        each = len(self.samples) // self.schedule.batch  # steps in one pass over the text
        generator = torch.Generator().manual_seed(self.schedule.seed * 100003 + step // each)
        order = torch.randperm(len(self.samples), generator=generator)
        at = step % each * self.schedule.batch
        return order[at : at + self.schedule.batch][self.engine.rank :: self.engine.ranks]

    def _micro(self, rows: Tensor) -> Iterator[Tensor]:
        yield from rows.split(self.schedule.micro)


class _Run:
    """What changes while a training runs, and its file."""

    def __init__(
        self, engine: Engine, optimiser: torch.optim.Optimizer,
        rates: torch.optim.lr_scheduler.LambdaLR, folder: Path, settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self.engine, self.optimiser, self.rates = engine, optimiser, rates
        self.folder, self.settings = folder, settings
        self.step = 0
        self.without_gain = 0
        self.before: dict[str, float] = {}
        self.losses: dict[str, float] = {}  # at the best step, held out
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        self.seconds = 0.0
        self.started = time.monotonic()
        self.lines: list[str] = []

    def better(self, step: int, losses: dict[str, float]) -> None:
        """Take a held-out loss down, and the weights if it is the best."""
        if not step:
            self.before = losses
        weights = self.settings["losses"]
        worth = sum(weights.get(name, 0.0) * loss for name, loss in losses.items())
        record = sum(weights.get(name, 0.0) * loss for name, loss in self.losses.items())
        self.without_gain += 1
        if not self.losses or worth < record:
            self.losses, self.best_step, self.without_gain = losses, step, 0
            self.best = self.engine.whole()
        self.lines.append(json.dumps({"step": step, "held_out": losses}))

    def log(self, step: int, losses: dict[str, float], rate: float, pace: float) -> None:
        line = {"step": step, **losses, "rate": rate, "tokens_per_second": round(pace, 1)}
        self.lines.append(json.dumps(line))
        if self.engine.accelerator.trackers:
            self.engine.accelerator.log({**losses, "rate": rate}, step=step)

    def save(self) -> None:
        """Write the state down: whole, or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {
            "step": self.step, "without_gain": self.without_gain, "before": self.before,
            "losses": self.losses, "best_step": self.best_step, "best": self.best,
            "lines": self.lines, "seconds": self.seconds + time.monotonic() - self.started,
            "engine": self.engine.state(self.optimiser, self.folder, self.step),
            "rates": self.rates.state_dict(), "random": torch.get_rng_state(),
        }  # fmt: skip
        if self.engine.rank:
            return
        (self.folder / SETTINGS).write_text(json.dumps(self.settings, indent=2), "utf-8")
        scratch = self.folder / f"{STATE}.partial"
        with scratch.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(self.folder / STATE)
        self.engine.saved(self.folder, state["engine"])

    def write_losses(self) -> None:
        if not self.engine.rank:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = "".join(f"{line}\n" for line in self.lines)
            (self.folder / LOSSES).write_text(text, "utf-8")

    def resume(self) -> None:
        """Go on from the saved state, if there is one."""
        file = self.folder / STATE
        if not file.is_file():
            return
        self._check_settings()
        try:
            state = torch.load(file, weights_only=True)
        except Exception as error:
            raise InputError(
                f"{file}: broken ({str(error).partition(chr(10))[0][:100]}); remove "
                f"{str(self.folder)!r} to start anew"
            ) from None
        self.engine.restore(self.optimiser, self.folder, state["engine"])
        self.rates.load_state_dict(state["rates"])
        for key in ("step", "without_gain", "before", "losses", "best_step", "best", "lines",
                    "seconds"):  # fmt: skip
            setattr(self, key, state[key])
        if self.engine.ranks == 1:
            torch.set_rng_state(state["random"])

    def _check_settings(self) -> None:
        try:
            then = json.loads((self.folder / SETTINGS).read_text("utf-8"))
        except (OSError, ValueError):
            then = {}
        now = json.loads(json.dumps(self.settings))
        changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
        if changed:
            said = "; ".join(f"{key} was {then.get(key)!r}, is {now.get(key)!r}"
                             for key in changed[:4])  # fmt: skip
            raise InputError(
                f"{str(self.folder)!r} holds a training begun with other settings ({said}); give "
                "those, or remove the folder to start anew"
            )


def _total(task: Task, losses: dict[str, float]) -> float:
    return sum(weight * losses[name] for name, weight in zip(task.names, task.weights, strict=True))


@contextmanager
def _told_to_stop() -> Iterator[list[int]]:
    """Within the block, signals to stop are written down, so that a step can end first."""
    told: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if told:  # a second one does not wait
            raise KeyboardInterrupt
        told.append(number)

    before: dict[int, Callable[..., Any] | int | None] = {}
    try:
        for heard in (signal.SIGINT, signal.SIGTERM):
            before[heard] = signal.signal(heard, hear)
    except ValueError:  # not the main thread: signals go elsewhere
        pass
    try:
        yield told
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def settings_of(schedule: Schedule, **more: Any) -> dict[str, Any]:
    """What a saved state depends on, fit for JSON."""
    kept = asdict(schedule)
    kept.pop("save_every")
    return {**kept, **more}
