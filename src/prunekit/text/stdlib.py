"""Python's standard library as text, split by module into train, calibrate and test parts.

The files are those below ``sysconfig.get_paths()["stdlib"]``. A file's subject is the name of
its top-level module: the first component of its path, without ``.py``. All files of one subject
fall in the same part, told by the SHA-256 of the subject alone, so that the split is the same on
every machine and for every Python version.

Files below a ``test`` or ``tests`` package belong to the subject that their name tells
(``test/test_json/tool.py`` to ``json``, ``test/test_enum.py`` to ``enum``, any other to its own
name). Many distributions leave them out, so they only ever train, and only when their subject
is one that trains.

Left out everywhere are modules which Python 3.12 to 3.14 removed, modules which some
distributions change, ship apart or not at all, what is written for one build, and tables rather
than text (the character maps of ``encodings``, ``pydoc_data``).
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PARTS = ("train", "calibrate", "test")

_REMOVED = frozenset(
    {
        *("aifc", "asynchat", "asyncore", "cgi", "cgitb", "chunk", "crypt", "distutils"),
        *("imghdr", "imp", "lib2to3", "mailcap", "msilib", "nntplib", "pipes", "smtpd"),
        *("sndhdr", "sunau", "telnetlib", "uu", "xdrlib"),
    }
)
_NOT_EVERYWHERE = frozenset(
    {
        *("_distutils_system_mod", "dist-packages", "ensurepip", "idlelib", "lib-dynload"),
        *("site", "site-packages", "sitecustomize", "tkinter", "turtledemo", "usercustomize"),
    }
)
_TABLES = frozenset({"encodings", "pydoc_data"})
_LEFT_OUT = _REMOVED | _NOT_EVERYWHERE | _TABLES
_BUILD_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-")
_TEST_PACKAGES = frozenset({"test", "tests"})

_BUCKETS = 14
_HELD_OUT = {0: "calibrate", 10: "test"}


def _subject(parts: tuple[str, ...]) -> str:
    """The subject of the file at these path components below the standard library."""
    name = parts[1] if parts[0] in _TEST_PACKAGES and len(parts) > 1 else parts[0]
    return name.removesuffix(".py").removeprefix("test_")


def _is_test(parts: tuple[str, ...]) -> bool:
    return not _TEST_PACKAGES.isdisjoint(parts[:-1])


def _is_left_out(parts: tuple[str, ...], subject: str) -> bool:
    if parts[0].startswith(_BUILD_PREFIXES) or "__pycache__" in parts:
        return True
    return parts[0] in _LEFT_OUT or subject in _LEFT_OUT


def _part_of(subject: str) -> str:
    """The part of a subject: nothing but a hash of its name decides."""
    digest = hashlib.sha256(subject.encode("utf-8")).digest()
    return _HELD_OUT.get(int.from_bytes(digest[:8], "big") % _BUCKETS, "train")


def modules(part: str, tests: bool = True) -> list[Path]:
    """The files of a part ("train", "calibrate" or "test"), sorted.

    With `tests` false the files below test packages are left out of "train", too.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}: possible are {', '.join(map(repr, PARTS))}")
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[tuple[str, ...], Path]] = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        subject = _subject(parts)
        if _is_left_out(parts, subject) or _part_of(subject) != part:
            continue
        if not _is_test(parts) or (tests and part == "train"):
            found.append((parts, path))
    return [path for _, path in sorted(found)]


def documents(part: str, tests: bool = True) -> Iterator[str]:
    """The text of each file of `modules`, in its order; a file that is not UTF-8 is skipped."""
    for path in modules(part, tests):
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
