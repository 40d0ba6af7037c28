"""Teach: write down a dense model's largest logits, for healing without it."""

import importlib.metadata
import json
from pathlib import Path
from typing import Unpack

from prunekit.healing.saved import RECORD, Writer
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import How, load
from prunekit.surgery.write import refuse_existing, whole_folder
from prunekit.text.packing import load_text
from prunekit.verbs.heal import LENGTH, TRAIN
from prunekit.verbs.score import batch_size, sample_length
from prunekit.verbs.watch import Watch, unwatched

TOP = 64


def teach(
    model: str | Path,
    out: str | Path,
    *,
    text: str = TRAIN,
    length: int | None = None,
    top: int = TOP,
    batch: int | None = None,
    watch: Watch = unwatched,
    **how: Unpack[How],
) -> Path:
    """Write the `top` likeliest next tokens of every token of `text` to the folder `out`.

    `heal(..., teacher=out)` takes them for the same text and length; of all other tokens it takes
    the sum. Six bytes each: 64 of a million tokens are 384 MB. Raises InputError for anything a
    user can mend.
    """
    out = Path(out)
    refuse_existing(out)
    checkpoint = Checkpoint.open(model)
    packed = load_text(text, checkpoint.tokenizer, length=sample_length(checkpoint, length, LENGTH))
    loaded = load(checkpoint, **how)
    size = batch_size(batch, packed.length)
    vocabulary = checkpoint.config.get_text_config(decoder=True).vocab_size
    steps = loaded.family.depth * -(-len(packed.tokens) // size)
    with whole_folder(out) as folder, watch(f"teaching{loaded.where}", steps) as observer:
        writer = Writer(folder, len(packed.tokens), packed.length, top, vocabulary, size)
        loaded.walk(packed.batches(size), writer, observer)
        record = {
            "prunekit": importlib.metadata.version("prunekit"),
            "teacher": {"name": checkpoint.name, "digest": checkpoint.digest},
            "vocabulary": vocabulary,
            "top": top,
            "text": packed.describe(),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return out
