"""A model folder (or hub id, or `demo`) read without loading it: config, tensors, tokenizer files.

Opening a checkpoint reads its config and the headers of its weight files, never the weights.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import InputError
from prunekit.model.tensors import Tensor, read_header
from prunekit.model.units import HALVES, Unit

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

DEMO = Path(__file__).parent / "demo"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
WEIGHTS = ("*.safetensors", *PICKLES, "*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.index.json")
# What a model needs beside its weights: tokenizer, chat template, generation config, licence.
# Never code, never the model card of another model.
BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "*.vocab",
          "LICENSE*", "NOTICE*", "USE_POLICY*")  # fmt: skip
# Types whose tokens see later ones unless the config has this field with this value.
CAUSAL_IF: dict[str, tuple[str, object]] = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
         "megatron-bert", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert",
         "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        ("is_decoder", True),
    ),
    "xlm": ("causal", True),
    "xlnet": ("attn_type", "uni"),
}  # fmt: skip
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model", "vocab*", "*.tiktoken",
              "tekken.json", "*.spm")  # fmt: skip
PAGE = 4096
PAGES = 16
STORY = "prunekit.json"


@dataclass(frozen=True)
class Checkpoint:
    """A causal language model on disk.

    `name` is what the user asked for, `folder` where it lies, `tensors` its tensors by name.
    """

    name: str
    folder: Path
    config_json: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def open(cls, model: str | Path) -> "Checkpoint":
        """Open a local folder, a hub id (`org/name`, fetched or cached) or `demo`.

        A Path is always a local folder, whatever it is called.

        Raises InputError if there is no such model, or it is not a safetensors checkpoint of a
        causal language model that the installed transformers can open without remote code.
        """
        folder = _local(model) if isinstance(model, Path) else _resolve(model)
        config_json = _read_object(folder / "config.json")
        checkpoint = cls(str(model), folder, config_json, _tensors(str(model), folder))
        checkpoint._check_index()
        checkpoint._check_type()
        return checkpoint

    @cached_property
    def config(self) -> "PreTrainedConfig":
        """The config as the installed transformers reads it.

        Raises InputError if transformers refuses it.
        """
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:
            raise InputError(
                f"{self.name}: transformers refuses its config.json: {_one_line(error)}"
            ) from None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's own tokenizer. Raises InputError if it has none that transformers opens."""
        from transformers import AutoTokenizer

        # transformers makes an empty tokenizer up where there is none, and goes on.
        if not any(next(self.folder.glob(pattern), None) for pattern in TOKENIZERS):
            raise InputError(
                f"{self.name}: there is no tokenizer beside the model; add its files "
                "(tokenizer.json and tokenizer_config.json, say)"
            )
        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:
            raise InputError(
                f"{self.name}: no tokenizer that transformers can open: {_one_line(error)}"
            ) from None

    @property
    def model_type(self) -> str:
        return str(self.config_json["model_type"])

    @property
    def parameters(self) -> int:
        """Numbers stored on disk (a tied matrix counts once)."""
        return sum(tensor.parameters for tensor in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(tensor.bytes for tensor in self.tensors.values())

    @cached_property
    def digest(self) -> str:
        """Identity of config and weights: sha256 over the config, every tensor's name, dtype and
        shape, and its bytes (whole up to 64 KiB, else sixteen pages spread evenly)."""
        digest = hashlib.sha256(json.dumps(self.config_json, sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name]
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            with tensor.file.open("rb") as stream:
                for offset, length in _sampled(tensor.bytes):
                    stream.seek(tensor.offset + offset)
                    digest.update(stream.read(length))
        return digest.hexdigest()

    @property
    def story(self) -> dict[str, Any]:
        """What prunekit wrote about this checkpoint when it made it; empty for any other."""
        file = self.folder / STORY
        return _read_object(file) if file.is_file() else {}

    @property
    def muted(self) -> list[Unit]:
        """The halves that prunekit muted in it, in its own numbering.

        Raises InputError if its story is broken there.
        """
        try:
            units = [(int(layer), half) for layer, half in self.story.get("muted", [])]
            return [(layer, HALVES[HALVES.index(half)]) for layer, half in units]
        except (TypeError, ValueError):
            raise InputError(f"{self.folder / STORY}: broken; mend or remove it") from None

    @property
    def beside(self) -> list[Path]:
        """Files that a copy of this model takes along as they are (tokenizer and such)."""
        skip = {"config.json", STORY}
        files = []
        for file in sorted(self.folder.iterdir()):
            wanted = any(file.match(pattern) for pattern in BESIDE)
            weights = any(file.match(pattern) for pattern in WEIGHTS)
            if file.is_file() and wanted and not weights and file.name not in skip:
                files.append(file)
        return files

    def _check_index(self) -> None:
        file = self.folder / INDEX
        if not file.is_file():
            return
        for name, shard in _weight_map(file).items():
            if name not in self.tensors or self.tensors[name].file.name != shard:
                raise InputError(
                    f"{self.name}: {INDEX} says {name!r} is in {shard}, and it is not there"
                )

    def _check_type(self) -> None:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        kind = self.config_json.get("model_type")
        if not isinstance(kind, str):
            raise InputError(f"{self.name}: config.json has no model_type, so it is no model")
        if kind not in CONFIG_MAPPING_NAMES:
            if "auto_map" in self.config_json:
                raise InputError(
                    f"{self.name}: model type {kind!r} needs remote code, which prunekit never "
                    "runs; only types that transformers itself has can be pruned"
                )
            raise InputError(
                f"{self.name}: the installed transformers has no model type {kind!r}; "
                "upgrade transformers if it is new"
            )
        classes = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
        only = "only decoder-only causal language models can be pruned"
        if self.config_json.get("is_encoder_decoder"):
            raise InputError(f"{self.name}: model type {kind!r} has an encoder besides; {only}")
        if classes is None:
            raise InputError(
                f"{self.name}: model type {kind!r} is not a causal language model, or not one that "
                f"AutoModelForCausalLM opens; {only}"
            )
        switch, causal = CAUSAL_IF.get(kind, ("", None))
        if switch and self.config_json.get(switch) != causal:
            raise InputError(
                f"{self.name}: model type {kind!r} is an encoder unless its config says "
                f"{switch}={json.dumps(causal)}; {only}"
            )
        allowed = {classes} if isinstance(classes, str) else set(classes)
        stated = self.config_json.get("architectures") or []
        if stated and not allowed & set(stated):
            raise InputError(
                f"{self.name}: it holds {', '.join(map(str, stated))}, not a causal language "
                f"model ({', '.join(sorted(allowed))})"
            )


def _local(folder: Path) -> Path:
    if not folder.exists():
        raise InputError(f"no model {str(folder)!r}: no such folder")
    if not folder.is_dir():
        raise InputError(f"{folder}: a file; give the model's folder")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: not a checkpoint: the folder has no config.json")
    return folder


def _resolve(model: str) -> Path:
    if model == "demo":
        return DEMO
    if Path(model).exists():
        return _local(Path(model))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        raise InputError(f"no model {model!r}: no such folder, and not a hub id (org/name)")
    return _fetch(model)


def _fetch(model: str) -> Path:
    """The hub's cache folder of a model, downloaded where there is a network."""
    from huggingface_hub import snapshot_download

    # Without safetensors there is nothing to prune: don't fetch gigabytes of pickles to say so.
    try:
        folder = Path(
            snapshot_download(
                model,
                allow_patterns=["*.safetensors", *BESIDE],
                # The same weights in another layout, as some repositories carry them too.
                ignore_patterns=["*/*", "consolidated*.safetensors"],
            )
        )
    except Exception as error:
        hint = "; did you mean 'demo'?" if get_close_matches(model, ["demo"]) else ""
        raise InputError(
            f"no model {model!r}{hint}: no such folder, and the hub (or its cache, when offline) "
            f"did not give it: {_one_line(error)}"
        ) from None
    if not (folder / "config.json").is_file():
        raise InputError(f"{model}: not a checkpoint: the hub's copy has no config.json")
    return folder


def _tensors(model: str, folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            found = read_header(file)
        except InputError as error:
            raise InputError(f"{model}: {error}") from None
        for tensor in found:
            if tensor.name in tensors:
                raise InputError(f"{model}: tensor {tensor.name!r} is in two files")
            tensors[tensor.name] = tensor
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        shards = sorted(set(_weight_map(index).values()))
        for shard in shards:
            # A shard's name is data from a stranger: it may only name a file of this folder.
            if Path(shard).name != shard or shard in ("", ".", ".."):
                raise InputError(f"{INDEX} names {shard!r}, which lies outside its folder")
            if not (folder / shard).is_file():
                raise InputError(f"{INDEX} names {shard!r}, which is missing from {folder}")
        return [folder / shard for shard in shards]
    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise InputError(f"{folder}: {len(files)} safetensors files and no {INDEX}")
    if any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise InputError(
            f"{folder}: only pickled weights (.bin, .pt), which can run code when opened; "
            "convert them to safetensors first"
        )
    raise InputError(f"{folder}: not a checkpoint: no .safetensors file")


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: no weight_map")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index}: weight_map must map names to file names")
    return weight_map


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value


def _sampled(size: int) -> list[tuple[int, int]]:
    if size <= PAGE * PAGES:
        return [(0, size)]
    step = (size - PAGE) // (PAGES - 1)
    return [(index * step, PAGE) for index in range(PAGES)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
