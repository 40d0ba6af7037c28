"""Samples are the token stream, cut; and calibration text is kept apart from test text."""

import json
import logging
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prunekit.errors import InputError
from prunekit.text import packing, sources, stdlib
from prunekit.text.packing import Text, check_disjoint, load_text, pack
from prunekit.text.sources import Documents, open_source

DATA = Path(__file__).parents[3] / "shared" / "data"
END = "</s>"


def core(merges: list[tuple[str, str]]) -> Tokenizer:
    """A byte-level BPE tokenizer with these merges; its ids 0 and 1 are special."""
    pieces = ["<s>", END, "\n", "\u4e2d", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [left + right for left, right in merges]
    ids = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", END])
    return tokenizer


def wrap(tokenizer: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=END, **options
    )


def plain() -> PreTrainedTokenizerFast:
    """Adds no special token; thinks that its model takes 8 tokens."""
    merges = [("a", "b"), ("\u010a", "\u010a"), ("\u0120", "a"), ("ab", "ab")]
    return wrap(core(merges), model_max_length=8)


def with_bos() -> PreTrainedTokenizerFast:
    """Puts <s> in front, as Llama's does, and cuts and pads unless told not to."""
    tokenizer = core([("a", "b")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    return wrap(tokenizer)


def legacy() -> PreTrainedTokenizerFast:
    """No words at all: the whole text is one piece with a blank put before it, as in Llama 2."""
    tokenizer = core([("a", "b"), ("_", "a"), ("\n", "a")])
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("_"), normalizers.Replace(" ", "_")]
    )
    return wrap(tokenizer)


def metaspace() -> PreTrainedTokenizerFast:
    """A blank before the very first word only."""
    tokenizer = core([("a", "b"), ("_", "a")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("_", prepend_scheme="first")
    return wrap(tokenizer)


TOKENIZERS = {make.__name__: make() for make in (plain, with_bos, legacy, metaspace)}


def documents(*texts: str, source: str = "a.txt") -> Documents:
    return Documents(source=source, texts=list(texts), join="\n\n", digest=sources._digest(texts))


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The token stream by the tokenizer's own rules, in one call."""
    return list(tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"])


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        pack(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("source", ["a.txt", "stdlib/test"])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text("ab \n</s>\u00e9\u4e2d", max_size=30), min_size=1, max_size=5),
    length=st.integers(2, 9),
)
def test_samples_are_the_prefix_of_the_token_stream(
    name: str, source: str, texts: list[str], length: int
) -> None:
    tokenizer = TOKENIZERS[name]
    stream = ids(tokenizer, ("\n\n" if source == "a.txt" else END).join(texts))
    if len(stream) < length:
        refusal(documents(*texts, source=source), tokenizer, length)
        return
    text = pack(documents(*texts, source=source), tokenizer, length)
    assert text.tokens.dtype == torch.int64
    assert text.tokens.shape == (len(stream) // length, length)
    assert text.tokens.flatten().tolist() == stream[: len(stream) // length * length]
    assert (text.available, text.total_tokens) == (len(stream) // length, len(stream))


def test_by_hand() -> None:
    tokenizer = plain()
    text = pack(documents("abab", "b a"), tokenizer, 2)
    pieces = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in text.tokens]
    assert pieces == [["abab", "\u010a"], ["\u010a", "b"]]


def test_bos_stands_first_only() -> None:
    text = pack(documents("ab" * 10, "ab" * 10), with_bos(), 4)
    assert text.bos == "first only"
    assert text.tokens[0, 0] == 0
    assert (text.tokens == 0).sum() == 1
    assert pack(documents("ab" * 10), plain(), 4).bos == "none"


def test_shipped_files_are_joined_by_the_end_token() -> None:
    files = documents("ab", "ab", source="stdlib/test")
    assert pack(files, plain(), 3).tokens.tolist() == [ids(plain(), "ab" + END + "ab")]
    assert pack(files, plain(), 3).join == END
    without = PreTrainedTokenizerFast(tokenizer_object=core([("a", "b")]))
    assert pack(files, without, 4).join == "\n\n"
    spelt_out = wrap(core([("a", "b")]), split_special_tokens=True)
    assert pack(files, spelt_out, 4).join == "\n\n"
    assert pack(documents("ab", "ab"), plain(), 3).join == "\n\n"


def test_files_are_tokenised_one_by_one_only_where_that_is_the_same() -> None:
    for name, alone in {
        "plain": True,
        "with_bos": True,
        "legacy": True,
        "metaspace": False,
    }.items():
        around = packing._around(TOKENIZERS[name], ["ab"], END)
        assert (around is not None) == alone
    greedy = plain()
    greedy.add_tokens([AddedToken("a<", normalized=False)])
    assert packing._around(greedy, ["ab"], END) is None
    assert packing._around(plain(), ["ab"], "\n\n") is None
    strip = wrap(core([("a", "b")]))
    strip.add_special_tokens({"eos_token": AddedToken("<end>", rstrip=True, special=True)})
    assert packing._around(strip, ["ab"], "<end>") is None


def test_a_whole_part_of_the_library() -> None:
    tokenizer = with_bos()
    text = load_text("stdlib/test", tokenizer, length=64)
    stream = ids(tokenizer, END.join(stdlib.documents("test")))
    assert text.total_tokens == len(stream)
    assert text.tokens.flatten().tolist() == stream[: text.tokens.numel()]


def test_first_samples_and_drawn_samples() -> None:
    whole = pack(documents("".join(f"{number:04}" for number in range(50))), plain(), 4)
    assert whole.available == 50
    first = pack(documents("".join(f"{number:04}" for number in range(50))), plain(), 4, 5)
    assert torch.equal(first.tokens, whole.tokens[:5])
    assert first.seed is None
    drawn = [
        pack(documents("".join(f"{n:04}" for n in range(50))), plain(), 4, 5, seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(drawn[0].tokens, drawn[1].tokens)
    assert not torch.equal(drawn[0].tokens, drawn[2].tokens)
    rows = sorted(random.Random(1).sample(range(50), 5))
    assert torch.equal(drawn[2].tokens, whole.tokens[rows])
    every = pack(documents("".join(f"{n:04}" for n in range(50))), plain(), 4, 50, 3)
    assert torch.equal(every.tokens, whole.tokens)


def test_batches() -> None:
    text = pack(documents("abcdefghijk"), plain(), 2)
    batches = list(text.batches(2))
    assert [batch.shape for batch in batches] == [(2, 2), (2, 2), (1, 2)]
    assert torch.equal(torch.cat(batches), text.tokens)
    with pytest.raises(InputError):
        text.batches(0)


def test_describe_is_json(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab" * 20)
    text = load_text(str(path), plain(), length=3, samples=2, seed=7)
    assert json.loads(json.dumps(text.describe())) == {
        "source": str(path),
        "digest": open_source(str(path)).digest,
        "samples": 2,
        "length": 3,
        "tokens": 6,
        "available": 3,
        "total_tokens": 10,
        "seed": 7,
        "join": "\n\n",
        "bos": "none",
    }


def test_no_warning_that_the_text_is_long(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            pack(documents("xyz" * 100), plain(), 4)
    finally:
        logging.getLogger("transformers").propagate = False
    assert not caplog.records


def test_tokenizer_keeps_its_own_settings() -> None:
    tokenizer = with_bos()
    pack(documents("ab" * 20), tokenizer, 4)
    assert tokenizer("ab" * 3, verbose=False)["input_ids"] == ids(with_bos(), "ab" * 3)


def test_refused() -> None:
    text = documents("cdefghijkl")
    assert "10 tokens" in refusal(text, plain(), 11)
    assert "most possible is 3" in refusal(text, plain(), 3, 4)
    assert "most possible is 3" in refusal(text, plain(), 3, 4, seed=1)
    assert "length of 1" in refusal(text, plain(), 1)
    assert "0 samples" in refusal(text, plain(), 2, 0)
    assert "seed of -1" in refusal(text, plain(), 2, 1, seed=-1)


def packed(*texts: str) -> Text:
    return pack(documents(*texts), plain(), 2)


def line(number: int) -> str:
    return f"line {number} is long enough to tell one text from another"


def test_same_text_is_not_disjoint() -> None:
    with pytest.raises(InputError, match="the same"):
        check_disjoint(packed("short"), packed("short"))


def test_shared_lines_are_counted_in_the_test_text() -> None:
    calibrate = packed("\n".join(line(number) for number in range(100)))
    half = packed("\n".join(line(number) for number in range(98, 102)))
    assert check_disjoint(calibrate, half) == 0.5
    more = packed(*(f"  {line(number)} " for number in range(97, 102)), "}", "}")
    with pytest.raises(InputError, match="60%"):
        check_disjoint(calibrate, more)
    assert check_disjoint(more, calibrate) == 0.03
    assert check_disjoint(calibrate, packed("short", "lines")) == 0.0


def test_another_cut_of_the_same_text_is_not_disjoint() -> None:
    lines = [line(number) for number in range(20)]
    with pytest.raises(InputError, match="100%"):
        check_disjoint(packed("\n".join(lines)), packed(*lines))


def test_parts_of_the_library_are_disjoint() -> None:
    calibrate = load_text("stdlib/calibrate", plain(), length=128)
    test = load_text("stdlib/test", plain(), length=128)
    assert check_disjoint(calibrate, test) < 0.1


def test_real_wikitext() -> None:
    path = DATA / "wikitext-2" / "valid.txt"
    if not path.exists():
        pytest.skip("the WikiText-2 file is not here")
    text = pack(documents(open_source(str(path)).texts[0][:200_000]), plain(), 2048)
    stream = ids(plain(), path.read_bytes().decode("utf-8")[:200_000])
    assert text.tokens.flatten().tolist() == stream[: len(stream) // 2048 * 2048]
    with pytest.raises(InputError):
        check_disjoint(text, text)


def test_real_c4() -> None:
    path = DATA / "c4_sample" / "c4_demo.jsonl"
    if not path.exists():
        pytest.skip("the C4 sample is not here")
    text = load_text(str(path), plain(), length=128, samples=8, seed=0)
    assert text.tokens.shape == (8, 128)
    assert packing.check_disjoint(text, packed("short")) == 0.0
