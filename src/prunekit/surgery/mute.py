"""Mutes halves of layers: zeros in their projections into the residual stream.

Every stock model class opens such a checkpoint, and it gives what the model gives without those
halves; it is not smaller. `prunekit.load` does not compute the zeros.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.names import memory_names
from prunekit.model.units import Unit
from prunekit.surgery.write import Part


def mute(
    parts: Iterable[Part], checkpoint: Checkpoint, family: Family, units: Sequence[Unit]
) -> list[Part]:
    """The parts with the halves `units` muted.

    Raises InputError if a layer has no such half that zeros can take away.
    """
    wanted: set[str] = set()
    for layer, half in units:
        writers = family.writers(layer, half)
        if not writers:
            raise InputError(
                f"model type {family.config.model_type!r}: layer {layer} has no {half} half that "
                "zeros could take away"
            )
        wanted.update(f"{family.path}.{layer}.{name}" for name in writers)
    named = memory_names(checkpoint, family) if wanted else {}
    if lost := wanted.difference(named.values()):
        raise InputError(f"{checkpoint.name}: can't tell {min(lost)!r} among the tensors on disk")
    return [_zeros(part) if named.get(part.source.name) in wanted else part for part in parts]


def _zeros(part: Part) -> Part:
    return replace(part, content=lambda: bytes(part.bytes))
