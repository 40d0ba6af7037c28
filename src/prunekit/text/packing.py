"""Pack text into samples of one length: tokenised once, cut without overlap, never padded."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from prunekit.errors import InputError
from prunekit.text.sources import SHIPPED, Documents, open_source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LINE = 40  # shorter lines ("}", "import os") occur everywhere and tell nothing


@dataclass(frozen=True, eq=False)
class Text:
    """Samples of equal length from one source, with what is needed to draw them again.

    `tokens` has the shape (sample, token). `digest` is that of the documents, whatever the
    tokenizer and the samples. `available` counts the full samples that the source had and
    `total_tokens` its tokens, with those too few for another sample. `seed` is None if the
    samples are the first ones. `join` is what stood between two documents and `bos` says in
    words where the tokenizer put tokens in front: "none" or "first only".
    """

    source: str
    digest: str
    length: int
    tokens: torch.Tensor = field(repr=False)
    seed: int | None
    available: int
    total_tokens: int
    join: str
    bos: str
    lines: frozenset[bytes] = field(repr=False)

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """The samples in order, `size` at a time, each (sample, token); the last may be smaller.

        Raises InputError for a size below 1.
        """
        if size < 1:
            raise InputError(f"a batch of {size} samples is not possible: give 1 or more")
        return (self.tokens[at : at + size] for at in range(0, self.tokens.shape[0], size))

    def describe(self) -> dict[str, Any]:
        """What belongs beside every number measured on this text; fit for JSON."""
        samples = self.tokens.shape[0]
        return {
            "source": self.source,
            "digest": self.digest,
            "samples": samples,
            "length": self.length,
            "tokens": samples * self.length,
            "available": self.available,
            "total_tokens": self.total_tokens,
            "seed": self.seed,
            "join": self.join,
            "bos": self.bos,
        }


def load_text(
    source: str,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    length: int,
    samples: int | None = None,
    seed: int | None = None,
    at_most: bool = False,
) -> Text:
    """Open a source and pack it. Raises InputError as `open_source` and `pack` do."""
    return pack(open_source(source), tokenizer, length, samples, seed, at_most=at_most)


def pack(
    documents: Documents,
    tokenizer: "PreTrainedTokenizerBase",
    length: int,
    samples: int | None = None,
    seed: int | None = None,
    *,
    at_most: bool = False,
) -> Text:
    """Tokenise the joined documents at once and cut them into samples of `length` tokens.

    The remainder is dropped. Without `samples` all are kept. With `seed` that many are drawn
    without replacement and kept in text order; without it they are the first ones. With `at_most`,
    a text that has fewer gives all it has. Special
    tokens are those that the tokenizer adds by itself, so a beginning-of-sequence token stands
    at most once, at the very start.

    Raises InputError for a length below 2, fewer than 1 samples, a negative seed, and more
    samples than the text has.
    """
    _check_numbers(length, samples, seed)
    join = _join(documents, tokenizer)
    ids = _stream(tokenizer, documents.texts, join)
    available = len(ids) // length
    if available == 0:
        raise InputError(
            f"{documents.source!r} is too short: it has {len(ids)} tokens and one sample takes "
            f"{length}; give more text or a smaller length"
        )
    if samples is not None and at_most:
        samples = min(samples, available)
    if samples is not None and samples > available:
        raise InputError(
            f"{documents.source!r} has no {samples} samples of {length} tokens: "
            f"the most possible is {available} ({len(ids)} tokens)"
        )
    tokens = torch.tensor(ids[: available * length], dtype=torch.int64).view(available, length)
    if samples is not None:
        tokens = tokens[torch.tensor(_rows(available, samples, seed))]
    return Text(
        source=documents.source,
        digest=documents.digest,
        length=length,
        tokens=tokens,
        seed=seed,
        available=available,
        total_tokens=len(ids),
        join=join,
        bos=_bos(tokenizer),
        lines=_lines(documents),
    )


def check_disjoint(calibrate: Text, test: Text) -> float:
    """The share, 0 to 1, of the test text's lines that occur in the calibration text.

    Compared are the whole sources, not only the samples drawn, by their distinct lines of 40
    characters and more, blanks at both ends left out.

    Raises InputError if both are the same text or more than half of the lines are shared.
    """
    if calibrate.digest == test.digest:
        raise InputError(
            f"calibration text {calibrate.source!r} and test text {test.source!r} are the same: "
            "give another split as one of them"
        )
    if not test.lines:
        return 0.0
    share = len(test.lines & calibrate.lines) / len(test.lines)
    if share > 0.5:
        raise InputError(
            f"{share:.0%} of the lines of test text {test.source!r} occur in calibration text "
            f"{calibrate.source!r}: give another split as one of them"
        )
    return share


def _check_numbers(length: int, samples: int | None, seed: int | None) -> None:
    if length < 2:
        raise InputError(f"a length of {length} is not possible: give 2 tokens or more")
    if samples is not None and samples < 1:
        raise InputError(f"{samples} samples are not possible: give 1 or more, or none for all")
    if seed is not None and seed < 0:
        # random takes the absolute value: -1 would silently be 1.
        raise InputError(f"a seed of {seed} is not possible: give 0 or more")


def _join(documents: Documents, tokenizer: "PreTrainedTokenizerBase") -> str:
    """What stands between two documents: the end token between whole files, if there is one."""
    end = tokenizer.eos_token
    if documents.source not in SHIPPED or not isinstance(end, str):
        return documents.join
    if _tokenise(tokenizer, end, specials=False) != [tokenizer.eos_token_id]:
        return documents.join  # this tokenizer spells special tokens out
    return end


def _stream(tokenizer: "PreTrainedTokenizerBase", texts: list[str], join: str) -> list[int]:
    """The tokens of the joined texts, tokenised at once, or text by text if that is the same."""
    around = _around(tokenizer, texts, join)
    if around is None:
        return _tokenise(tokenizer, join.join(texts))
    # At once takes some 150 bytes of memory for each byte of text.
    front, separator, back = around
    ids = front
    for number, text in enumerate(texts):
        ids += separator if number else []
        ids += _tokenise(tokenizer, text, specials=False)
    return ids + back


def _around(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], join: str
) -> tuple[list[int], list[int], list[int]] | None:
    """The tokens in front, between and behind, if texts joined so are tokenised one by one.

    A special token cuts the text before any other rule looks at it, so the texts on its two
    sides do not know of each other; unless an added token takes neighbours with it or overlaps
    the join, or a rule holds only at the very start. The latter is tried out.
    """
    # Not every tokenizer says whether it is fast: mistral-common's does not.
    if not getattr(tokenizer, "is_fast", False) or join != tokenizer.eos_token:
        return None
    for token in tokenizer.added_tokens_decoder.values():
        overlaps = any(token.content.endswith(join[:size]) for size in range(1, len(join)))
        if token.single_word or (token.content != join and (overlaps or join in token.content)):
            return None
        if token.content == join and (token.lstrip or token.rstrip or token.normalized):
            return None
    separator = _tokenise(tokenizer, join, specials=False)
    around = None
    for probe in (texts[0][:200], " a", "a"):
        alone = _tokenise(tokenizer, probe, specials=False)
        inner = alone + separator + alone
        whole = _tokenise(tokenizer, probe + join + probe)
        starts = [at for at in range(len(whole)) if whole[at : at + len(inner)] == inner]
        if not starts:
            return None
        around = whole[: starts[0]], separator, whole[starts[0] + len(inner) :]
    return around


def _tokenise(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, specials: bool = True
) -> list[int]:
    # verbose: no warning that this is longer than the model takes; it is cut afterwards.
    # truncation and padding: a tokenizer.json may have either switched on.
    encoded = tokenizer(
        text, add_special_tokens=specials, truncation=False, padding=False, verbose=False
    )
    return list(encoded["input_ids"])


def _bos(tokenizer: "PreTrainedTokenizerBase") -> str:
    with_specials = _tokenise(tokenizer, "a")
    without = _tokenise(tokenizer, "a", specials=False)
    return "none" if with_specials[:1] == without[:1] else "first only"


def _rows(available: int, samples: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(samples))
    return sorted(random.Random(seed).sample(range(available), samples))


def _lines(documents: Documents) -> frozenset[bytes]:
    """Short digests of the distinct lines that are long enough to tell a text by."""
    return frozenset(
        hashlib.blake2b(line.encode("utf-8"), digest_size=8).digest()
        for text in documents.texts
        for line in map(str.strip, text.splitlines())
        if len(line) >= _LINE
    )
