"""Models that many tests share, written once a session."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network, or be slowed down by one
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tiny import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
# A busy machine is slow, not wrong.
settings.register_profile("prunekit", deadline=None)
settings.load_profile("prunekit")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest) -> Path:
    """The folder of real text and benchmarks beside the repository, if it is there."""
    folder = Path(request.config.rootpath).parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs real text in ../shared/data, which is not here")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 99 tokens, so that every tiny model knows them all."""
    bare = Tokenizer(models.BPE(unk_token="<unk>"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    bare.train_from_iterator(
        [" ".join(f"w{number}" for number in range(40))],
        trainers.BpeTrainer(vocab_size=99, special_tokens=["<unk>", "<bos>", "<eos>"]),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_llama(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast
) -> Path:
    """A tiny random Llama of 8 layers, with a tokenizer. Never write to it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def words(tmp_path: Path) -> tuple[Path, Path]:
    """Two different texts that the tiny tokenizer reads: one to calibrate on, one to test on."""
    generator = torch.Generator().manual_seed(0)
    files = []
    for name in ("calibrate", "test"):
        numbers = torch.randint(0, 40, (2000,), generator=generator).tolist()
        lines = [" ".join(f"w{n}" for n in numbers[at : at + 20]) for at in range(0, 2000, 20)]
        files.append(tmp_path / f"{name}.txt")
        files[-1].write_text("\n".join(lines))
    return files[0], files[1]
