"""What prune writes opens in a Python that has never heard of prunekit, with the same logits."""

import hashlib
import json
import os
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunekit.model.load import load
from prunekit.verbs.prune import prune

STRANGER = """
import hashlib, importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

assert importlib.util.find_spec("prunekit") is None, "prunekit is installed here"
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokens = torch.arange(3, 35).view(1, 32)
with torch.no_grad():
    logits = model(tokens).logits
mask = torch.ones_like(tokens)
cached, plain = (
    model.generate(tokens, attention_mask=mask, max_new_tokens=8, min_new_tokens=8,
                   do_sample=False, use_cache=use_cache, pad_token_id=0).tolist()
    for use_cache in (True, False)
)
print(json.dumps({
    "logits": hashlib.sha256(logits.float().numpy().tobytes()).hexdigest(),
    "cached": cached == plain,
    "new": len(cached[0]) - 32,
    "tokenizer": AutoTokenizer.from_pretrained(sys.argv[1])("w1 w2")["input_ids"],
}))
"""


def packages_without_links() -> str:
    """The folder of installed packages: on PYTHONPATH its .pth files, and so an editable install,
    do not count."""
    return next(path for path in site.getsitepackages() if (Path(path) / "torch").is_dir())


def test_pruned_model_opens_without_prunekit(
    tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    if (Path(packages_without_links()) / "prunekit").is_dir():
        pytest.skip("prunekit is installed as a copy, beside transformers")
    pruned = prune(
        tiny_llama, tmp_path / "out", drop=3, text=str(words[0]), test=str(words[1]), length=32
    )
    measured = load(pruned.checkpoint).model
    tokens = torch.arange(3, 35).view(1, 32)
    with torch.no_grad():
        logits = measured(tokens).logits
    done = subprocess.run(
        [getattr(sys, "_base_executable", sys.executable), "-c", STRANGER, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": packages_without_links()},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["logits"] == hashlib.sha256(logits.float().numpy().tobytes()).hexdigest()
    assert seen["cached"]
    assert seen["new"] == 8
    assert seen["tokenizer"] == pruned.checkpoint.tokenizer("w1 w2")["input_ids"]
