"""Where a model type keeps its decoder layers, their halves and what writes to the residual stream.

Everything is read off the model itself, built without weights; only exceptions are written down.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunekit.errors import InputError
from prunekit.model.oddities import NO_HALVES, REFUSED

# Config fields that count the decoder layers, under every name they go by.
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
          "num_decoder_layers", "num_blocks")  # fmt: skip

# Parts of neither half: what reads another model, and streams beside the residual one.
NEITHER = re.compile(r"encoder_attn|cross_?attn|crossattention|per_layer|hc$|altup|laurel")
ROUTER = re.compile(r"router|gate$")
ATTENTION = re.compile(r"attn|attention|mixer|mamba|conv|recurrent|temporal|time_mix|ssm|delta")
MLP = re.compile(r"mlp|ffn|feed_forward|moe|channel_mix|fc[12]|experts|router|gate$")
NORM = re.compile(r"norm|ln_?\d|layernorm")
# What a projection that writes to the residual stream is called; the last match in a half counts.
WRITERS = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|dense|wo|Wo|o|out|output|dense_4h_to_h|down_proj|w2|fc2|fc_out|"
    r"proj_out|w_out|output_linear|down|proj|linear_out|wout)$"
)


@dataclass(frozen=True)
class Family:
    """What a model type looks like: `path` of the list of decoder layers, and how many it holds."""

    config: PreTrainedConfig
    skeleton: nn.Module
    path: str
    depth: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Family":
        """Read the family off a config. Raises InputError if its layers can't be found."""
        if config.model_type in REFUSED:
            raise InputError(
                f"model type {config.model_type!r} can't be pruned by layers: "
                f"{REFUSED[config.model_type]}"
            )
        depths = _depths(config)
        model = skeleton(config)
        decoder = _decoder(model)
        lists = [
            (path, module)
            for path, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) in depths
        ]
        lists = [item for item in lists if item[0].startswith(decoder)] or lists
        # Encoders of other modalities lie deeper within the decoder, if at all; per-layer adapters
        # beside its layers are smaller.
        lists.sort(key=lambda item: (item[0].count("."), -_size(item[1])))
        if not lists:
            said = " or ".join(map(str, sorted(depths)))
            raise InputError(
                f"model type {config.model_type!r}: no list of {said} decoder layers in it"
            )
        path, layers = lists[0]
        if not len(layers):
            raise InputError(f"model type {config.model_type!r}: its config says it has no layers")
        return cls(config, model, path, len(layers))

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers of a model of this family."""
        layers = model.get_submodule(self.path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def half(self, layer: int, which: str) -> list[str]:
        """Names, within a layer, of the children that make up its `attention`, `mlp` or `norm`."""
        children = self.layers(self.skeleton)[layer].named_children()
        return [name for name, child in children if _kind(name, child) == which]

    def writers(self, layer: int, which: str) -> list[str]:
        """Parameters, within a layer, through which its `attention` or `mlp` half writes to the
        residual stream: with all of them zero, the half adds nothing.

        Empty if the layer has no such half, or its projection can't be told.
        """
        if self.config.model_type in NO_HALVES:
            return []
        module = self.layers(self.skeleton)[layer]
        found: list[str] = []
        for child in self.half(layer, which):
            part = module.get_submodule(child)
            if isinstance(part, nn.ModuleList):
                return []  # several halves of a kind in one layer: which comes when is not told
            if ROUTER.search(child):
                continue
            names = [f"{child}.{name}" for name in _writers(part)]
            if not names:
                found = []  # one part untold, so the half is
                break
            found += names
        if which == "mlp" and not found:
            found = [name for name, _ in module.named_parameters() if name.startswith("fc2.")]
        return found


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a config without weights (on the meta device).

    Raises InputError if transformers can't build it.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:
        raise InputError(
            f"transformers can't build model type {config.model_type!r} from its config: "
            f"{str(error).strip().partition(chr(10))[0][:300]}"
        ) from None


def text_config(config: PreTrainedConfig) -> tuple[str | None, PreTrainedConfig]:
    """The config that describes the decoder, and its key if it is nested in `config`."""
    text = config.get_text_config(decoder=True)
    for key, value in vars(config).items():
        if value is text:
            return key, text
    return None, config


def _depths(config: PreTrainedConfig) -> set[int]:
    """What the config may call its number of decoder layers."""
    _, text = text_config(config)
    found = {getattr(text, name, None) for name in DEPTHS}
    depths = {depth for depth in found if isinstance(depth, int)}
    if not depths:
        raise InputError(f"model type {config.model_type!r}: its config has no number of layers")
    return depths


def _decoder(model: PreTrainedModel) -> str:
    """The prefix of the names of the text decoder's modules; empty if it is the model itself."""
    decoder = model.get_decoder()
    for path, module in model.named_modules():
        if module is decoder:
            return f"{path}." if path else ""
    return ""


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _kind(name: str, child: nn.Module) -> str:
    if NEITHER.search(name.lower()) or not any(True for _ in child.parameters()):
        return "other"
    label = f"{name} {type(child).__name__}".lower()
    if _is_norm(name, child):
        return "norm"
    if MLP.search(name.lower()):
        return "mlp"
    if ATTENTION.search(label):
        return "attention"
    return "mlp" if MLP.search(label) else "other"


def _writers(half: nn.Module) -> Iterator[str]:
    """Parameters of the last output projection of every independent part of a half."""
    parts = [
        name
        for name, module in half.named_modules()
        if name and WRITERS.search(name) and isinstance(module, (nn.Linear, Conv1D))
    ]
    fused = [
        name
        for name, parameter in half.named_parameters()
        if name.rpartition(".")[2] in ("down_proj", "down_proj_bias", "w2", "output_linear")
        and parameter.ndim >= 2
    ]
    if isinstance(half, (nn.Linear, Conv1D)):
        return
    own = dict(half.named_parameters())
    for name in _last_of_each(parts):
        parent = name.rpartition(".")[0]
        if parent and any(_is_norm(*c) for c in half.get_submodule(parent).named_children()):
            return  # the half ends in a norm over the residual stream: it always changes it
        yield from (f"{name}.{key}" for key, _ in half.get_submodule(name).named_parameters())
        if f"{name}_bias" in own:
            yield f"{name}_bias"
    yield from fused


def _is_norm(name: str, child: nn.Module) -> bool:
    return bool(NORM.search(name.lower())) or "norm" in type(child).__name__.lower()


def _last_of_each(names: list[str]) -> list[str]:
    """The last name below each parent: q, k, v, o are siblings, and o comes last."""
    last: dict[str, Any] = {}
    for name in names:
        last[name.rpartition(".")[0]] = name
    return list(last.values())
