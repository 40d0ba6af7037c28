"""Adapters: written with a record of their model, and merged onto it in full precision.

An adapter is kept as peft writes it, with a record of the model it belongs to.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.model.checkpoint import STORY, Checkpoint
from prunekit.model.family import Family

ADAPTER = "adapter"


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Within the block peft may be imported and used, and says nothing that users can't mend."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it
    with warnings.catch_warnings():  # of transformers, about what peft asks it
        warnings.simplefilter("ignore", FutureWarning)
        yield


def save_adapter(
    model: Any, weights: dict[str, Tensor], folder: Path, checkpoint: Checkpoint, layers: int
) -> None:
    """Write a PeftModel's adapter of these whole weights, with the digest of the model that it
    belongs to."""
    model.save_pretrained(folder, state_dict=weights)
    config = folder / "adapter_config.json"
    settings = json.loads(config.read_text("utf-8"))
    settings["base_model_name_or_path"] = checkpoint.name
    config.write_text(json.dumps(settings, indent=2, sort_keys=True), "utf-8")
    (folder / "README.md").unlink(missing_ok=True)  # a model card with nothing in it
    base = {"name": checkpoint.name, "digest": checkpoint.digest, "layers": layers}
    (folder / STORY).write_text(json.dumps({"adapter_of": base}, indent=2) + "\n", "utf-8")


def check_adapter(folder: Path, checkpoint: Checkpoint, layers: int) -> None:
    """Raises InputError unless an adapter was trained for this very model."""
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{str(folder)!r}: no adapter there (adapter_config.json)")
    try:
        base = json.loads((folder / STORY).read_text("utf-8"))["adapter_of"]
        found = (base["digest"], base["layers"], base["name"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{str(folder)!r}: its {STORY} does not tell which model the adapter belongs to"
        ) from None
    if found[:2] != (checkpoint.digest, layers):
        raise InputError(
            f"{str(folder)!r}: the adapter belongs to {found[2]!r} ({found[1]} layers, digest "
            f"{str(found[0])[:12]}), not to {checkpoint.name!r} ({layers} layers, digest "
            f"{checkpoint.digest[:12]})"
        )


def merged_weights(model: nn.Module, folder: Path, family: Family) -> dict[str, Tensor]:
    """The weights of a model in full precision that an adapter changes, with it merged: zeros stay.

    W + s BA where W is not zero, in float32. The model is left as it is.
    """
    with quiet_peft():
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        adapted = PeftModel.from_pretrained(model, folder, is_trainable=False)
    names = {id(weight): name for name, weight in _bare(adapted)}
    found = {}
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            layer: Any = module  # peft's own types leave out what is used here
            weight = layer.get_base_layer().weight
            merged = weight.float() + layer.get_delta_weight("default").float()
            found[names[id(weight)]] = merged.masked_fill(weight == 0, 0)
    adapted.unload()
    return found


def _bare(adapted: Any) -> list[tuple[str, nn.Parameter]]:
    """An adapted model's parameters by the names that they have without adapters."""
    return [
        (name.replace(".base_layer.", "."), weight)
        for name, weight in adapted.get_base_model().named_parameters()
    ]
