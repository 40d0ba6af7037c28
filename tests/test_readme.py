"""The README's commands and Python run as they stand there, one after the other in one folder."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from prunekit.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_commands_and_snippets_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("console") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 8
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "prunekit"
        monkeypatch.setattr(sys, "argv", ["prunekit", *arguments])
        with pytest.raises(SystemExit) as left:
            app.main()
        assert not left.value.code, f"{line}: {capsys.readouterr().err}"
    assert (tmp_path / "smaller" / "config.json").is_file()
    assert (tmp_path / "cut" / "config.json").is_file()
    snippets = blocks("python")
    assert len(snippets) >= 2
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    assert (tmp_path / "from-python" / "config.json").is_file()


def test_links_and_tree_name_what_there_is() -> None:
    for link in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / link).exists(), link
    rooms = {
        path.name for path in (ROOT / "src/prunekit").iterdir() if (path / "__init__.py").is_file()
    }
    for room in rooms:
        assert f"  {room}/ " in README, f"the tree in the README does not name {room}/"


def test_private_criterion_of_the_docs_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llama: Path, words: tuple[Path, Path]
) -> None:
    from prunekit.verbs.score import score

    page = (ROOT / "docs/add-a-criterion.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) < 20
    (tmp_path / "added.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    (scores,) = score(
        tiny_llama, criterion="./added.py", options={"power": "2"}, text=str(words[0]), length=32
    )
    assert scores.options == {"power": 2.0}
    assert all(value > 0 for value in scores.layers)
