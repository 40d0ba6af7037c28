"""What a checkpoint's prunekit.json tells of its history: where its layers come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prunekit.errors import InputError
from prunekit.model.checkpoint import STORY, Checkpoint


@dataclass(frozen=True)
class Seam:
    """A place where layers went: `start` counts as this checkpoint does and is the first layer
    behind it; the ancestor's layers [first, last) went."""

    start: int
    first: int
    last: int


@dataclass(frozen=True)
class Replaced:
    """Layers that do the work of a block of an ancestor's: `layers` as the checkpoint counts them,
    [start, end) as the ancestor does."""

    layers: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Ancestor:
    """A model that a checkpoint was made from, and which of its layers the checkpoint has left.

    `origins` has the ancestor's number of each of the checkpoint's layers.
    """

    name: str
    digest: str
    layers: int
    origins: tuple[int, ...]

    @property
    def seams(self) -> list[Seam]:
        ends = [-1, *self.origins, self.layers]
        return [
            Seam(place, before + 1, after)
            for place, (before, after) in enumerate(pairwise(ends))
            if after > before + 1
        ]


def ancestors(checkpoint: Checkpoint, layers: int) -> list[Ancestor]:
    """The models that a checkpoint of so many layers was made from, nearest first.

    Raises InputError if its history can't be read.
    """
    found = []
    origins = list(range(layers))
    try:
        for story in stories(checkpoint):
            gone = {
                *story["dropped"],
                *(layer for edit in story["merged"] for layer in edit["layers"]),
            }
            layers += len(gone)
            stay = [layer for layer in range(layers) if layer not in gone]
            origins = [stay[layer] for layer in origins]
            base = story["base"]
            found.append(Ancestor(str(base["name"]), str(base["digest"]), layers, tuple(origins)))
    except (KeyError, TypeError, IndexError, AttributeError):
        raise _broken(checkpoint) from None
    return found


def replaced(checkpoint: Checkpoint, ancestor: Ancestor) -> list[Replaced]:
    """What stands in the place of each block that went: as many layers before the seam as the plan
    kept to replace it, else one; behind it, if there is none before."""
    cuts = (story for story in stories(checkpoint) if story["dropped"] or story["merged"])
    # Whatever came after the last cut did not renumber the layers.
    edits = next(cuts, {}).get("replaced", [])
    kept = {layer for edit in edits for layer in edit["layers"]}
    found = []
    for seam in ancestor.seams:
        if not seam.start:
            found.append(Replaced((0,), 0, seam.last + 1))
            continue
        start = seam.start - 1
        while {start, start - 1} <= kept and _adjoin(ancestor.origins, start - 1):
            start -= 1
        found.append(Replaced(tuple(range(start, seam.start)), ancestor.origins[start], seam.last))
    return found


def texts_seen(checkpoint: Checkpoint) -> set[str]:
    """Digests of the texts that any cut in a checkpoint's history was calibrated on, or that it was
    healed with.

    Raises InputError if that history can't be read: then it can't be told what the model has seen.
    """
    try:
        seen = [
            (story["calibration_text"], story.get("training_text")) for story in stories(checkpoint)
        ]
        return {text["digest"] for texts in seen for text in texts if text}
    except (KeyError, TypeError, AttributeError):
        raise _broken(checkpoint) from None


def stories(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """The records of what was done, last first."""
    story: dict[str, Any] | None = checkpoint.story
    while story:
        yield story
        story = story["before"]


def _adjoin(origins: tuple[int, ...], layer: int) -> bool:
    return origins[layer] + 1 == origins[layer + 1]


def _broken(checkpoint: Checkpoint) -> InputError:
    return InputError(
        f"{checkpoint.folder / STORY}: broken, so it can't be told where the model comes from and "
        "which texts it has seen; mend or remove it"
    )
