"""Progress bars on stderr: one for each walk or training, gone when it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from prunekit.model.ranks import rank

if TYPE_CHECKING:
    from prunekit.healing.trainer import Report
    from prunekit.model.walk import Observer


@contextmanager
def bar(title: str, steps: int) -> "Iterator[Observer]":
    """A bar that moves on with every layer run; an observer of the walk."""
    from prunekit.model.walk import Observer

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    shown = console.is_terminal and rank() == 0  # in a log file a bar is noise
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(title, total=steps)

        class Advance(Observer):
            def see(self, *_: object) -> None:
                progress.advance(task)

        yield Advance()


@contextmanager
def training() -> "Iterator[Report]":
    """A bar with the loss, tokens per second and the time left; where it would be noise, a line for
    every twentieth part."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(),
               TimeRemainingColumn())  # fmt: skip
    console = Console(stderr=True)
    speaks = rank() == 0
    shown = console.is_terminal and speaks
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task("healing", total=None)

        def report(step: int, steps: int, loss: float, tokens_per_second: float) -> None:
            said = f"loss {loss:.4f}, {tokens_per_second:,.0f} tok/s"
            progress.update(task, total=steps, completed=step, description=said)
            part = max(1, steps // 20)
            if speaks and not shown and (step % part == 0 or step == steps):
                print(f"step {step} of {steps}: {said}", file=sys.stderr, flush=True)

        yield report
