"""What the command line prints: tables on stdout for people, JSON on stdout for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prunekit.cli.pictures import ASCII_GLYPHS, GLYPHS, kinds

if TYPE_CHECKING:
    from prunekit.plan.scores import Scores
    from prunekit.verbs.compare import Comparison
    from prunekit.verbs.demo import Row
    from prunekit.verbs.evaluate import Results
    from prunekit.verbs.heal import Healed
    from prunekit.verbs.show import Anatomy


def print_json(record: Any) -> None:
    """A result of any verb as JSON."""
    print(json.dumps(record, default=_plain, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; numbers to the right, names (the first column) to the left."""
    heads = any(columns)
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE, show_header=heads)
    for number, column in enumerate(columns):
        left = number == 0 or not heads
        # Names and lists of layers may wrap, numbers never.
        free = left or column == "removed"
        table.add_column(
            escape(column), justify="left" if left else "right", no_wrap=not free,
            overflow="fold" if free else "crop",
        )  # fmt: skip
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # in a file there is no width to fit: cut no number short
    console.print(table)


def results_table(results: Sequence["Results"]) -> None:
    """Measures of several models, the first one the yardstick."""
    first = results[0]
    rows = []
    for result in results:
        row = [result.model, str(result.layers), count(result.parameters), size(result.bytes)]
        if result.perplexity and first.perplexity:
            ratio = result.perplexity.perplexity / first.perplexity.perplexity
            row.append(f"{number(result.perplexity.perplexity)} ({ratio:.2f}x)")
        if result.latency and first.latency:
            speed = result.latency.tokens_per_second
            row.append(f"{speed:.1f} ({speed / first.latency.tokens_per_second:.2f}x)")
        rows.append(row)
    columns = ["model", "layers", "params", "bytes"]
    columns += ["perplexity"] if first.perplexity else []
    columns += ["decode tok/s"] if first.latency else []
    print_table("", columns, rows)
    if len(results) > 1:
        print("in brackets: how many times the first model's")
    if first.perplexity:
        print(protocol(first.perplexity.text, first.perplexity.context))


def demo_table(rows: Sequence["Row"]) -> None:
    """The demo: a line for every checkpoint."""
    lines = []
    for row in rows:
        results = row.results
        assert results.perplexity is not None
        assert results.latency is not None
        lines.append(
            [
                row.criterion,
                str(len(row.dropped)),
                layer_list(row.dropped),
                number(results.perplexity.perplexity),
                str(results.layers),
                count(results.parameters),
                size(results.bytes),
                f"{results.latency.tokens_per_second:.0f}",
            ]
        )
    columns = ["criterion", "off", "removed", "perplexity", "layers", "params", "bytes", "tok/s"]
    print_table("", columns, lines)
    measured = rows[0].results.perplexity
    assert measured is not None
    print(protocol(measured.text, measured.context))


def scores_table(scores: "Scores") -> None:
    """The score of every single layer, and the best block of every length."""
    rows = []
    for layer, value in enumerate(scores.layers):
        length = layer + 1
        row = [str(layer), f"{value:.6f}", "", "", ""]
        if length in scores.blocks:
            best = min(scores.blocks[length])
            start = scores.blocks[length].index(best)
            row[2:] = [str(length), f"[{start}, {start + length})", f"{best:.6f}"]
        rows.append(row)
    title = f"{scores.criterion} of {scores.base.name}: low = safe to remove"
    print_table(title, ["layer", "score", "block of", "best block", "its score"], rows)
    if scores.text:
        print(protocol(scores.text, scores.context))


def comparison_table(compared: "Comparison") -> None:
    """For each number of layers a line for every method, lowest perplexity first, with a picture of
    the layers."""
    console = Console()
    glyphs = ASCII_GLYPHS if console.options.ascii_only else GLYPHS
    for drop in dict.fromkeys(entry.drop for entry in compared.entries):
        rows = []
        for entry in compared.entries:
            if entry.drop != drop:
                continue
            layers = [layer for layer, part in entry.gone if part == "layer"]
            found = kinds(compared.layers, layers, (), entry.gone)
            spread = ""
            if entry.spread:
                spread = f"{number(entry.spread[0])} to {number(entry.spread[1])}"
            rows.append([
                entry.criterion, entry.chooser, "".join(glyphs[kind] for kind in found),
                number(entry.perplexity), f"{entry.divergence:.4f}", f"{entry.seconds:.1f}", spread,
            ])  # fmt: skip
        columns = ["criterion", "chooser", f"layers 0 to {compared.layers - 1}", "perplexity",
                   "divergence", "s", "spread"]  # fmt: skip
        print_table(f"{drop} off {compared.model}", columns, rows)
    print(f"perplexity of the whole model: {number(compared.dense)}; random: mean of "
          f"{max(entry.draws for entry in compared.entries)} draws")  # fmt: skip
    print(protocol(compared.text, compared.context))
    calibrated = compared.calibration_text
    print(f"chosen on {calibrated['source']}: {calibrated['samples']} samples; criteria that share "
          "a walk share its seconds")  # fmt: skip


def healed_table(healed: "Healed") -> None:
    """What a training gained on text that was held out."""
    history = healed.history
    rows = [
        [f"{name}{'' if name in healed.losses else ' (not trained on)'}", f"{before:.4f}",
         f"{history.best[name]:.4f}"]
        for name, before in history.before.items()
    ]  # fmt: skip
    print_table("", ["held-out loss", "before", f"best, step {history.best_step}"], rows)
    print(
        f"{count(healed.trained)} weights trained on {count(history.tokens)} tokens in "
        f"{history.seconds:.0f} s, {history.tokens_per_second:,.0f} tok/s"
    )


def run_table(records: Sequence[dict[str, Any]]) -> None:
    """What the steps of a run gave: one row for each that measured something."""
    rows = []
    for record in records:
        said = ", ".join(f"{key} {value}" for key, value in record["set"].items())
        history, result = record.get("history"), record.get("result") or {}
        cells = [""] * 4
        if history:
            name, before = next(iter(history["before"].items()))
            cells[0] = f"{name} {before:.4f} -> {history['best'][name]:.4f}"
        if result.get("perplexity"):
            cells[1] = number(result["perplexity"]["perplexity"])
            cells[2] = count(result["parameters"])
        if result.get("latency"):
            cells[3] = f"{result['latency']['tokens_per_second']:.1f}"
        rows.append([record["step"], said, *cells])
    print_table("", ["step", "with", "held-out loss", "perplexity", "params", "tok/s"], rows)


def anatomy_table(anatomy: "Anatomy") -> None:
    """What a model is made of."""
    shares = sorted(set(anatomy.layer_parameters))
    halves = [name for name in ("attention", "mlp") if any(h[name] for h in anatomy.halves)]
    rows = [
        ["model type", anatomy.model_type],
        ["layers", f"{anatomy.layers} (0 to {anatomy.layers - 1}) in {anatomy.path}"],
        ["hidden size, vocabulary", f"{anatomy.hidden}, {anatomy.vocabulary}"],
        ["parameters on disk", f"{count(anatomy.parameters)} ({', '.join(anatomy.dtypes)})"],
        ["bytes", size(anatomy.bytes)],
        ["parameters in a layer", " to ".join(count(n) for n in {shares[0]: 0, shares[-1]: 0})],
        ["can be cut", ", ".join(["layers", *halves])],
        ["digest", anatomy.digest[:16]],
    ]
    if anatomy.made_from:
        rows.append(["made from", anatomy.made_from])
        if anatomy.dropped or not anatomy.healed:
            rows.append(["layers removed", layer_list(anatomy.dropped)])
        if anatomy.healed:
            rows.append(["healed", anatomy.healed])
        for edit in anatomy.merged:
            rows.append([f"folded into {edit['into']}", layer_list(edit["layers"])])
        for half in ("attention", "mlp"):
            if muted := [layer for layer, which in anatomy.muted if which == half]:
                rows.append([f"layers without {half}", layer_list(muted)])
        for which, value in anatomy.perplexity.items():
            rows.append([f"perplexity, {which}", number(value)])
    print_table(anatomy.name, ["", ""], rows)


def protocol(text: dict[str, Any], context: dict[str, Any]) -> str:
    """One line on what a number was measured on."""
    return (
        f"text {text['source']}: {text['samples']} samples x {text['length']} tokens, "
        f"bos {text['bos']}; {context['dtype']} on {context['device']}; "
        f"torch {context['torch']}, transformers {context['transformers']}"
    )


def layer_list(layers: Sequence[int]) -> str:
    """Layers as a short text; a block as 5-8."""
    from prunekit.model.units import runs

    return ", ".join(
        str(start) if end == start + 1 else f"{start}-{end - 1}" for start, end in runs(layers)
    )


def number(value: float) -> str:
    return f"{value:.3f}" if value < 1e4 else f"{value:.3g}"


def count(value: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= unit:
            return f"{value / unit:.2f} {letter}"
    return str(value)


def size(value: int) -> str:
    return f"{value / 2**20:,.2f} MiB" if value < 2**30 else f"{value / 2**30:,.2f} GiB"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)
