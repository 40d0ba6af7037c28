"""Read the documents of one .txt, .jsonl, .json, .csv or .parquet file, or of an arrow table."""

import codecs
import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import InputError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".parquet")

_FIELD_LIMIT = 2**31 - 1  # the csv module keeps its limit in a C long
_NAMES_SHOWN = 12


def read(path: Path, column: str | None = None) -> list[str]:
    """The documents of one file, in its order; empty ones are kept.

    A .txt file is one document and has no columns. Elsewhere `column` tells where the text is;
    without it that is `text`, or the only column of strings.

    Raises InputError for a file that is empty, unreadable, broken or not text, for another
    suffix, and for a column that is missing, not text, or not told.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"cannot read {_name(path)}: possible are files ending in {', '.join(SUFFIXES)}"
        )
    if suffix == ".parquet":
        return _read_parquet(path, column)
    content = _decode(path)
    if suffix == ".txt":
        if column is not None:
            raise InputError(f"{_name(path)} has no columns: leave out ':{column}'")
        return [content]
    if suffix == ".csv":
        return _read_csv(path, content, column)
    if suffix == ".json":
        return _pick(path, "item", _json_items(path, content), column)
    return _pick(path, "line", _json_lines(path, content), column)


def choose_column(
    where: str, names: Sequence[str], textual: Sequence[str], column: str | None
) -> str:
    """The column asked for, else `text`, else the only textual one.

    Raises InputError, naming the columns there are, if there is no such column.
    """
    if column is not None:
        if column not in names:
            raise InputError(f"{where} has no column {column!r}: there are {_listed(names)}")
        return column
    if "text" in names:
        return "text"
    if len(textual) == 1:
        return textual[0]
    if not textual:
        raise InputError(f"{where} has no column of text: there are {_listed(names)}")
    raise InputError(
        f"{where} has no column 'text': add ':column' to the source, one of {_listed(textual)}"
    )


def arrow_column(where: str, schema: "pyarrow.Schema", column: str | None) -> str:
    """The column of an arrow schema that holds the text. Raises InputError as `choose_column`."""
    textual = [field.name for field in schema if _is_text(field.type)]
    name = choose_column(where, schema.names, textual, column)
    if name not in textual:
        kind = schema.field(name).type
        raise InputError(f"column {name!r} of {where} is not text but {kind}")
    return name


def arrow_texts(where: str, values: "pyarrow.ChunkedArray") -> list[str]:
    """The documents in an arrow column. Raises InputError for a null and for broken UTF-8."""
    try:
        texts = values.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} holds text that is not UTF-8: {error.reason}") from None
    return [_text(where, "row", number, text) for number, text in enumerate(texts, start=1)]


def _decode(path: Path) -> str:
    """The content of a text file without its byte order mark, nothing else changed."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {_name(path)}: {error.strerror}") from None
    if not content:
        raise InputError(f"{_name(path)} is empty: give a file with text in it")
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    zero = content.find(b"\0")
    if zero >= 0:
        raise InputError(
            f"{_name(path)} is not text (a zero byte at byte {zero}): give it as UTF-8 text"
        )
    try:
        return content[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{_name(path)} is not UTF-8 ({error.reason} at byte {mark + error.start}): "
            "give it as UTF-8 text"
        ) from None


def _json_lines(path: Path, content: str) -> list[tuple[int, Any]]:
    """The values of the lines that are not blank, with the numbers of their lines."""
    items = []
    # Not splitlines, which also splits at characters that JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), start=1):
        if line and not line.isspace():
            items.append((number, _json(path, line, number)))
    return items


def _json_items(path: Path, content: str) -> list[tuple[int, Any]]:
    """The values of the list that a .json file is, or holds alone, numbered from 1."""
    value = _json(path, content)
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if len(lists) != 1:
            found = f"there are {_listed(lists)}" if lists else "there is none"
            raise InputError(
                f"{_name(path)} is an object, which must hold one list of documents: {found}"
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise InputError(
            f"{_name(path)} holds one {_kind(value)}: it must be a list of strings or of objects"
        )
    return list(enumerate(value, start=1))


def _json(path: Path, content: str, line: int | None = None) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        at, why = line or error.lineno, f"{error.msg} at column {error.colno}"
    except RecursionError:
        at, why = line or 1, "nested too deeply"
    except ValueError:  # an integer of thousands of digits
        at, why = line or 1, "a number is too long"
    raise InputError(f"{_name(path)} is not JSON, line {at}: {why}")


def _read_csv(path: Path, content: str, column: str | None) -> list[str]:
    where = _name(path)
    limit = csv.field_size_limit(_FIELD_LIMIT)
    # newline="" keeps the line ends inside quoted fields; strict, so that a quote which never
    # closes is an error instead of one field with the rest of the file.
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        names = next((row for row in reader if row), [])
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise InputError(f"{where} has more than one column called {_listed(twice)}")
        index = names.index(choose_column(where, names, names, column))
        texts = []
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{where}, line {reader.line_num}: {len(row)} fields, "
                    f"but the first line names {len(names)} columns"
                )
            texts.append(row[index])
    except csv.Error as error:
        raise InputError(f"{where} is not CSV, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return texts


def _read_parquet(path: Path, column: str | None) -> list[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"reading {_name(path)} needs pyarrow: pip install 'prunekit[data]'"
        ) from None
    where = _name(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            name = arrow_column(where, file.schema_arrow, column)
            values = file.read(columns=[name]).column(name)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"cannot read {where} as parquet: {_one_line(error)}") from None
    return arrow_texts(where, values)


def _pick(path: Path, unit: str, items: list[tuple[int, Any]], column: str | None) -> list[str]:
    """The texts among JSON values that are all strings or all objects."""
    where = _name(path)
    if all(isinstance(value, str) for _, value in items):
        if column is not None and items:
            raise InputError(f"{where} holds strings, not columns: leave out ':{column}'")
        return [_text(where, unit, number, value) for number, value in items]
    expected = str if isinstance(items[0][1], str) else dict
    for number, value in items:
        if not isinstance(value, expected):
            raise InputError(
                f"{where}, {unit} {number}: {_kind(value)} found, "
                "but all must be strings or all must be objects"
            )
    names = list(dict.fromkeys(name for _, value in items for name in value))
    textual = {name for _, value in items for name in value if isinstance(value[name], str)}
    name = choose_column(where, names, [name for name in names if name in textual], column)
    texts = []
    for number, value in items:
        if name not in value:
            raise InputError(
                f"{where}, {unit} {number} has no {name!r}: it has {_listed(list(value))}"
            )
        texts.append(_text(f"column {name!r} of {where}", unit, number, value[name]))
    return texts


def _text(where: str, unit: str, number: int, value: Any) -> str:
    """The value if it is a string that can be written as UTF-8."""
    if not isinstance(value, str):
        raise InputError(f"{where} is not text: {unit} {number} holds {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}, {unit} {number}: lone surrogate {value[error.start]!a} "
            f"at character {error.start}, which is no text"
        ) from None
    return value


def _is_text(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _kind(value: Any) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return "list"
    return "object" if isinstance(value, dict) else "string"


def _listed(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    more = len(shown) - _NAMES_SHOWN
    if more > 0:
        shown[_NAMES_SHOWN:] = [f"{more} more"]
    return ", ".join(shown) or "none"


def _name(path: Path) -> str:
    return repr(str(path))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
