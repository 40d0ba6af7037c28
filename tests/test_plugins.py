"""The folder is the registry: names, options, private files, and no torch for a list."""

import subprocess
import sys
from dataclasses import MISSING
from pathlib import Path

import pytest

from prunekit import plugins
from prunekit.errors import InputError

PRIVATE = '''"""A private criterion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class _Hidden:
    nothing: int = 0


@dataclass
class Mine:
    power: float = 2.0
    which: Literal["last", "all"] = "last"
    among: list[int] = field(default_factory=lambda: [1])
    many: int | None = None
    strict: bool = False
    inner: int = field(default=0, init=False)


class NotOne:
    pass
'''


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "mine.py"
    file.write_text(PRIVATE)
    return str(file)


def test_names_are_file_names_with_their_first_docstring_line() -> None:
    found = plugins.names("criteria")
    assert {"angular", "cosine", "random"} <= found.keys()
    assert list(found) == sorted(found)
    assert not any(name.startswith("_") for name in found)
    assert (
        found["random"] == "Random numbers from a seed: the control that any criterion must beat."
    )
    assert {"block", "lowest"} <= plugins.names("plan.choosers").keys()


@pytest.mark.parametrize("room", ["criteria", "plan.choosers"])
def test_every_plug_in_that_ships_is_described_and_can_be_made(room: str) -> None:
    for name, line in plugins.names(room).items():
        assert line.endswith("."), f"{name}: its first docstring line is not a sentence"
        assert type(plugins.make(room, name)) is plugins.find(room, name)


def test_listing_does_not_import_torch() -> None:
    code = (
        "import sys; from prunekit import plugins; "
        "print(sorted(plugins.names('criteria')), sorted(plugins.names('plan.choosers'))); "
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, heavy = done.stdout.splitlines()
    assert "'angular'" in listed
    assert "'block'" in listed
    assert heavy == "[]"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        plugins.make("criteria", "angualr")
    assert str(caught.value) == "no criterion called 'angualr'; did you mean 'angular'?"


@pytest.mark.parametrize("name", ["zzz", "", "_criterion", "__init__", "../plan/plan", "os"])
def test_a_name_like_no_other_is_answered_with_all(name: str) -> None:
    with pytest.raises(InputError, match=r"no criterion called .*; there are: .*angular, .*cosine"):
        plugins.find("criteria", name)


def test_an_unknown_option_is_answered_with_the_nearest_or_all() -> None:
    with pytest.raises(InputError) as caught:
        plugins.make("criteria", "angular", {"token": "last"})
    said = "criterion 'angular' has no option 'token'; did you mean 'tokens'?"
    assert str(caught.value) == said
    with pytest.raises(InputError, match="no option 'zzz'; there are: halves, tokens"):
        plugins.make("criteria", "angular", {"zzz": "last"})
    with pytest.raises(InputError, match="chooser 'block' has no options, 'size' was given"):
        plugins.make("plan.choosers", "block", {"size": 2})


def test_options_are_the_fields_with_their_defaults(mine: str) -> None:
    assert plugins.options(plugins.find("criteria", mine)) == {
        "power": 2.0,
        "which": "last",
        "among": [1],
        "many": None,
        "strict": False,
    }
    angular = {"halves": False, "tokens": "last"}
    assert plugins.options(plugins.find("criteria", "angular")) == angular


def test_text_is_converted_to_the_type_of_the_option(mine: str) -> None:
    given = {"power": "1.5", "which": "all", "many": "3", "strict": "true", "among": ["4", 5]}
    made = plugins.make("criteria", mine, given)
    assert (made.power, made.which, made.many, made.strict) == (1.5, "all", 3, True)
    assert made.among == [4, 5]
    assert plugins.make("criteria", mine).among == [1]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("power", "much", "valid number"),
        ("which", "first", "'last' or 'all'"),
        ("many", "1.5", "valid integer"),
        ("strict", "perhaps", "valid boolean"),
        ("among", "4", "valid list"),
        ("inner", 1, "no option 'inner'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_one_line(
    mine: str, key: str, value: object, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        plugins.make("criteria", mine, {key: value})
    assert repr(key)[1:-1] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_without_a_default_must_be_given(tmp_path: Path) -> None:
    file = tmp_path / "needy.py"
    file.write_text("from dataclasses import dataclass\n@dataclass\nclass Needy:\n    size: int\n")
    assert plugins.options(plugins.find("criteria", str(file))) == {"size": MISSING}
    assert plugins.make("criteria", str(file), {"size": "3"}).size == 3
    with pytest.raises(InputError, match="needs the option 'size'"):
        plugins.make("criteria", str(file))


def test_a_private_file_is_found_by_a_relative_path(
    mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(mine).parent)
    for name in ("./mine.py", "mine.py", mine):
        assert plugins.find("criteria", name).__name__ == "Mine"


def test_a_private_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for name in ("nowhere.py", "folder.py"):
        with pytest.raises(InputError, match=f"no criterion file .*{name}"):
            plugins.find("criteria", str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "count"),
    [
        (PRIVATE + "\n\n@dataclass\nclass Second:\n    pass\n", 2),
        ("class Plain:\n    pass\n", 0),
        ("from dataclasses import dataclass\n@dataclass\nclass _Hidden:\n    pass\n", 0),
        ("from prunekit.plan.edits import Drop\n", 0),
    ],
)
def test_a_private_file_must_define_one_public_dataclass(
    source: str, count: int, tmp_path: Path
) -> None:
    file = tmp_path / "private.py"
    file.write_text(source)
    with pytest.raises(InputError, match=f"defines one public dataclass, not {count}"):
        plugins.find("criteria", str(file))


def test_two_private_files_of_one_name_do_not_mix(tmp_path: Path) -> None:
    made = []
    for folder, default in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "same.py"
        file.write_text(
            "from dataclasses import dataclass\n"
            f"@dataclass\nclass Same:\n    size: int = {default}\n"
        )
        made.append(plugins.make("criteria", str(file)))
    assert [thing.size for thing in made] == [1, 2]
