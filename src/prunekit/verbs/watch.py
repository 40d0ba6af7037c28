"""How a verb shows its progress: whoever calls it may hand in something that watches each walk."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from prunekit.model.walk import Observer

# watch("scoring", steps) gives a context whose value observes a walk of that many layer runs.
Watch = Callable[[str, int], AbstractContextManager[Observer]]


def unwatched(title: str, steps: int) -> AbstractContextManager[Observer]:
    """Shows nothing."""
    return nullcontext(Observer())
