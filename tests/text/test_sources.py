"""Every kind of source is read as it stands, and every bad one is told in one line."""

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prunekit.errors import InputError
from prunekit.text import stdlib
from prunekit.text.sources import open_source

DATA = Path(__file__).parents[3] / "shared" / "data"
WITHOUT_DATASETS = importlib.util.find_spec("datasets") is None
WITHOUT_PYARROW = importlib.util.find_spec("pyarrow") is None


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return str(path)


def refusal(source: str) -> str:
    """The message that refuses the source, which is one line."""
    with pytest.raises(InputError) as caught:
        open_source(source)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_stdlib_parts() -> None:
    documents = open_source("stdlib/test")
    assert documents.texts == list(stdlib.documents("test"))
    assert documents.source == "stdlib/test"


def test_digest_is_sha256_of_length_prefixed_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", json.dumps(["\u00e9", "bc"]))
    by_hand = hashlib.sha256(b"\0\0\0\0\0\0\0\2" + b"\xc3\xa9" + b"\0\0\0\0\0\0\0\2" + b"bc")
    assert open_source(source).digest == by_hand.hexdigest()
    moved = write(tmp_path / "b.json", json.dumps(["\u00e9b", "c"]))
    assert open_source(moved).digest != by_hand.hexdigest()


def test_txt_is_one_document_unchanged(tmp_path: Path) -> None:
    text = "\n one\r\n\n two\u2028three\rfour \n\n"
    source = write(tmp_path / "a.txt", text)
    assert open_source(source).texts == [text]
    assert open_source(source).join == "\n\n"


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert open_source(write(tmp_path / "a.txt", b"\xef\xbb\xbfone")).texts == ["one"]
    assert open_source(write(tmp_path / "a.csv", b"\xef\xbb\xbftext\none")).texts == ["one"]


def test_jsonl(tmp_path: Path) -> None:
    # U+2028 may stand in a JSON string and is no end of line; blank rows stay.
    lines = '{"id": "1", "text": "one\u2028two"}\r\n\n{"id": "2", "text": ""}\n'
    source = write(tmp_path / "a.jsonl", lines)
    assert open_source(source).texts == ["one\u2028two", ""]
    assert open_source(source + ":id").texts == ["1", "2"]
    assert open_source(write(tmp_path / "b.jsonl", '"one"\n"two"')).texts == ["one", "two"]


def test_default_column_is_the_only_one_of_strings(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"id": 1, "body": "one"}\n{"id": 2, "body": "two"}')
    assert open_source(source).texts == ["one", "two"]
    two = write(tmp_path / "b.jsonl", '{"title": "a", "body": "one"}')
    assert "one of 'title', 'body'" in refusal(two)
    none = write(tmp_path / "c.jsonl", '{"id": 1}')
    assert "no column of text: there are 'id'" in refusal(none)


@pytest.mark.parametrize(
    "value", [["one", "two"], [{"text": "one"}, {"text": "two"}], {"n": 2, "rows": ["one", "two"]}]
)
def test_json(tmp_path: Path, value: object) -> None:
    assert open_source(write(tmp_path / "a.json", json.dumps(value))).texts == ["one", "two"]


def test_csv(tmp_path: Path) -> None:
    rows = 'id,text\n1,"one, ""two""\r\nthree"\n\n2,\n'
    source = write(tmp_path / "a.csv", rows)
    assert open_source(source).texts == ['one, "two"\r\nthree', ""]
    assert open_source(source + ":id").texts == ["1", "2"]
    long = write(tmp_path / "b.csv", "text\n" + "x" * 200_000)
    assert len(open_source(long).texts[0]) == 200_000


@pytest.mark.skipif(WITHOUT_PYARROW, reason="pyarrow is not installed")
def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    body = pyarrow.array(["one", "two"]).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "body": body}), path)
    assert open_source(str(path)).texts == ["one", "two"]
    assert open_source(f"{path}:body").texts == ["one", "two"]
    assert "is not text but int64" in refusal(f"{path}:id")
    assert "there are 'id', 'body'" in refusal(f"{path}:text")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", None]}), path)
    assert "row 2 holds null" in refusal(str(path))
    write(path, "no parquet")
    assert "as parquet" in refusal(str(path))
    write(path, "")
    refusal(str(path))


@pytest.mark.skipif(WITHOUT_PYARROW, reason="pyarrow is not installed")
def test_parquet_with_broken_utf8(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    assert "not UTF-8" in refusal(str(tmp_path / "a.parquet"))


def test_folder_is_sorted_and_recursive(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "third")
    write(tmp_path / "a" / "z.TXT", "second")
    write(tmp_path / "a" / "c" / "x.json", '["first"]')
    write(tmp_path / "a" / "notes.md", "left out")
    write(tmp_path / ".cache" / "x.txt", "left out")
    assert open_source(str(tmp_path)).texts == ["first", "second", "third"]


def test_folder_with_a_column(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"a": "one", "b": "two"}')
    write(tmp_path / "b.csv", "a,b\nthree,four")
    assert open_source(f"{tmp_path}:b").texts == ["two", "four"]


@pytest.mark.skipif(os.name == "nt", reason="no colons in file names")
def test_existing_path_wins_over_column(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", '{"id": "column"}')
    source = write(tmp_path / "a.jsonl:id.txt", "path")
    assert open_source(source).texts == ["path"]
    assert open_source(str(tmp_path / "a.jsonl") + ":id").texts == ["column"]
    colon = write(tmp_path / "b.jsonl", '{"a:b": "one", "b": "two"}')
    assert open_source(colon + ":a:b").texts == ["one"]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path / "a.jsonl", '{"a": "one", "b": "two"}')
    assert open_source("~/a.jsonl:b").texts == ["two"]


def test_no_such_source(tmp_path: Path) -> None:
    write(tmp_path / "valid.txt", "one")
    assert f"did you mean {str(tmp_path / 'valid.txt')!r}" in refusal(str(tmp_path / "vaild.txt"))
    assert "did you mean 'stdlib/test'" in refusal("stdlib/tests")
    assert "hub:org/name" in refusal("Salesforce/wikitext/wikitext-2-raw-v1/train")
    for source in ("", ":", ":text", "a\0b", "x" * 5000, "two\nlines", "stdlib"):
        assert "a source is" in refusal(source)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\t", "no text"),
        ("a.jsonl", "\n\n", "no text"),
        ("a.json", "[]", "no text"),
        ("a.csv", "text\n", "no text"),
        ("a.pdf", "one", ".txt, .jsonl, .json, .csv, .parquet"),
        ("a.txt", b"one\xff", "byte 3"),
        ("a.txt", b"\xef\xbb\xbfone\xff", "byte 6"),
        ("a.txt", b"o\0ne", "zero byte at byte 1"),
        ("a.jsonl", '{"text": "one"}\n\n{"text": ', "line 3"),
        ("a.json", '["one",\n"two"', "line 2"),
        ("a.json", "[" * 100_000, "nested"),
        ("a.jsonl", '{"text": "a", "n": 1}\n{"text": "a", "n": ' + "9" * 5000 + "}", "line 2"),
        ("a.json", '"one"', "one string"),
        ("a.json", '{"a": 1}', "one list"),
        ("a.json", '{"a": [], "b": []}', "'a', 'b'"),
        ("a.json", '["one", 2]', "item 2: number"),
        ("a.jsonl", '{"text": "one"}\n"two"', "line 2: string"),
        ("a.jsonl", '{"text": "one"}\n{"text": null}', "line 2 holds null"),
        ("a.jsonl", '{"text": "one"}\n{"txt": "two"}', "line 2 has no 'text': it has 'txt'"),
        ("a.jsonl", '{"text": ["one"]}', "line 1 holds list"),
        ("a.jsonl", '{"text": "one"}\n{"text": "\\ud800"}', "line 2: lone surrogate '\\ud800'"),
        ("a.json", '["one", "two\\udc00"]', "item 2: lone surrogate '\\udc00'"),
        ("a.csv", "a,b\none,two", "'a', 'b'"),
        ("a.csv", "a,a\none,two", "more than one column"),
        ("a.csv", "id,text\n1,one\n2,two,three", "line 3: 3 fields"),
        ("a.csv", 'text\n"one', "not CSV"),
    ],
)
def test_refused_files(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    source = write(tmp_path / name, content)
    message = refusal(source)
    assert told in message
    assert name in message


def test_refused_columns(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"id": 1, "text": "one"}')
    assert "no column 'txt': there are 'id', 'text'" in refusal(source + ":txt")
    assert "line 1 holds number" in refusal(source + ":id")
    assert "name one" in refusal(source + ":")
    assert "has no columns" in refusal(write(tmp_path / "a.txt", "one") + ":text")
    assert "strings, not columns" in refusal(write(tmp_path / "a.json", '["one"]') + ":text")
    assert "no column 'body': there are 'text'" in refusal(
        write(tmp_path / "a.csv", "text\none") + ":body"
    )


def test_folder_without_text(tmp_path: Path) -> None:
    write(tmp_path / "a.md", "one")
    assert "no text in folder" in refusal(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "neither a file nor a folder" in refusal(str(tmp_path / "a.txt"))


def test_surrogate_pair_in_escapes_is_text(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00"}')
    assert open_source(source).texts == ["\U0001f600"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_one_long_line_takes_linear_time(tmp_path: Path, name: str) -> None:
    size = 10_000_000
    around = {"a.txt": "{}", "a.jsonl": '{{"text": "{}"}}', "a.csv": "text\n{}"}[name]
    source = write(tmp_path / name, around.format("x" * size))
    begin = time.perf_counter()
    assert len(open_source(source).texts[0]) == size
    assert time.perf_counter() - begin < 10


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, prunekit.text.sources\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    assert run(code, {}).strip() == "[]"


@pytest.mark.parametrize(
    "source",
    ["hub:", "hub:wikitext", "hub:org/name", "hub:../name/train", "hub:org/../train", "hub:a/b/c:"],
)
def test_hub_source_of_another_form(source: str) -> None:
    assert "hub:org/name/split" in refusal(source)


def test_hub_source_hidden_by_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "org" / "name" / "train.txt", "local")
    monkeypatch.chdir(tmp_path)
    assert "hidden by the folder 'org/name'" in refusal("hub:org/name/train")


@pytest.mark.parametrize("module", ["datasets", "pyarrow"])
def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    parquet = write(tmp_path / "a.parquet", "PAR1")
    source = {"datasets": "hub:org/name/train", "pyarrow": parquet}[module]
    assert "pip install 'prunekit[data]'" in refusal(source)


_LAY_OUT_A_CACHE = """
import sys
from pathlib import Path
import datasets
from datasets.packaged_modules.json.json import Json
here = Path(sys.argv[1])
rows = '{"page": "one", "n": 1}\\n{"page": "", "n": 2}\\n{"page": "three", "n": 3}\\n'
(here / "rows.jsonl").write_text(rows)
for subset in ("raw", "clean"):
    builder = Json(
        cache_dir=str(here / "build"), dataset_name="words", config_name=subset,
        data_files={"train": [str(here / "rows.jsonl")]},
    )
    out = Path(datasets.config.HF_DATASETS_CACHE) / "org___words" / subset / "0.0.0" / ("0" * 40)
    builder.download_and_prepare(output_dir=str(out))
"""
_OPEN_EACH = """
import json, sys
from prunekit.errors import InputError
from prunekit.text.sources import open_source
for source in sys.argv[1:]:
    try:
        print(json.dumps(open_source(source).texts))
    except InputError as error:
        print(error)
"""


def run(code: str, environment: dict[str, str], *arguments: str) -> str:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment, "PYTHONPATH": paths},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.skipif(WITHOUT_DATASETS, reason="datasets is not installed")
def test_hub_source_from_the_cache(tmp_path: Path) -> None:
    # In processes of their own: datasets and the hub client read their settings on import.
    environment = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "datasets")
    run(_LAY_OUT_A_CACHE, environment, str(tmp_path))
    answers = {
        "hub:org/words/raw/train": '["one", "", "three"]',
        "hub:org/words/clean/train:page": '["one", "", "three"]',
        "hub:org/words/raw/train[1:]": '["", "three"]',
        "hub:org/words/raw/train[1:]:page": '["", "three"]',
        "hub:org/words/raw/train:n": "is not text but int64",
        "hub:org/words/raw/train:text": "there are 'page', 'n'",
        "hub:org/words/raw/test": "cannot read 'hub:org/words/raw/test'",
        "hub:org/words/other/train": "cannot read",
        "hub:org/words/train": "cannot read",
        "hub:org/nothing/train": "cannot read",
    }
    lines = run(_OPEN_EACH, environment, *answers).splitlines()
    assert len(lines) == len(answers)
    for line, told in zip(lines, answers.values(), strict=True):
        assert told in line


def test_real_wikitext() -> None:
    path = DATA / "wikitext-2" / "valid.txt"
    if not path.exists():
        pytest.skip("the WikiText-2 file is not here")
    documents = open_source(str(path))
    assert len(documents.texts) == 1
    assert documents.texts[0].encode("utf-8") == path.read_bytes()


def test_real_c4() -> None:
    path = DATA / "c4_sample" / "c4_demo.jsonl"
    if not path.exists():
        pytest.skip("the C4 sample is not here")
    lines = path.read_bytes().split(b"\n")
    by_hand = [json.loads(line)["text"] for line in lines if line]
    assert open_source(str(path)).texts == by_hand
    assert open_source(f"{path}:text").digest == open_source(str(path)).digest
