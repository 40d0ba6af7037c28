"""Fold: fit a linear map to every block that a plan drops, for the MLP before it (ReplaceMe)."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from prunekit.errors import InputError
from prunekit.model.family import Family
from prunekit.model.load import How, Loaded
from prunekit.model.units import runs
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan, read_plan
from prunekit.surgery.apply import base_of
from prunekit.surgery.fold import fit, write_maps
from prunekit.surgery.write import refuse_existing
from prunekit.text.packing import Text
from prunekit.verbs.score import CALIBRATE, batch_size, open_model, pack_to_calibrate

RIDGE = 1e-4


def fold(
    model: str | Path,
    plan: Plan | str | Path,
    maps: str | Path,
    *,
    ridge: float = RIDGE,
    diagonal: bool = False,
    text: str = CALIBRATE,
    samples: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    **how: Unpack[How],
) -> Plan:
    """The plan with each block of layers that it drops folded; the maps go to the new file `maps`.

    See `prunekit.surgery.fold`. `ridge` is relative to the mean square of what the MLP writes. The
    text is drawn as for scores. Raises InputError for anything a user can mend.
    """
    maps = Path(maps)
    refuse_existing(maps)
    loaded = open_model(model, **how)
    if not isinstance(plan, Plan):
        plan = read_plan(Path(plan), loaded.family.depth)
    plan.check(base_of(loaded.checkpoint, loaded.family))
    packed = pack_to_calibrate(loaded, text, samples=samples, length=length, seed=seed)
    return fold_plan(loaded, plan, packed, maps, ridge=ridge, diagonal=diagonal, batch=batch)


def fold_plan(
    loaded: Loaded, plan: Plan, text: Text, maps: Path, *, ridge: float = RIDGE,
    diagonal: bool = False, batch: int | None = None,
) -> Plan:  # fmt: skip
    """The same with a model that is open, on samples that were drawn."""
    dropped = [layer for edit in plan.edits if isinstance(edit, Drop) for layer in edit.layers]
    blocks = runs(dropped)
    if not blocks:
        raise InputError("the plan drops no layers, so there is nothing to fold")
    if loaded.quantize:
        raise InputError("maps are fitted to the model that is cut; leave --quantize away")
    fitted = fit(
        loaded, blocks, text.batches(batch_size(batch, text.length)), ridge=ridge, diagonal=diagonal
    )
    others = [edit for edit in plan.edits if not isinstance(edit, Drop)]
    made: dict[str, Any] = {"ridge": ridge, "diagonal": diagonal, "text": text.describe()}
    folded = replace(
        plan, edits=(*write_maps(fitted, maps), *others), made_by={**plan.made_by, "fold": made}
    )
    folded.kept(Family.of(loaded.checkpoint.config).depth)
    return folded
