"""Draws scores: the distance over the block's start, and a heatmap of all starts and lengths.

Needs matplotlib (`pip install 'prunekit[plot]'`). Figures are drawn in matplotlib's own default
style whatever the user's settings are, so that the same scores give the same file.
"""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, filterwarnings

from prunekit.errors import InputError
from prunekit.model.units import runs
from prunekit.plan.scores import Scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCORE = "score (low = safe to remove)"
SUFFIXES = (".png", ".svg")
BLUE, VERMILLION = "#0072B2", "#D55E00"  # Okabe and Ito's colours
LOGARITHMIC = 20  # the ratio of largest to smallest score from which the scale is logarithmic
STYLE = {
    "figure.dpi": 144,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "prunekit",
}


def scores_figure(scores: Scores, drop: int | None, chosen: Sequence[int]) -> "Figure":
    """The scores with the layers that were chosen to go, if any, marked.

    `drop` is the block length of the curve when nothing is chosen. Scattered layers are marked in
    the scores of single layers. A criterion that scores single layers only gets no heatmap.
    Raises InputError if `drop` or `chosen` do not fit the model.
    """
    length, starts = _marks(scores, drop, chosen)
    with _style():
        from matplotlib.figure import Figure

        many = len(scores.blocks) > 1
        figure = Figure(figsize=(11, 4.4) if many else (7, 4), layout="constrained")
        axes = figure.subplots(1, 2 if many else 1, squeeze=False)[0]
        _curve(axes[0], scores, length, starts)
        if many:
            _heatmap(axes[1], scores, length, starts)
        figure.suptitle(_title(scores), x=0.01, ha="left", fontsize=11, parse_math=False)
        return figure


def write_picture(figure: "Figure", path: Path) -> None:
    """Write the figure as .png or .svg, whole or not at all.

    Raises InputError for another suffix or a place that can't be written to.
    """
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise InputError(
            f"can't write a picture as {path.name!r}; its name must end in {' or '.join(SUFFIXES)}"
        )
    metadata = {"Date": None, "Creator": "prunekit"} if kind == ".svg" else {"Software": "prunekit"}
    stream = io.BytesIO()
    with _style(), catch_warnings():
        # The font lacks some scripts; a model may be named in them all the same.
        filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(stream, format=kind[1:], metadata=metadata)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(stream.getvalue())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"can't write picture {str(path)!r}: {error.strerror}") from None


@contextmanager
def _style() -> Iterator[None]:
    try:
        from matplotlib import style
    except ImportError:
        raise InputError("pictures need matplotlib: pip install 'prunekit[plot]'") from None
    with style.context(["default", STYLE]):
        yield


def _marks(scores: Scores, drop: int | None, chosen: Sequence[int]) -> tuple[int, list[int]]:
    """The block length of the curve and the starts of the chosen blocks of that length."""
    layers = scores.base.layers
    wrong = [layer for layer in chosen if not 0 <= layer < layers]
    if wrong:
        raise InputError(f"can't mark layer {wrong[0]}: the model has layers 0 to {layers - 1}")
    if drop is not None and chosen and len(set(chosen)) != drop:
        raise InputError(f"{len(set(chosen))} layers are chosen, not {drop}")
    if drop is not None and not 0 <= drop <= layers:
        raise InputError(f"no blocks of {drop} layers: the model has {layers}")
    blocks = runs(sorted(set(chosen)))
    if len(blocks) == 1:
        ((start, end),) = blocks
        return end - start, [start]
    if blocks:
        return 1, sorted(set(chosen))
    return drop or 1, []


def _curve(axes: "Axes", scores: Scores, length: int, starts: list[int]) -> None:
    row = scores.block(length)
    few = len(row) <= 64
    axes.plot(range(len(row)), row, color=BLUE, lw=1.4, marker="o", ms=4 if few else 2.5, zorder=2)
    if starts:
        axes.plot(
            starts,
            [row[start] for start in starts],
            linestyle="none",
            marker="D",
            ms=8 if few else 6,
            mfc=VERMILLION,
            mec="white",
            mew=1,
            zorder=3,
            clip_on=False,
            label=_chosen(length, starts),
        )
        axes.legend(loc="best", numpoints=1, facecolor="white", edgecolor="none")
    title = "Single layers" if length == 1 else f"Blocks of {length} layers"
    axes.set_title(title if length in scores.blocks else f"{title} (sums of their layers' scores)")
    axes.set_xlabel("layer removed" if length == 1 else "block start (first layer removed)")
    axes.set_ylabel(SCORE)
    axes.set_xlim(-0.5, scores.base.layers - 0.5)
    if _logarithmic(row):
        axes.set_yscale("log")
    axes.grid(axis="y", color="0.9", lw=0.8)
    axes.set_axisbelow(True)
    _whole_numbers(axes.xaxis)


def _heatmap(axes: "Axes", scores: Scores, length: int, starts: list[int]) -> None:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.patches import Rectangle

    layers, longest = scores.base.layers, max(scores.blocks)
    thick = 2 if layers <= 24 else 1.2
    nothing = float("nan")
    grid = [
        scores.blocks.get(size, []) + [nothing] * (layers - len(scores.blocks.get(size, [])))
        for size in range(1, longest + 1)
    ]
    values = [value for row in scores.blocks.values() for value in row]
    norm = (LogNorm if _logarithmic(values) else Normalize)(min(values), max(values))
    image = axes.imshow(
        grid,
        origin="lower",
        aspect="auto",
        cmap="cividis",
        norm=norm,
        interpolation="nearest",
        extent=(-0.5, layers - 0.5, 0.5, longest + 0.5),
    )
    for number, start in enumerate(starts):
        for colour, width in (("white", 2 * thick), (VERMILLION, thick)):
            box = Rectangle((start - 0.5, length - 0.5), 1, 1, fill=False, ec=colour, lw=width)
            box.set_clip_on(False)
            axes.add_patch(box)
        if number == 0:
            box.set_label("chosen")
    best = [
        (min(range(len(row)), key=row.__getitem__), size)
        for size, row in sorted(scores.blocks.items())
    ]
    axes.plot(
        [start for start, _ in best],
        [size for _, size in best],
        linestyle="none",
        marker="o",
        ms=4 if layers <= 64 else 2.5,
        mfc="white",
        mec="black",
        mew=0.6,
        label="lowest of its length",
    )
    axes.legend(loc="upper right", frameon=False)  # over the corner where no blocks are
    axes.set_title("Blocks of every length")
    axes.set_xlabel("block start (first layer removed)")
    axes.set_ylabel("layers removed")
    _whole_numbers(axes.xaxis)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, longest) if longest / step <= 12)
    axes.set_yticks([1, *range(max(step, 2), longest + 1, step)])
    bar = axes.figure.colorbar(image, ax=axes, label=SCORE, pad=0.02)
    bar.outline.set_visible(False)


def _chosen(length: int, starts: list[int]) -> str:
    if len(starts) > 1:
        return f"the {len(starts)} layers chosen"
    (start,) = starts
    if length == 1:
        return f"chosen: layer {start}"
    return f"chosen: layers {start} to {start + length - 1}"


def _logarithmic(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= LOGARITHMIC


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))


def _title(scores: Scores) -> str:
    source = (scores.text or {}).get("source")
    measured = scores.criterion if source is None else f"{scores.criterion} on {source}"
    return f"{_printable(scores.base.name)}\n{_printable(measured)}"


def _printable(name: str, most: int = 60) -> str:
    """Names come from strangers: no control characters (SVG can't hold them), and not too long."""
    clean = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    if len(clean) <= most:
        return clean
    return f"{clean[: most // 2]}\u2026{clean[len(clean) + 1 - most // 2 :]}"
