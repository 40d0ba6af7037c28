"""Pictures for the terminal: which layers go, which stay, and how each was scored."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import log

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from prunekit.errors import InputError

KEPT, DROPPED, PROTECTED = "kept", "dropped", "protected"
NO_ATTENTION, NO_MLP, IDLE = "without attention", "without MLP", "without both"
STYLES = {KEPT: "blue", PROTECTED: "yellow", NO_ATTENTION: "magenta", NO_MLP: "cyan",
          IDLE: "bright_red", DROPPED: "bright_red"}  # fmt: skip
GLYPHS = {KEPT: "█", PROTECTED: "◆", NO_ATTENTION: "▄", NO_MLP: "▀", IDLE: "─", DROPPED: "░"}
ASCII_GLYPHS = {KEPT: "#", PROTECTED: "P", NO_ATTENTION: "m", NO_MLP: "a", IDLE: "-", DROPPED: "."}
SPARKS, ASCII_SPARKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
LOGARITHMIC = 20  # the ratio of largest to smallest score from which the scale is logarithmic


def layer_strip(
    layers: int,
    dropped: Collection[int],
    protected: Collection[int] = (),
    scores: Sequence[float] | None = None,
    muted: Collection[tuple[int, str]] = (),
) -> RenderableType:
    """One cell per layer: dropped, protected, without a half or kept; its score above, its number
    below.

    Told apart by glyph as well as by colour; falls back to ASCII where the console's encoding
    needs it, and wraps to the console's width. Print it with rich. A layer both protected and
    dropped, as a plan changed by hand may have it, is dropped. Raises InputError for a layer that
    the model does not have or if there is not one score per layer.
    """
    if layers < 1:
        raise InputError(f"a model of {layers} layers has no picture")
    for layer in (*dropped, *protected, *(layer for layer, _ in muted)):
        if not 0 <= layer < layers:
            raise InputError(f"no layer {layer}: the model has layers 0 to {layers - 1}")
    if scores is not None and len(scores) != layers:
        raise InputError(f"{len(scores)} scores for {layers} layers")
    return _Strip(kinds(layers, dropped, protected, muted), scores)


def kinds(
    layers: int,
    dropped: Collection[int],
    protected: Collection[int] = (),
    muted: Collection[tuple[int, str]] = (),
) -> list[str]:
    """What each layer is."""
    without = {(True, True): IDLE, (True, False): NO_ATTENTION, (False, True): NO_MLP}
    found = []
    for layer in range(layers):
        halves = ((layer, "attention") in muted, (layer, "mlp") in muted)
        kind = without.get(halves, PROTECTED if layer in protected else KEPT)
        found.append(DROPPED if layer in dropped else kind)
    return found


@dataclass(frozen=True)
class _Strip:
    """Drawn when it is printed: only then are the console's width and encoding known."""

    kinds: list[str]
    scores: Sequence[float] | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        glyphs = ASCII_GLYPHS if options.ascii_only else GLYPHS
        sparks = _sparks(self.scores, ASCII_SPARKS if options.ascii_only else SPARKS)
        cell, step = _spacing(len(self.kinds), options.max_width)
        for block in _rows(len(self.kinds), options.max_width // cell, step):
            if sparks:
                yield _line([(sparks[layer], "") for layer in block], cell)
            kinds = [self.kinds[layer] for layer in block]
            yield _line([(glyphs[kind], STYLES[kind]) for kind in kinds], cell)
            yield _numbers(block, cell, step, options.max_width)
        yield self._legend(glyphs)
        if self.scores:
            low, high = min(self.scores), max(self.scores)
            scale = ", logarithmic" if _logarithmic(self.scores) else ""
            said = f"scores from {low:.4g} to {high:.4g}{scale}; low = safe to remove"
            yield Text(said, style="dim")

    def _legend(self, glyphs: dict[str, str]) -> Text:
        parts = [
            Text.assemble((glyphs[kind], STYLES[kind]), f" {self.kinds.count(kind)} {kind}")
            for kind in (KEPT, DROPPED, NO_ATTENTION, NO_MLP, IDLE, PROTECTED)
            if kind in self.kinds
        ]
        return Text("   ").join(parts)


def _spacing(layers: int, width: int) -> tuple[int, int]:
    """Columns per layer (with the gap behind it), and every how many layers one is numbered."""
    if layers * 3 <= width:
        return 3, 1 if layers <= 100 else 2
    if layers * 2 <= width:
        return 2, 2
    return 1, 5 if layers <= 100 else 10


def _rows(layers: int, fit: int, step: int) -> Iterator[range]:
    """The layers of each line; every line begins with a numbered layer if there is room."""
    each = max(1, fit // step * step or fit)
    if layers <= fit:
        each = layers
    for start in range(0, layers, each):
        yield range(start, min(start + each, layers))


def _line(cells: Sequence[tuple[str, str]], cell: int) -> Text:
    """Cells of three columns are two glyphs and a gap; narrower ones touch."""
    glyphs, gap = (2, " ") if cell == 3 else (cell, "")
    line = Text(no_wrap=True, overflow="crop")
    for glyph, style in cells:
        line.append(glyph * glyphs, style)
        line.append(gap)
    line.rstrip()
    return line


def _numbers(block: range, cell: int, step: int, width: int) -> Text:
    line = ""
    for position, layer in enumerate(block):
        label, column = str(layer), position * cell
        if layer % step == 0 and len(line) <= column and column + len(label) <= width:
            line = line.ljust(column) + label
    return Text(line, style="dim", no_wrap=True, overflow="crop")


def _sparks(scores: Sequence[float] | None, glyphs: str) -> list[str]:
    """A glyph for each score, by height between the lowest and the highest."""
    if not scores:
        return []
    heights = [log(score) for score in scores] if _logarithmic(scores) else scores
    low, span = min(heights), max(heights) - min(heights)
    top = len(glyphs) - 1
    return [glyphs[round((height - low) / span * top) if span else 0] for height in heights]


def _logarithmic(scores: Sequence[float]) -> bool:
    return min(scores) > 0 and max(scores) / min(scores) >= LOGARITHMIC
