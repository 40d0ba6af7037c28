"""Show: what a model is, which parts of it can be cut, and what was cut from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.model.checkpoint import STORY, Checkpoint
from prunekit.model.family import Family
from prunekit.model.names import disk_prefix
from prunekit.model.units import Unit
from prunekit.surgery.drop import check_extra


@dataclass(frozen=True)
class Anatomy:
    """A model's parts. `halves` says, for each layer, whether its attention and its MLP can be told
    apart. If prunekit made the checkpoint: from what, without which of its layers, which of them
    were folded into which, which halves are muted (in this model's own numbering), what
    perplexity was measured then, and in a word how it was healed."""

    name: str
    model_type: str
    layers: int
    path: str
    hidden: int
    vocabulary: int
    parameters: int
    bytes: int
    layer_parameters: list[int]
    halves: list[dict[str, bool]]
    dtypes: list[str]
    digest: str
    made_from: str | None
    dropped: list[int]
    merged: list[dict[str, Any]]
    muted: list[Unit]
    perplexity: dict[str, float]
    healed: str = ""


def show(model: str | Path) -> Anatomy:
    """Read a model's anatomy off its config and headers; no weight is loaded."""
    checkpoint = Checkpoint.open(model)
    family = Family.of(checkpoint.config)
    check_extra(checkpoint, family, disk_prefix(checkpoint, family))
    text = checkpoint.config.get_text_config()
    layers = family.layers(family.skeleton)
    return Anatomy(
        name=checkpoint.name,
        model_type=checkpoint.model_type,
        layers=family.depth,
        path=family.path,
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        parameters=checkpoint.parameters,
        bytes=checkpoint.bytes,
        layer_parameters=[sum(p.numel() for p in layer.parameters()) for layer in layers],
        halves=[
            {half: bool(family.writers(index, half)) for half in ("attention", "mlp")}
            for index in range(family.depth)
        ],
        dtypes=sorted({tensor.dtype for tensor in checkpoint.tensors.values()}),
        digest=checkpoint.digest,
        **_story(checkpoint),
    )


def _story(checkpoint: Checkpoint) -> dict[str, Any]:
    story = checkpoint.story
    try:
        return {
            "made_from": str(story["base"]["name"]) if story else None,
            "dropped": [int(layer) for layer in story.get("dropped", [])],
            "merged": [dict(edit) for edit in story.get("merged", [])],
            "muted": checkpoint.muted,
            "perplexity": {
                which: float(result["perplexity"]["perplexity"])
                for which, result in story.get("measures", {}).items()
            },
            "healed": _healed(story.get("healed")),
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{checkpoint.folder / STORY}: broken; mend or remove it") from None


def _healed(record: dict[str, Any] | None) -> str:
    if not record:
        return ""
    if "adapter" in record:
        return f"adapter {record['adapter']} merged"
    losses = " and ".join(record["losses"])
    return f"{record['how']} by {losses}, {record['history']['tokens']} tokens"
