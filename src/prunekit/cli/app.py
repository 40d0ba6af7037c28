"""The command line: one command per verb. Numbers go to stdout, progress and remarks to stderr."""

import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer import Abort
from typer.exceptions import TyperException

from prunekit.cli import tables
from prunekit.cli.progress import bar
from prunekit.errors import InputError
from prunekit.model.ranks import rank, ranks

if TYPE_CHECKING:
    from prunekit.plan.plan import Plan

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
OTHERS = ("edits", "losses", "recipes")  # what `list` lists beside plug-ins
SHARED = ("score", "evaluate", "heal")  # what several processes can do together

app = typer.Typer(
    help="Makes causal language models smaller: finds what they do not need, takes it out, "
    "measures what was lost. Layers are counted from 0; a block is half-open, [start, end).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a hub id, or `demo`.")]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="The new checkpoint.")]
Drop = Annotated[int, typer.Option("--drop", help="How many layers (or halves) go.")]
Criterion = Annotated[str, typer.Option(help="See `prunekit list criteria`, or a path ./mine.py.")]
Options = Annotated[
    list[str] | None,
    typer.Option("-O", "--option", metavar="NAME=VALUE", help="An option of the criterion."),
]
Choose = Annotated[
    str, typer.Option(help="See `prunekit list choosers`; block for layers, lowest for halves.")
]
ChooseOptions = Annotated[
    list[str] | None,
    typer.Option("--choose-option", metavar="NAME=VALUE", help="An option of the chooser."),
]
By = Annotated[str, typer.Option(help="What judges a search: divergence or perplexity.")]
Edit = Annotated[
    str, typer.Option(metavar="drop|replace|fold", help="What is done with the chosen layers.")
]
EditOptions = Annotated[
    list[str] | None,
    typer.Option("--edit-option", metavar="NAME=VALUE", help="An option of the edit."),
]
Unit = Annotated[
    str, typer.Option(metavar="layer|attention|mlp|half", help="What goes; halves are muted.")
]
Protect = Annotated[
    str, typer.Option(metavar="0,1,-1", help="Layers that stay; negative ones count from the end.")
]
TextSource = Annotated[
    str,
    typer.Option(
        "--text", metavar="SOURCE",
        help="A file or folder (.txt .jsonl .json .csv .parquet; file.jsonl:column), "
        "hub:name/subset/split:column, mmlu:FOLDER, or stdlib/train|calibrate|test.",
    ),
]  # fmt: skip
Samples = Annotated[
    int | None, typer.Option(help="Samples to calibrate on; 128, or as many as the text has.")
]
Test = Annotated[
    str, typer.Option(metavar="SOURCE", help="Text to measure on; never the calibration text.")
]
TestSamples = Annotated[
    int | None, typer.Option(help="Samples to measure on, from the start; all.")
]
Length = Annotated[
    int | None, typer.Option(help="Tokens per sample; 2048, or as many as the model takes.")
]
Batch = Annotated[int | None, typer.Option(help="Samples run at once; about 2048 tokens' worth.")]
Seed = Annotated[int, typer.Option(help="Draws the calibration samples.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Walk = Annotated[
    str, typer.Option(help="memory, disk (layer by layer), or auto: in memory if the weights fit.")
]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="From disk: the states held at once; 8GiB, 500MB.")
]
Scratch = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="From disk: where states go that don't fit; $TMPDIR."),
]
Quantize = Annotated[
    str | None, typer.Option(metavar="nf4|fp4|int8", help="Run the model quantised (bitsandbytes).")
]
DoubleQuant = Annotated[bool, typer.Option(help="With nf4 and fp4: quantise their constants too.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and not a table.")]
ShardSize = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most bytes of a file: 5GB, 500MiB; the input's shards."),
]
Link = Annotated[
    bool, typer.Option("--link", help="Link shards in which nothing changes; don't write them.")
]
Check = Annotated[
    bool, typer.Option(help="Open and run what was written, against the base with layers skipped.")
]
RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A file, or see `prunekit list recipes`.")
]
Changes = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE...]", help="model=..., text.test=..., prune.drop=6"),
]
RunFolder = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="RUN", help="The run's folder.")
]


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="[OUT]", help="The pruned demo model.")] = Path(
        "prunekit-demo"
    ),
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """The whole flow on the small trained model that ships with the package; no network."""
    # Read when torch is imported. So small a model gains nothing from a second thread, and loses
    # much where another program wants the same cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from prunekit.verbs.demo import KEPT, demo

    rows = demo(out, device=device, watch=bar)
    if json:
        tables.print_json(rows)
        return
    tables.demo_table(rows)
    (kept,) = (row for row in rows if (row.criterion, len(row.dropped)) == KEPT)
    _picture(rows[0].results.layers, kept.dropped)
    _remark(
        "tok/s is decode speed, measured for the dense model and the cuts by angular, side by side"
    )
    _remark(f"the model with {KEPT[1]} layers off by {KEPT[0]} is in {out}; open it with")
    _remark(f'  transformers.AutoModelForCausalLM.from_pretrained("{out}")')


@app.command()
def show(
    target: Annotated[str, typer.Argument(metavar="MODEL|PLAN|SCORES")],
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="FORM", help="A plan: mergekit. Scores: csv, png, svg."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where --as goes.")
    ] = None,
    drop: Annotated[
        int | None, typer.Option(help="Scores: mark the best block of so many.")
    ] = None,
    choose: Choose = "block",
    protect: Protect = "",
    json: Json = False,
) -> None:
    """What a model, a plan or scores are; a plan as mergekit's YAML, scores as CSV or a picture."""
    if Path(target).suffix in (".yaml", ".yml") and not Path(target).is_dir():
        _show_plan(Path(target), as_, out, json)
    elif Path(target).suffix == ".json" and not Path(target).is_dir():
        _show_scores(Path(target), as_, out, json, drop, choose, protect)
    else:
        from prunekit.verbs.show import show

        if as_:
            raise InputError(f"--as {as_}: a model has no other form; it is for plans and scores")
        anatomy = show(target)
        if json:
            tables.print_json(anatomy)
        else:
            tables.anatomy_table(anatomy)


@app.command()
def score(
    model: Model,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE")] = None,
    criterion: Criterion = "angular",
    option: Options = None,
    text: TextSource = "stdlib/calibrate",
    samples: Samples = None,
    length: Length = None,
    batch: Batch = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    quantize: Quantize = None,
    double_quant: DoubleQuant = True,
    json: Json = False,
) -> None:
    """Score every layer and every block of layers; low = safe to remove."""
    from prunekit.verbs.score import score

    _refuse_existing(out)
    (scores,) = score(
        model, criterion=criterion, options=_options(option), text=text, samples=samples,
        length=length, batch=batch, seed=seed, dtype=dtype, device=device, walk=walk, memory=memory,
        scratch=scratch, quantize=quantize, double_quant=double_quant, watch=bar,
    )  # fmt: skip
    if out and rank() == 0:
        scores.write(out)
    if json:
        tables.print_json(scores)
    else:
        tables.scores_table(scores)


@app.command()
def plan(
    scores: Annotated[Path, typer.Argument(metavar="SCORES", help="Written by `score -o`.")],
    drop: Drop,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE")] = None,
    choose: Choose = "",
    choose_option: ChooseOptions = None,
    unit: Unit = "layer",
    edit: Annotated[
        str, typer.Option(metavar="drop|replace", help="`prunekit fold` makes folds of drops.")
    ] = "drop",
    edit_option: EditOptions = None,
    protect: Protect = "",
) -> None:
    """Choose what goes by scores: a YAML file that a person can read, change and apply."""
    from prunekit.plan.scores import read_scores
    from prunekit.verbs.edits import make_edit

    _refuse_existing(out)
    read = read_scores(scores)
    if edit == "fold":
        raise InputError("--edit fold takes the model: write a plan, then `prunekit fold` it")
    shape = make_edit(edit, _options(edit_option, "--edit-option"), _unit(unit))
    made = shape.plan(
        read, drop=drop, chooser=choose or _chooser(unit), protect=_integers(protect),
        options=_options(choose_option, "--choose-option"), unit=_unit(unit),
    )  # fmt: skip
    _write_plan(made, out)
    _picture_of(made, read.layers)


@app.command()
def fold(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan that drops layers.")],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", metavar="FILE.yaml", help="The new plan; its maps lie beside."),
    ],
    ridge: Annotated[float, typer.Option(help="Over what the MLP writes, squared.")] = 1e-4,
    diagonal: Annotated[bool, typer.Option("--diagonal", help="One factor a channel.")] = False,
    text: TextSource = "stdlib/calibrate",
    samples: Samples = None,
    length: Length = None,
    batch: Batch = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
) -> None:
    """Fit a linear map to each block that a plan drops: `cut` folds it into the MLP before."""
    from prunekit.verbs.fold import fold

    _refuse_existing(out)
    made = fold(
        model, plan, out.with_suffix(".safetensors"), ridge=ridge, diagonal=diagonal, text=text,
        samples=samples, length=length, batch=batch, seed=seed, dtype=dtype, device=device,
        walk=walk, memory=memory, scratch=scratch,
    )  # fmt: skip
    _write_plan(made, out)
    _picture_of(made)


@app.command()
def search(
    model: Model,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE")] = None,
    drop: Annotated[int | None, typer.Option(help="So many layers (or halves) go.")] = None,
    params: Annotated[float | None, typer.Option(help="Keep 0.75 of the parameters.")] = None,
    bytes_: Annotated[
        str | None, typer.Option("--bytes", metavar="SHARE|SIZE", help="Keep 0.75, or 12GiB.")
    ] = None,
    speed: Annotated[
        str | None, typer.Option(metavar="1.3x", help="By times measured here; layers and halves.")
    ] = None,
    kv_cache: Annotated[float | None, typer.Option(help="Keep 0.75 of the cache.")] = None,
    choose: Annotated[str, typer.Option(help="evolve, greedy or a path ./mine.py.")] = "evolve",
    choose_option: ChooseOptions = None,
    by: By = "divergence",
    scores: Annotated[
        Path | None, typer.Option(metavar="SCORES", help="Where to start: written by `score -o`.")
    ] = None,
    unit: Unit = "layer",
    protect: Protect = "",
    text: TextSource = "stdlib/calibrate",
    samples: Samples = None,
    length: Length = None,
    batch: Batch = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    quantize: Quantize = None,
    double_quant: DoubleQuant = True,
) -> None:
    """Find what can go together by trying it: a plan that meets a target at the lowest loss."""
    from prunekit.plan.scores import read_scores
    from prunekit.verbs.search import search

    _refuse_existing(out)
    start = read_scores(scores) if scores else None
    made = search(
        model, drop=drop, params=params, bytes=bytes_, speed=speed, kv_cache=kv_cache,
        chooser=choose, options=_options(choose_option, "--choose-option"), by=by,
        unit=_unit(unit), protect=_integers(protect), scores=start,
        text=text, samples=samples, length=length, batch=batch, seed=seed, dtype=dtype,
        device=device, walk=walk, memory=memory, scratch=scratch, quantize=quantize,
        double_quant=double_quant, watch=bar,
    )  # fmt: skip
    _write_plan(made, out)
    _picture_of(made)
    found = made.made_by
    _remark(
        f"saves {found['saved']} (asked for: {found['target']}); {by} {found['loss']:.4f} nats a "
        f"token on the calibration text, {found['judged']} variants tried"
    )


@app.command()
def cut(
    model: Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, or mergekit's YAML.")],
    out: Out,
    check: Check = True,
    shard_size: ShardSize = None,
    link: Link = False,
) -> None:
    """Apply a plan: a new checkpoint that plain transformers opens. The input is never touched."""
    # All that is imported stays: to look for garbage in it, now and at the end, takes more than a
    # second, a quarter of the start.
    gc.disable()
    from prunekit.model.family import Family
    from prunekit.verbs.cut import cut

    gc.freeze()
    gc.enable()
    made = cut(model, plan, out, check=check, shard_size=shard_size, link=link)
    story = made.story
    kept = Family.of(made.config).depth
    merged = [layer for edit in story["merged"] for layer in edit["layers"]]
    gone = [*story["dropped"], *merged]
    stay = [layer for layer in range(kept + len(gone)) if layer not in gone]
    muted = [(stay[layer], half) for layer, half in story["muted"]]
    _picture(kept + len(gone), gone, muted=muted)
    checked = "opened and run by transformers, logits equal" if check else "not checked"
    _remark(f"wrote {out}: {kept} layers, {tables.size(made.bytes)} ({checked})")


@app.command()
def prune(
    model: Model,
    out: Out,
    drop: Drop,
    criterion: Criterion = "angular",
    option: Options = None,
    choose: Choose = "",
    choose_option: ChooseOptions = None,
    unit: Unit = "layer",
    edit: Edit = "drop",
    edit_option: EditOptions = None,
    protect: Protect = "",
    text: TextSource = "stdlib/calibrate",
    samples: Samples = None,
    test: Test = "stdlib/test",
    test_samples: TestSamples = None,
    length: Length = None,
    batch: Batch = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    quantize: Quantize = None,
    double_quant: DoubleQuant = True,
    json: Json = False,
) -> None:
    """Score, plan and cut, with perplexity before and after."""
    from prunekit.verbs.prune import prune

    pruned = prune(
        model, out, drop=drop, criterion=criterion, options=_options(option),
        chooser=choose or _chooser(unit), choose_options=_options(choose_option, "--choose-option"),
        unit=_unit(unit), edit=edit, edit_options=_options(edit_option, "--edit-option"),
        protect=_integers(protect), text=text, samples=samples, test=test,
        test_samples=test_samples, length=length, batch=batch, seed=seed, dtype=dtype,
        device=device, walk=walk, memory=memory, scratch=scratch, quantize=quantize,
        double_quant=double_quant, watch=bar,
    )  # fmt: skip
    if json:
        tables.print_json(
            {"dense": pruned.dense, "pruned": pruned.pruned, "plan": pruned.plan.made_by}
        )
    else:
        tables.results_table([pruned.dense, pruned.pruned])
    if model != "demo" and text == "stdlib/calibrate":
        _remark("calibrated on Python's standard library; --text and --test take your own text")
    if pruned.shared > 0.01:
        _remark(f"{pruned.shared:.0%} of the test text's lines occur in the calibration text too")
    _picture_of(pruned.plan, pruned.scores.layers)


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="The first is the yardstick.")
    ],
    measure: Annotated[str, typer.Option(help="See `prunekit list measures`.")] = "perplexity",
    text: TextSource = "stdlib/test",
    samples: TestSamples = None,
    length: Length = None,
    batch: Batch = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    quantize: Quantize = None,
    double_quant: DoubleQuant = True,
    json: Json = False,
) -> None:
    """Measure one or more models on the same text."""
    from prunekit.verbs.evaluate import evaluate

    results = evaluate(
        models, measure=_words(measure), text=text, samples=samples, length=length, batch=batch,
        dtype=dtype, device=device, walk=walk, memory=memory, scratch=scratch,
        quantize=quantize, double_quant=double_quant, watch=bar,
    )  # fmt: skip
    if json:
        tables.print_json(results)
    else:
        tables.results_table(results)


@app.command()
def compare(
    model: Model,
    drop: Annotated[str, typer.Option(metavar="2,4,6", help="How many layers (or halves) go.")],
    criteria: Annotated[str, typer.Option(metavar="all|NAME,...")] = "all",
    choosers: Annotated[str, typer.Option(metavar="NAME,...")] = "block,lowest,greedy,evolve",
    by: By = "divergence",
    option: Options = None,
    unit: Unit = "layer",
    protect: Protect = "",
    text: TextSource = "stdlib/calibrate",
    samples: Samples = None,
    test: Test = "stdlib/test",
    test_samples: TestSamples = None,
    length: Length = None,
    batch: Batch = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    json: Json = False,
) -> None:
    """What every criterion takes out and what that costs, side by side; `random` is the control."""
    from prunekit.verbs.compare import compare

    compared = compare(
        model, drop=_integers(drop), criteria=criteria if criteria == "all" else _words(criteria),
        choosers=_words(choosers), by=by, options=_options(option), unit=_unit(unit),
        protect=_integers(protect), text=text, samples=samples, test=test,
        test_samples=test_samples, length=length, batch=batch, seed=seed, dtype=dtype,
        device=device, walk=walk, memory=memory, scratch=scratch, watch=bar,
    )  # fmt: skip
    if json:
        tables.print_json(compared)
    else:
        tables.comparison_table(compared)


@app.command()
def heal(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint, pruned or not.")],
    out: Out,
    how: Annotated[str, typer.Option(help="See `prunekit list healers`; auto.")] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option("-O", "--option", metavar="NAME=VALUE", help="An option of the healer."),
    ] = None,
    losses: Annotated[
        str, typer.Option(metavar="NAME[=WEIGHT],...", help="See `prunekit list losses`.")
    ] = "",
    temperature: Annotated[float, typer.Option(help="Of the loss `logits`.")] = 1.0,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL|LOGITS",
            help="What `logits` and `states` are held against: the model it was made from.",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Train nothing: merge this adapter (--no-merge)."),
    ] = None,
    text: TextSource = "stdlib/train",
    tokens: Annotated[
        str | None,
        typer.Option(metavar="COUNT", help="To train on: 250k, 4M; 1M, or as many as there are."),
    ] = None,
    repeat: Annotated[bool, typer.Option("--repeat", help="See tokens more than once.")] = False,
    length: Annotated[int | None, typer.Option(help="Tokens per sample; 512.")] = None,
    batch: Annotated[int, typer.Option(help="Samples a step, of all processes.")] = 16,
    micro: Annotated[
        int | None, typer.Option(help="Samples a process runs at once; about 2048 tokens' worth.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate; the healer's usual.")] = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps.")] = 0.03,
    floor: Annotated[float, typer.Option(help="What the rate falls to: a share of it.")] = 0.1,
    weight_decay: Annotated[float, typer.Option()] = 0.0,
    clip: Annotated[float, typer.Option(help="Most that the gradient's norm may be.")] = 1.0,
    evaluations: Annotated[int, typer.Option(help="How often held-out loss is taken.")] = 10,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many of them without a new best.")
    ] = None,
    save_every: Annotated[float, typer.Option(help="Seconds between states to go on from.")] = 300,
    merge: Annotated[bool, typer.Option(help="LoRA: merge; else write the adapter alone.")] = True,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute states anew on the way back.")
    ] = False,
    cache: Annotated[
        str, typer.Option(metavar="auto|none|memory|disk", help="Of states, for --how block.")
    ] = "auto",
    shard: Annotated[
        str, typer.Option(metavar="none|fsdp|zero2|zero3", help="Among processes.")
    ] = "none",
    processes: Annotated[
        int | None, typer.Option(help="Fail unless so many came up (torchrun).")
    ] = None,
    track: Annotated[
        str | None, typer.Option(metavar="tensorboard|wandb|trackio", help="Log losses there.")
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    json: Json = False,
) -> None:
    """Train a pruned model back: what was removed stays removed. The same command carries on."""
    if adapter:
        from prunekit.verbs.heal import attach

        if how != "auto":
            raise InputError("--adapter trains nothing; leave --how away")
        attach(model, adapter, out)
        _remark(f"wrote {out}: {model} with {adapter} merged")
        return
    from prunekit.cli.progress import training
    from prunekit.verbs.heal import heal

    with training() as report:
        healed = heal(
            model, out, how=how, options=_options(option), losses=_losses(losses),
            temperature=temperature, teacher=teacher, text=text, tokens=tokens,
            repeat=repeat, length=length, batch=batch, micro=micro, rate=rate, warmup=warmup,
            floor=floor, weight_decay=weight_decay, clip=clip, evaluations=evaluations,
            patience=patience, save_every=save_every, seed=seed, merge=merge,
            checkpointing=checkpointing, cache=cache, memory=memory, scratch=scratch, walk=walk,
            shard=shard, processes=processes, track=track, dtype=dtype, device=device,
            report=report,
        )  # fmt: skip
    if json:
        tables.print_json({"history": healed.history, "trained": healed.trained})
    else:
        tables.healed_table(healed)
    if not healed.history.best_step:
        _remark(
            "nothing was gained: the weights are as they were; try a lower --rate, or more text"
        )
    _remark(f"wrote {out}; {healed.history.ended}")


@app.command()
def teach(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="A new folder.")],
    text: TextSource = "stdlib/train",
    length: Annotated[int | None, typer.Option(help="Tokens per sample; 512.")] = None,
    top: Annotated[int, typer.Option(help="Likeliest next tokens kept of each token.")] = 64,
    batch: Batch = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    walk: Walk = "auto",
    memory: Memory = "8GiB",
    scratch: Scratch = None,
    quantize: Quantize = None,
    double_quant: DoubleQuant = True,
) -> None:
    """Write down a dense model's likeliest next tokens, so that `heal --teacher OUT` needs no
    teacher."""
    from prunekit.verbs.teach import teach

    teach(
        model, out, text=text, length=length, top=top, batch=batch, dtype=dtype, device=device,
        walk=walk, memory=memory, scratch=scratch, quantize=quantize, double_quant=double_quant,
        watch=bar,
    )  # fmt: skip
    _remark(f"wrote {out}")


@app.command()
def run(
    recipe: RecipeName,
    changes: Changes = None,
    out: RunFolder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    json: Json = False,
) -> None:
    """A whole study from one YAML file. The same command again carries on where it stopped."""
    from prunekit.cli.progress import training
    from prunekit.recipe.recipe import parse_changes, read_recipe
    from prunekit.recipe.run import Watching, carry_out, place

    read = read_recipe(recipe, parse_changes(changes or []))
    folder = out or Path("runs", Path(recipe).stem)
    if dry_run:
        for row in place(read, folder):
            for step in row:
                print(f"{'done' if step.done else 'to do':6} {step.said}")
        return
    records = carry_out(read, folder, Watching(_remark, bar, training))
    if json:
        tables.print_json(records)
    else:
        tables.run_table(records)
    _remark(f"results, checkpoints and logs are in {folder}")


@app.command()
def submit(
    recipe: RecipeName,
    changes: Changes = None,
    out: RunFolder = None,
    cluster: Annotated[str, typer.Option(metavar="slurm|local")] = "slurm",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Of submitit: timeout_min=600, gpus_per_node=1, slurm_partition=gpu.",
        ),
    ] = None,
) -> None:
    """Send `prunekit run` to a cluster. Sent again, it carries on."""
    from prunekit.recipe.recipe import parse_changes
    from prunekit.recipe.submit import JOBS, submit

    folder = out or Path("runs", Path(recipe).stem)
    job = submit(recipe, folder, changes=changes or [], cluster=cluster,
                 settings=parse_changes(setting or []))  # fmt: skip
    print(job)
    _remark(f"sent; what it prints goes to {folder / JOBS}, its results to {folder}")


@app.command()
def fetch(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[SOURCE...]")] = None,
    json: Json = False,
) -> None:
    """Bring a model and texts into the cache, for nodes without a network (HF_HUB_OFFLINE=1)."""
    from prunekit.verbs.fetch import fetch

    fetched = fetch(model, texts or [])
    if json:
        tables.print_json(fetched)
        return
    print(f"{fetched.model}: {tables.size(fetched.bytes)}")
    for text, tokens in fetched.tokens.items():
        print(f"{text}: {tables.count(tokens)} tokens")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(metavar="criteria|choosers|edits|healers|...")],
) -> None:
    """What there is to choose from, with a line on each."""
    from prunekit.plugins import names, nearest

    rooms = {"criteria": "criteria", "choosers": "plan.choosers", "healers": "healing.healers",
             "measures": "measures"}  # fmt: skip
    if what == "recipes":
        from prunekit.recipe.recipe import shipped

        found = shipped()
    elif what == "losses":
        from prunekit.healing.losses import LOCAL, WHOLE

        found = WHOLE | LOCAL
    elif what == "edits":
        found = {
            "drop": "Remove whole layers.",
            "merge": "Fold layers into others: weighted means of their weights.",
            "mute": "Take the attention or the MLP out of layers, as zeros.",
            "replace": "Let a block's first layers stand for all of it; heal --how block trains.",
            "fold": "Remove a block, and fold a linear map of it into the MLP before it.",
        }
    elif what in rooms:
        found = names(rooms[what])
    else:
        raise InputError(f"nothing called {what!r} to list{nearest(what, [*rooms, *OTHERS])}")
    for name, line in found.items():
        print(f"{name:16} {line}")


def main() -> None:
    """Run the command line: one line and exit code 2 for what the user can mend."""
    # Read when transformers is imported: its warnings would drown the one line that matters.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # transformers imports DeepSpeed where it is installed, and that remarks on stdout.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    if ranks() > 1 and sys.argv[1:2] not in ([verb] for verb in SHARED):
        verbs = ", ".join(f"`{verb}`" for verb in SHARED)
        _fail(f"{ranks()} processes can share {verbs}; run anything else in one")
    if rank() > 0:  # one of them speaks for all, but each for its own failure
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        code = app(args=sys.argv[1:] or ["--help"], standalone_mode=False)
    except TyperException as error:
        _fail(f"{error.format_message()} (see `prunekit {_command()}--help`)")
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'files'}: {error.strerror or error}")
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code and says nothing
        left = "nothing half-written was left behind"
        if sys.argv[1:2] in (["heal"], ["run"]):
            left = "the same command carries on where it stopped"
        print(f"prunekit: interrupted; {left}", file=sys.stderr)
    sys.exit(code)


def _fail(message: str) -> NoReturn:
    print(f"prunekit: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _command() -> str:
    """The verb on the command line, if there is one, for a pointer to its help."""
    known = {command.name or command.callback.__name__ for command in app.registered_commands
             if command.callback}  # fmt: skip
    return f"{sys.argv[1]} " if len(sys.argv) > 1 and sys.argv[1] in known else ""


def _show_plan(file: Path, as_: str | None, out: Path | None, json: bool) -> None:
    from prunekit.plan.mergekit import to_mergekit
    from prunekit.plan.plan import read_plan

    plan = read_plan(file)
    if as_ not in (None, "mergekit"):
        raise InputError(f"--as {as_}: a plan can be shown as mergekit")
    if as_:
        _put(to_mergekit(plan), out)
    elif json:
        tables.print_json(plan)
    else:
        print(plan.to_yaml(), end="")
        if plan.base:
            plan.kept(plan.base.layers)
            _picture_of(plan)


def _show_scores(
    file: Path, as_: str | None, out: Path | None, json: bool, drop: int | None, choose: str,
    protect: str,
) -> None:  # fmt: skip
    from prunekit.plan.choose import choose as chosen_by
    from prunekit.plan.scores import read_scores, to_csv

    scores = read_scores(file)
    plan: Plan | None = None
    if drop is not None:
        plan = chosen_by(scores, drop=drop, chooser=choose, protect=_integers(protect))
    if as_ == "csv":
        _put(to_csv(scores), out)
    elif as_ in ("png", "svg"):
        from prunekit.report.charts import scores_figure, write_picture

        picture = out or file.with_suffix(f".{as_}")
        _refuse_existing(picture)
        write_picture(scores_figure(scores, drop, plan.dropped if plan else ()), picture)
        _remark(f"wrote {picture}")
    elif as_:
        raise InputError(f"--as {as_}: scores can be shown as csv, png or svg")
    elif json:
        tables.print_json(scores)
    else:
        tables.scores_table(scores)
        if plan:
            _picture_of(plan, scores.layers)


def _put(text: str, out: Path | None) -> None:
    _refuse_existing(out)
    if out:
        out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def _refuse_existing(file: Path | None) -> None:
    if file and file.exists():
        raise InputError(f"output {str(file)!r} exists; remove it or give another name")
    if file and not file.parent.is_dir():
        raise InputError(f"output {str(file)!r}: no folder {str(file.parent)!r}")


def _write_plan(plan: "Plan", out: Path | None) -> None:
    if out:
        out.write_text(plan.to_yaml(), encoding="utf-8")
    else:
        print(plan.to_yaml(), end="")


def _picture_of(plan: "Plan", scores: Any = None) -> None:
    assert plan.base
    protected = plan.made_by.get("protect", [])
    _picture(plan.base.layers, plan.removed, protected, scores, plan.muted)


def _picture(
    layers: int, gone: Any, protected: Any = (), scores: Any = None, muted: Any = ()
) -> None:
    from prunekit.cli.pictures import layer_strip

    Console(stderr=True).print(layer_strip(layers, gone, protected, scores, muted))


def _remark(line: str) -> None:
    if rank() == 0:
        print(line, file=sys.stderr)


def _unit(name: str) -> Any:
    if name not in ("layer", "attention", "mlp", "half"):
        raise InputError(f"no unit {name!r}; there are: layer, attention, mlp, half")
    return name


def _chooser(unit: str) -> str:
    """The usual one: a block of layers, or the halves with the lowest scores."""
    return "block" if unit == "layer" else "lowest"


def _options(given: list[str] | None, flag: str = "--option") -> dict[str, str]:
    options = {}
    for entry in given or []:
        name, equals, value = entry.partition("=")
        if not equals:
            raise InputError(f"{flag} {entry!r}: give NAME=VALUE, such as tokens=all")
        options[name] = value
    return options


def _losses(text: str) -> dict[str, float] | None:
    found = {}
    for entry in _words(text):
        name, _, weight = entry.partition("=")
        if name in found:
            raise InputError(f"--losses {text!r}: {name} is given twice")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise InputError(f"--losses {entry!r}: give NAME=WEIGHT, such as logits=0.5") from None
    return found or None


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _integers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise InputError(f"{text!r}: layer numbers such as 0,1,-1 are expected") from None


if __name__ == "__main__":
    main()
