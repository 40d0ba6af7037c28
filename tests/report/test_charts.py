"""Charts: what is marked where, names of strangers, and files that are the same every time."""

import math
import subprocess
import sys
import xml.etree.ElementTree as xml
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.plan.scores import Base, Scores

matplotlib = pytest.importorskip("matplotlib")

from prunekit.report.charts import scores_figure, write_picture  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def scores(
    layers: int = 8, name: str = "org/model", longest: int | None = None, **changes: Any
) -> Scores:
    blocks = {
        length: [length + abs(start - 2) / 10 for start in range(layers - length + 1)]
        for length in range(1, (longest or layers) + 1)
    }
    base = Base(name, "llama", layers, "ab" * 32)
    given = {"criterion": "angular", "text": {"source": "stdlib/calibrate"}} | changes
    return Scores(options={}, base=base, blocks=blocks, **given)


def lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()]


def legend(axes: Any) -> list[str]:
    found = axes.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def boxes(axes: Any) -> set[tuple[float, float]]:
    """The (start, length) of the cells that are framed."""
    return {(box.get_x() + 0.5, box.get_y() + 0.5) for box in axes.patches}


def test_a_block_is_marked_in_the_curve_of_its_length_and_in_the_heatmap() -> None:
    measured = scores()
    curve, heatmap, *_ = scores_figure(measured, 3, [4, 5, 6]).axes
    row = measured.blocks[3]
    assert lines(curve) == [(list(range(6)), row), ([4], [row[4]])]
    assert legend(curve) == ["chosen: layers 4 to 6"]
    assert curve.get_title(loc="left") == "Blocks of 3 layers"
    assert curve.get_xlabel() == "block start (first layer removed)"
    assert boxes(heatmap) == {(4, 3)}
    assert heatmap.get_xlabel() == "block start (first layer removed)"
    assert heatmap.get_ylabel() == "layers removed"


def test_the_heatmap_has_every_block_in_its_place_and_the_lowest_of_each_length() -> None:
    measured = scores()
    heatmap = scores_figure(measured, 3, ()).axes[1]
    (image,) = heatmap.get_images()
    shown = image.get_array().filled(math.nan)
    for length in range(1, 9):
        row = measured.blocks[length]
        assert list(shown[length - 1][: len(row)]) == row
        assert all(math.isnan(value) for value in shown[length - 1][len(row) :])
    assert image.get_extent() == [-0.5, 7.5, 0.5, 8.5]
    assert image.origin == "lower"
    assert lines(heatmap) == [([2, 2, 2, 2, 2, 2, 1, 0], list(range(1, 9)))]
    assert boxes(heatmap) == set()


def test_scattered_layers_are_marked_as_single_layers() -> None:
    measured = scores()
    curve, heatmap, *_ = scores_figure(measured, 3, [6, 1, 2]).axes
    single = measured.layers
    assert lines(curve) == [
        (list(range(8)), single),
        ([1, 2, 6], [single[1], single[2], single[6]]),
    ]
    assert legend(curve) == ["the 3 layers chosen"]
    assert curve.get_xlabel() == "layer removed"
    assert boxes(heatmap) == {(1, 1), (2, 1), (6, 1)}


def test_nothing_chosen_is_not_marked() -> None:
    curve = scores_figure(scores(), 5, ()).axes[0]
    assert lines(curve) == [(list(range(4)), scores().blocks[5])]
    assert legend(curve) == []
    curve = scores_figure(scores(), None, ()).axes[0]
    assert curve.get_title(loc="left") == "Single layers"


def test_a_criterion_of_single_layers_gets_no_heatmap_and_the_sums_say_so() -> None:
    measured = scores(longest=1)
    (curve,) = scores_figure(measured, 2, [3, 4]).axes
    sums = [measured.layers[start] + measured.layers[start + 1] for start in range(7)]
    assert lines(curve)[0] == (list(range(7)), sums)
    assert curve.get_title(loc="left") == "Blocks of 2 layers (sums of their layers' scores)"


def test_lengths_that_were_not_scored_are_blank() -> None:
    measured = Scores(
        "mine", {}, Base("m", "llama", 4, "ab"), {1: [1.0, 2.0, 3.0, 4.0], 3: [5.0, 6.0]}
    )
    heatmap = scores_figure(measured, 1, [2]).axes[1]
    shown = heatmap.get_images()[0].get_array().filled(math.nan)
    assert shown.shape == (3, 4)
    assert all(math.isnan(value) for value in shown[1])


def test_scores_of_very_different_size_are_drawn_logarithmically() -> None:
    blocks = {1: [1.0, 1e6, 10.0], 2: [2.0, 3e6], 3: [1e7]}
    measured = Scores("perplexity", {}, Base("m", "llama", 3, "ab"), blocks)
    curve, heatmap, *_ = scores_figure(measured, 1, [0]).axes
    assert curve.get_yscale() == "log"
    assert type(heatmap.get_images()[0].norm).__name__ == "LogNorm"
    curve, heatmap, *_ = scores_figure(scores(), 1, [0]).axes
    assert curve.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("drop", "chosen", "said"),
    [
        (None, [8], "can't mark layer 8: the model has layers 0 to 7"),
        (None, [-1], "can't mark layer -1"),
        (3, [1, 2], "2 layers are chosen, not 3"),
        (9, [], "no blocks of 9 layers"),
        (-1, [], "no blocks of -1 layers"),
    ],
)
def test_marks_that_do_not_fit_the_model_are_refused(
    drop: int | None, chosen: list[int], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        scores_figure(scores(), drop, chosen)


def test_the_title_names_model_criterion_and_text() -> None:
    title = scores_figure(scores(), 3, ()).get_suptitle()
    assert title == "org/model\nangular on stdlib/calibrate"
    title = scores_figure(scores(text=None, criterion="random"), 3, ()).get_suptitle()
    assert title == "org/model\nrandom"
    title = scores_figure(scores(name="/a" * 200 + "/model-8b"), 3, ()).get_suptitle()
    assert title.startswith("/a/a")
    assert "/model-8b\n" in title
    assert len(title.splitlines()[0]) == 60


NAMES = [
    "a$x_2$b",
    r"$\frac{1}{$ \undefined{",
    "<script>alert(1)</script>",
    "--><script>alert(1)</script>]]>&amp;&\"'",
    "two\nlines\x00\x01\x1b\ud800\ufffe",
    "模型",
]


def texts(file: Path) -> list[str]:
    return ["".join(text.itertext()) for text in xml.parse(file).getroot().iter(f"{SVG}text")]


@pytest.mark.parametrize(("name", "source"), list(pairwise(NAMES)), ids=range(len(NAMES) - 1))
@pytest.mark.filterwarnings("error")
def test_names_of_strangers_are_shown_as_they_are(name: str, source: str, tmp_path: Path) -> None:
    file = tmp_path / "scores.svg"
    measured = scores(name=name, text={"source": source}, longest=1)
    write_picture(scores_figure(measured, 1, [1]), file)
    name, source = (
        "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
        for text in (name, source)
    )
    assert name in texts(file)
    assert f"angular on {source}" in texts(file)
    assert "<script" not in file.read_text(encoding="utf-8").lower()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_scores_give_the_same_file_without_a_date(suffix: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        figure = scores_figure(scores(), 3, [1, 2, 3])
        write_picture(figure, tmp_path / f"{name}.{suffix}")
    one = (tmp_path / f"one.{suffix}").read_bytes()
    assert one == (tmp_path / f"two.{suffix}").read_bytes()
    assert b"date>" not in one
    start = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml"}[suffix]
    assert one.startswith(start)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"one.{suffix}", f"two.{suffix}"]


def test_the_users_matplotlib_settings_change_nothing_and_are_left_alone(tmp_path: Path) -> None:
    write_picture(scores_figure(scores(), 3, [1, 2, 3]), tmp_path / "one.svg")
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "svg.fonttype": "path"}):
        write_picture(scores_figure(scores(), 3, [1, 2, 3]), tmp_path / "two.svg")
        assert matplotlib.rcParams["font.size"] == 30
        assert matplotlib.rcParams["svg.fonttype"] == "path"
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path: Path) -> None:
    write_picture(scores_figure(scores(longest=1), 3, ()), tmp_path / "scores.PNG")
    assert (tmp_path / "scores.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["scores.pdf", "scores", "svg", ".png", "scores.png.txt"])
def test_another_suffix_is_refused_with_what_is_possible(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in \.png or \.svg"):
        write_picture(scores_figure(scores(longest=1), 3, ()), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    figure = scores_figure(scores(longest=1), 3, ())
    with pytest.raises(InputError, match=r"can't write picture .*No such file"):
        write_picture(figure, tmp_path / "nowhere" / "scores.png")
    (tmp_path / "scores.png").mkdir()
    with pytest.raises(InputError, match=r"can't write picture .*directory"):
        write_picture(figure, tmp_path / "scores.png")
    assert [file.name for file in tmp_path.iterdir()] == ["scores.png"]


def test_without_matplotlib_the_answer_is_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'prunekit\[plot\]'"):
        scores_figure(scores(longest=1), 3, ())


def test_pyplot_is_not_touched() -> None:
    code = (
        "import sys; from prunekit.report import charts; "
        "assert 'matplotlib' not in sys.modules; "
        "from prunekit.plan.scores import Base, Scores; "
        "charts.scores_figure(Scores('c', {}, Base('m', 'l', 2, 'a'), {1: [1.0, 2.0]}), 1, [0]); "
        "print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
