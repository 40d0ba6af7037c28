"""Cut: a plan made into a checkpoint."""

from pathlib import Path

from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.memory import parse_size
from prunekit.plan.plan import Plan, read_plan
from prunekit.surgery.apply import apply
from prunekit.surgery.write import refuse_existing


def cut(
    model: str | Path | Checkpoint,
    plan: str | Path | Plan,
    out: str | Path,
    *,
    check: bool = True,
    shard_size: str | int | None = None,
    link: bool = False,
) -> Checkpoint:
    """Write `model` without the layers that `plan` drops to the new folder `out`.

    `plan` may be a Plan, its YAML file or mergekit's passthrough YAML. With `check`, the result is
    opened and run by plain transformers, against the base model with those layers skipped, before
    it takes its name. `shard_size` (bytes, or a text such as 5GB) bounds the tensors of a file; the
    shards are the input's otherwise. `link` links shards in which nothing changes to the input's
    files. Raises InputError for anything a user can mend.
    """
    refuse_existing(Path(out))
    most = None if shard_size is None else parse_size(str(shard_size))
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model)
    if not isinstance(plan, Plan):
        plan = read_plan(Path(plan), Family.of(checkpoint.config).depth)
    return apply(plan, checkpoint, Path(out), check=check, shard_size=most, link=link)
