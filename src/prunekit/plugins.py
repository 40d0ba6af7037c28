"""Finds criteria, choosers and edits by file name: the folder is the registry.

A file `angular.py` in `criteria/` is the criterion `angular`: the first line of its docstring is
its description, the one public dataclass in it is what runs, the dataclass's fields are its
options. `./mine.py` takes a private file of the same form.
"""

import ast
import dataclasses
import difflib
import importlib
import importlib.util
import sys
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from prunekit.errors import InputError


def nearest(word: str, possible: list[str]) -> str:
    """`; did you mean 'x'?` if one of `possible` is near, else the list of them all."""
    close = difflib.get_close_matches(word, possible, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(possible)}"


def folder(room: str) -> Path:
    """The folder of a room such as `criteria` or `plan.choosers`."""
    return Path(__file__).parent.joinpath(*room.split("."))


def names(room: str) -> dict[str, str]:
    """Name -> first docstring line of every plug-in in a room, read without importing it."""
    found = {}
    for file in sorted(folder(room).glob("*.py")):
        if not file.name.startswith("_"):
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[file.stem] = docstring.partition("\n")[0]
    return found


def find(room: str, name: str) -> type:
    """The class that the plug-in `name` (or a path `./mine.py`) of a room defines.

    Raises InputError if there is no such plug-in or a private file holds no single dataclass.
    """
    kind = _singular(room)
    if name.endswith(".py"):
        module = _import_file(Path(name), kind)
    else:
        possible = list(names(room))
        if name not in possible:
            raise InputError(f"no {kind} called {name!r}{nearest(name, possible)}")
        module = importlib.import_module(f"prunekit.{room}.{name}")
    classes = [
        thing
        for key, thing in vars(module).items()
        if isinstance(thing, type)
        and dataclasses.is_dataclass(thing)
        and thing.__module__ == module.__name__
        and not key.startswith("_")
    ]
    if len(classes) != 1:
        raise InputError(f"{name}: a {kind} file defines one public dataclass, not {len(classes)}")
    return classes[0]


def options(cls: type) -> dict[str, Any]:
    """Option name -> default of a plug-in's class."""
    return {
        field.name: field.default
        if field.default_factory is dataclasses.MISSING
        else field.default_factory()
        for field in dataclasses.fields(cls)
        if field.init
    }


def make(room: str, name: str, given: dict[str, Any] | None = None) -> Any:
    """The plug-in `name` of a room with the given options (text is converted to their types).

    Raises InputError for an unknown plug-in, an unknown option or a value of the wrong kind.
    """
    return fill(find(room, name), _singular(room), name, given)


def fill(cls: type, kind: str, name: str, given: Mapping[str, Any] | None = None) -> Any:
    """A dataclass's instance with these options, for messages a `kind` called `name`.

    Raises InputError for an unknown option or a value of the wrong kind.
    """
    from pydantic import TypeAdapter, ValidationError

    possible = options(cls)
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in (given or {}).items():
        if not possible:
            raise InputError(f"{kind} {name!r} has no options, {key!r} was given")
        if key not in possible:
            raise InputError(f"{kind} {name!r} has no option {key!r}{nearest(key, list(possible))}")
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise InputError(
                f"{kind} {name!r}, option {key}={value!r}: {error.errors()[0]['msg']}"
            ) from None
    for key, default in possible.items():
        if default is dataclasses.MISSING and key not in values:
            raise InputError(f"{kind} {name!r} needs the option {key!r}")
    return cls(**values)


def _singular(room: str) -> str:
    return {"criteria": "criterion"}.get(room, room.rpartition(".")[2].rstrip("s"))


def _import_file(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no {kind} file {str(path)!r}")
    module_name = f"prunekit_private_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = error.lineno if isinstance(error, SyntaxError) else "?"
        if error.__traceback__ and not isinstance(error, SyntaxError):
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise InputError(
            f"{path}, line {line}: {type(error).__name__}: {error}, so it can't be used"
        ) from error
    return module
