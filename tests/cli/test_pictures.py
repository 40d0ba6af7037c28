"""The strip of layers: what is printed, in which width, with and without colour or Unicode."""

import io
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from prunekit.cli.pictures import layer_strip
from prunekit.errors import InputError


def printed(strip: RenderableType, width: int = 80, encoding: str = "utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    Console(file=file, width=width, color_system=None).print(strip)
    file.seek(0)
    return file.read().splitlines()


def test_few_layers_are_each_numbered_and_told_apart_without_colour() -> None:
    assert printed(layer_strip(12, [4, 5, 10], [0, 11])) == [
        "◆◆ ██ ██ ██ ░░ ░░ ██ ██ ██ ██ ░░ ◆◆",
        "0  1  2  3  4  5  6  7  8  9  10 11",
        "█ 7 kept   ░ 3 dropped   ◆ 2 protected",
    ]


def test_more_layers_get_narrower_cells_and_fewer_numbers() -> None:
    strip, numbers, _ = printed(layer_strip(32, range(21, 29)))
    assert strip == "██" * 21 + "░░" * 8 + "██" * 3
    assert numbers.split() == [str(layer) for layer in range(0, 32, 2)]
    strip, numbers, _ = printed(layer_strip(60, range(21, 29)))
    assert strip == "█" * 21 + "░" * 8 + "█" * 31
    assert numbers.split() == [str(layer) for layer in range(0, 60, 5)]


def test_many_layers_wrap_and_every_line_begins_with_a_number() -> None:
    first, below_first, second, below_second, legend = printed(
        layer_strip(126, range(70, 110), [0, 125])
    )
    assert first == "◆" + "█" * 69 + "░" * 10
    assert below_first.split() == ["0", "10", "20", "30", "40", "50", "60", "70"]
    assert second == "░" * 30 + "█" * 15 + "◆"
    assert below_second.split() == ["80", "90", "100", "110", "120"]
    assert legend == "█ 84 kept   ░ 40 dropped   ◆ 2 protected"
    first, _, second, below_second, _ = printed(layer_strip(126, []), width=76)
    assert (len(first), len(second)) == (70, 56)
    assert below_second.startswith("70 ")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_console_without_block_glyphs_gets_ascii(encoding: str) -> None:
    lines = printed(layer_strip(6, [2, 3], [0], [0.0, 1, 2, 3, 4, 5]), encoding=encoding)
    assert lines == [
        "__ .. ~~ == ** ##",
        "PP ## .. .. ## ##",
        "0  1  2  3  4  5",
        "# 3 kept   . 2 dropped   P 1 protected",
        "scores from 0 to 5; low = safe to remove",
    ]


def test_scores_stand_above_their_layers() -> None:
    sparks, *_, said = printed(layer_strip(3, [1], scores=[7.0, 0.0, 3.0]))
    assert sparks == "██ ▁▁ ▄▄"
    assert said == "scores from 0 to 7; low = safe to remove"
    assert printed(layer_strip(2, [], scores=[5.0, 5.0]))[0] == "▁▁ ▁▁"


def test_one_huge_score_does_not_hide_the_others() -> None:
    sparks, *_, said = printed(layer_strip(3, [], scores=[1e6, 1.0, 1e3]))
    assert sparks == "██ ▁▁ ▅▅"
    assert "logarithmic" in said


def test_colours_differ_too() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, color_system="standard", force_terminal=True)
    console.print(layer_strip(3, [1], [2]))
    first = file.getvalue().splitlines()[0]
    assert first == "\x1b[34m██\x1b[0m \x1b[91m░░\x1b[0m \x1b[33m◆◆\x1b[0m"


@given(st.integers(1, 200), st.integers(1, 140), st.booleans(), st.randoms())
def test_any_model_fits_any_width_and_shows_each_layer_once(
    layers: int, width: int, scored: bool, random: object
) -> None:
    dropped = [layer for layer in range(layers) if layer % 7 in (2, 3)]
    scores = [float(layer) for layer in range(layers)] if scored else None
    lines = printed(layer_strip(layers, dropped, scores=scores), width)
    assert all(cell_len(line) <= width for line in lines)
    strips = lines[1:-2:3] if scored else lines[:-1:2]
    cells = "".join(strips).replace(" ", "")
    each = 2 if width >= layers * 2 else 1
    shown = cells[: layers * each : each]
    assert shown == "".join("░" if layer % 7 in (2, 3) else "█" for layer in range(layers))


@given(st.integers(1, 200), st.integers(8, 140))
def test_every_number_stands_below_its_layer(layers: int, width: int) -> None:
    lines = printed(layer_strip(layers, []), width)
    cell = 3 if layers * 3 <= width else 2 if layers * 2 <= width else 1
    at = 0
    while at < layers:
        strip, numbers = lines.pop(0), lines.pop(0)
        here = (len(strip) + (1 if cell == 3 else 0)) // cell
        for label in numbers.split():
            column = f" {numbers} ".index(f" {label} ")
            assert column == (int(label) - at) * cell
        at += here


def test_a_layer_dropped_although_protected_is_shown_as_dropped() -> None:
    assert printed(layer_strip(3, [1], [1]))[0] == "██ ░░ ██"


@pytest.mark.parametrize(
    ("layers", "dropped", "protected", "scores", "said"),
    [
        (4, [4], [], None, "no layer 4: the model has layers 0 to 3"),
        (4, [], [-1], None, "no layer -1"),
        (4, [], [], [1.0], "1 scores for 4 layers"),
        (0, [], [], None, "a model of 0 layers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    layers: int, dropped: list[int], protected: list[int], scores: list[float] | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        layer_strip(layers, dropped, protected, scores)


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; import prunekit.cli.pictures; "
        "print([name for name in ('torch', 'transformers', 'numpy', 'yaml', 'matplotlib') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
