"""Open a source of text: a part of the standard library, a file or folder, or a hub dataset."""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import InputError
from prunekit.text import files, mmlu, stdlib

SHIPPED = tuple(f"stdlib/{part}" for part in stdlib.PARTS)
JOIN = "\n\n"

_FORMS = (
    f"a source is {', '.join(SHIPPED)}, a file or folder ({', '.join(files.SUFFIXES)}; "
    "file.jsonl:column), hub:org/name/subset/split:column, or mmlu:FOLDER of MMLU's CSV files"
)
# A split may carry a slice, as in train[:10%]; its colon is not the one before the column.
_HUB = re.compile(
    r"hub:(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?P<subset>[^/:\[\]]+))?"
    r"/(?P<split>\w[\w.-]*(?:\[[^\[\]]*\])?)"
    r"(?::(?P<column>.+))?"
)


@dataclass(frozen=True)
class Documents:
    """Texts in the order of their source.

    `source` is as asked for, `join` is what stands between two texts before they are tokenised,
    and `digest` is the SHA-256 of the texts, in hex: the same for the same texts, however they
    are stored, sampled or tokenised.
    """

    source: str
    texts: list[str]
    join: str
    digest: str


def open_source(source: str) -> Documents:
    """Read all documents of a source.

    A source is the name of a part that ships with Python (`stdlib/train`, `stdlib/calibrate`,
    `stdlib/test`); a file or a folder of .txt (one document per file), .jsonl, .json, .csv and
    .parquet, with the column behind a colon if it is not `text` or the only one; or
    `hub:org/name/subset/split:column`, where subset and column may be left out; or `mmlu:FOLDER`,
    MMLU's questions as prompts. Rows without text are kept as empty documents. A path that exists
    wins over its reading with a column.

    Raises InputError if there is no such source, or if it cannot be read or holds no text.
    """
    if source in SHIPPED:
        texts = list(stdlib.documents(source.removeprefix("stdlib/")))
    elif source.startswith("hub:"):
        texts = _read_hub(source)
    elif source.startswith("mmlu:") and not os.path.exists(source):
        texts = list(mmlu.prompts(Path(source.removeprefix("mmlu:")).expanduser()))
    else:
        path, column = _split_path(source)
        texts = [text for file in _files(path) for text in files.read(file, column)]
    if all(not text or text.isspace() for text in texts):
        raise InputError(f"there is no text in {source!r}: its {len(texts)} documents are blank")
    return Documents(source=source, texts=texts, join=JOIN, digest=_digest(texts))


def _digest(texts: Sequence[str]) -> str:
    """Each text goes in behind its length, so that no two lists of texts look the same."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8")
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def _split_path(source: str) -> tuple[Path, str | None]:
    """The path that a source names and the column behind it, if any."""
    # os.path.exists and not Path.exists, which raises for names that are too long.
    if source and os.path.exists(os.path.expanduser(source)):
        return Path(source).expanduser(), None
    for colon in _colons_from_the_right(source):
        path, column = source[:colon], source[colon + 1 :]
        if path and os.path.exists(os.path.expanduser(path)):
            if not column:
                raise InputError(f"no column behind the colon of {source!r}: name one, or none")
            return Path(path).expanduser(), column
    near = _near(source)
    meant = f"did you mean {near!r}? " if near else ""
    raise InputError(f"there is no text source {source!r}: {meant}{_FORMS}")


def _colons_from_the_right(source: str) -> Iterator[int]:
    colon = source.rfind(":")
    while colon >= 0:
        yield colon
        colon = source.rfind(":", 0, colon)


def _near(source: str) -> str | None:
    """A shipped name or a file in the same folder that is called nearly so."""
    folder, name = os.path.split(source)
    try:
        there = os.listdir(os.path.expanduser(folder) or ".")
    except (OSError, ValueError):
        there = []
    close = difflib.get_close_matches(name, sorted(there), n=1)
    if close:
        return os.path.join(folder, close[0])
    return next(iter(difflib.get_close_matches(source, SHIPPED, n=1)), None)


def _files(path: Path) -> list[Path]:
    """The file itself, or the supported files below a folder, sorted; hidden ones are left out."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{str(path)!r} is neither a file nor a folder: {_FORMS}")
    found = []
    for file in path.rglob("*"):
        parts = file.relative_to(path).parts
        hidden = any(part.startswith(".") for part in parts)
        if file.suffix.lower() in files.SUFFIXES and not hidden and file.is_file():
            found.append((parts, file))
    if not found:
        raise InputError(
            f"no text in folder {str(path)!r}: possible are files ending in "
            f"{', '.join(files.SUFFIXES)}"
        )
    return [file for _, file in sorted(found)]


def _read_hub(source: str) -> list[str]:
    asked = _HUB.fullmatch(source)
    if asked is None:
        raise InputError(
            f"cannot read {source!r}: write hub:org/name/split or hub:org/name/subset/split, "
            "with :column if need be, as in hub:Salesforce/wikitext/wikitext-2-raw-v1/train"
        )
    name = asked["name"]
    # datasets would read this folder instead of the hub, and numbers would bear the wrong name.
    if os.path.exists(name):
        raise InputError(
            f"{source!r} is hidden by the folder {name!r} here: work in another folder, "
            f"or give {name!r} as the source"
        )
    try:
        import datasets
    except ImportError:
        raise InputError(f"{source!r} needs datasets: pip install 'prunekit[data]'") from None
    if int(datasets.__version__.split(".")[0]) < 4:
        # Older ones may run code that comes with the data.
        raise InputError(
            f"{source!r} needs datasets 4 or newer, this is {datasets.__version__}: "
            "pip install --upgrade 'prunekit[data]'"
        )
    try:
        table = datasets.load_dataset(name, asked["subset"], split=asked["split"])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"cannot read {source!r}, check its name: {why}") from None
    where = f"hub dataset {name!r}"
    column = files.arrow_column(where, table.features.arrow_schema, asked["column"])
    # The rows as arrow: a loop over the dataset would build a dict for each of them.
    rows = table.select_columns([column]).with_format("arrow")[:]
    return files.arrow_texts(where, rows.column(column))
