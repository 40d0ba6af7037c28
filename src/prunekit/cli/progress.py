"""Progress bars on stderr: one for each walk, gone when it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from prunekit.model.ranks import rank

if TYPE_CHECKING:
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
