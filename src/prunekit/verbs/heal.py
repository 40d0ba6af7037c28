"""Heal: train a pruned model, or a part of it, and write it anew."""

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import plugins
from prunekit.errors import InputError
from prunekit.healing.adapters import (
    ADAPTER,
    check_adapter,
    merged_weights,
    save_adapter,
)
from prunekit.healing.block import Blocks, Cache, check_cache
from prunekit.healing.engine import Engine
from prunekit.healing.healers._healer import Healer, Patient
from prunekit.healing.healers.block import Block
from prunekit.healing.healers.lora import Lora
from prunekit.healing.losses import LOCAL, parse_losses
from prunekit.healing.saved import RECORD, Saved
from prunekit.healing.student import Student, Task
from prunekit.healing.teacher import FromDisk, InMemory, Teacher
from prunekit.healing.trainer import LOSSES, History, Report, Schedule, settings_of, train
from prunekit.healing.zero import STAGES, Zero
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family, text_config
from prunekit.model.lineage import Ancestor, ancestors, replaced
from prunekit.model.load import How, Loaded, load
from prunekit.model.memory import parse_size
from prunekit.model.mute import Halves
from prunekit.surgery.rewrite import rewrite
from prunekit.surgery.write import refuse_existing, whole_folder
from prunekit.text.packing import Text, load_text
from prunekit.verbs.score import sample_length

TRAIN = "stdlib/train"
LENGTH = 512
TOKENS = 1_000_000
HELD_OUT = 32  # samples, at most one in eight of the text
AT_ONCE = 2048  # tokens that a process runs at once


@dataclass(frozen=True)
class Healed:
    """A new checkpoint (or, without `merge`, a folder with an adapter), and how it came about."""

    folder: Path
    history: History
    losses: dict[str, float]
    trained: int  # parameters


def heal(
    model: str | Path,
    out: str | Path,
    *,
    how: str = "auto",
    options: Mapping[str, Any] | None = None,
    losses: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    teacher: str | Path | None = None,
    text: str = TRAIN,
    tokens: int | str | None = None,
    repeat: bool = False,
    length: int | None = None,
    batch: int = 16,
    micro: int | None = None,
    rate: float | None = None,
    warmup: float = 0.03,
    floor: float = 0.1,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    evaluations: int = 10,
    patience: int | None = None,
    save_every: float = 300.0,
    seed: int = 0,
    merge: bool = True,
    checkpointing: bool = False,
    cache: str = "auto",
    memory: str = "8GiB",
    scratch: str | None = None,
    walk: str = "auto",
    shard: str = "none",
    processes: int | None = None,
    track: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    report: Report | None = None,
) -> Healed:
    """Train `model` as the healer `how` does on `tokens` of `text` (a million, or as many as there
    are), and write it to `out`.

    `how` is auto, or a healer: auto is `seam` where layers were removed, else `lora`. `losses` are
    weights by name, see `prunekit.healing.losses`; by default the dense teacher's logits (`mse` for
    the healer `block`, `language` where there is no teacher). `teacher` is the model that `model`
    was made from unless given: a model, or a folder that `prunekit teach` wrote. `batch` samples of
    `length` tokens make a step, `micro` of them at once in a process. Training sees no token twice
    unless told to `repeat` the text; a part of the text is held out to tell the best step, whose
    weights are kept. Zeros of the model stay zeros. Started again after it was killed, the same
    call carries on. Without `merge`, an adapter is written by itself. `checkpointing` computes
    states anew on the way back instead of keeping them. `track` is a tracker that accelerate knows;
    its files, if it writes any, are in `out`.logs.

    Raises InputError for anything a user can mend.
    """
    out = Path(out)
    refuse_existing(out)
    checkpoint = Checkpoint.open(model)
    family = Family.of(checkpoint.config)
    before = ancestors(checkpoint, family.depth)
    if how == "auto":
        how = "seam" if before and before[-1].seams else "lora"
    healer = _healer(how, options, merge)
    check_cache(cache)
    wanted = parse_losses(dict(losses) if losses else _usual(how, bool(teacher or before)))
    dense = _teacher(checkpoint, teacher, before) if set(wanted) != {"language"} else None
    engine = (Zero if shard in STAGES else Engine)(
        device=device, shard=shard, processes=processes, track=track, logs=_logs(out)
    )
    packed = load_text(text, checkpoint.tokenizer, length=sample_length(checkpoint, length, LENGTH))
    numbers, held = _split(len(packed.tokens), seed)
    steps = _steps(packed, len(numbers) - held, parse_count(tokens), batch, repeat)
    schedule = Schedule(
        steps=steps, batch=batch, micro=_micro(micro, batch, engine.ranks, packed.length),
        rate=_rate(healer, checkpoint, rate), warmup=warmup, floor=floor,
        weight_decay=weight_decay, clip=clip, evaluations=evaluations, patience=patience,
        save_every=save_every, seed=seed,
    )  # fmt: skip
    settings = settings_of(
        schedule, model=checkpoint.digest, how=how, losses=wanted, temperature=temperature,
        options={key: getattr(healer, key) for key in plugins.options(type(healer))},
        text=packed.describe(), held=held, dtype=dtype, shard=shard, processes=engine.ranks,
        teacher=dense.digest if isinstance(dense, Checkpoint) else teacher and str(teacher),
    )  # fmt: skip
    torch.manual_seed(seed)  # for what a healer draws: every process the same, and every run
    opening: How = {"dtype": dtype, "device": str(engine.device)}
    beside: How = {**opening, "walk": walk, "memory": memory, "scratch": scratch}
    if LOCAL.keys() & wanted.keys():
        store = Cache(cache, len(numbers), parse_size(memory), Path(scratch) if scratch else None)
        ready = _local(checkpoint, healer, wanted, dense, before, opening, beside, store)
    else:
        if isinstance(dense, Saved):
            dense.begin(packed.describe(), numbers)
        ready = _global(checkpoint, healer, wanted, dense, before, opening, beside, temperature,
                        checkpointing)  # fmt: skip
    if track:
        engine.accelerator.init_trackers("prunekit", config={"how": how, **wanted})
    history, best = train(
        engine, ready.task, ready.layers, packed.tokens[numbers[:-held]],
        packed.tokens[numbers[-held:]], schedule, _work(out), settings, pruned=ready.pruned,
        report=report,
    )  # fmt: skip
    trained = sum(weight.numel() for weight in engine.trained.values())
    if track:
        engine.accelerator.end_training()
    if not engine.rank:
        best = {ready.task.in_model(name): weight for name, weight in best.items()}
        made = {**settings, "trained": trained, "history": asdict(history)}
        with whole_folder(out) as folder:
            shutil.copyfile(_work(out) / LOSSES, folder / LOSSES)
            story = _story(checkpoint, made, packed)
            if isinstance(healer, Lora):
                adapter = folder / ADAPTER if merge else folder
                save_adapter(ready.net, best, adapter, checkpoint, family.depth)
                del ready  # before the model is opened once more
                if merge:
                    _merge(checkpoint, family, adapter, folder, story)
            else:
                rewrite(checkpoint, family, best, folder, story)
        shutil.rmtree(_work(out), ignore_errors=True)
    return Healed(out, history, wanted, trained)


def attach(model: str | Path, adapter: str | Path, out: str | Path) -> Checkpoint:
    """Merge an adapter that `heal` wrote by itself into the model that it was trained for.

    Raises InputError for another model, or anything else that a user can mend.
    """
    out = Path(out)
    refuse_existing(out)
    checkpoint = Checkpoint.open(model)
    family = Family.of(checkpoint.config)
    check_adapter(Path(adapter), checkpoint, family.depth)
    with whole_folder(out) as folder:
        story = _story(checkpoint, {"adapter": str(adapter)}, None)
        _merge(checkpoint, family, Path(adapter), folder, story)
    return Checkpoint.open(out)


def _merge(
    checkpoint: Checkpoint, family: Family, adapter: Path, folder: Path, story: dict[str, Any]
) -> None:
    """Onto the weights on disk, never onto those in four bits: what bitsandbytes holds in memory
    can't be read back on every machine."""
    whole = load(checkpoint, walk="memory").model
    rewrite(checkpoint, family, merged_weights(whole, adapter, family), folder, story)


def _healer(how: str, options: Mapping[str, Any] | None, merge: bool) -> Healer:
    healer = plugins.make("healing.healers", how, dict(options or {}))
    if not isinstance(healer, Healer):
        raise InputError(f"{how}: a healer's class must derive from Healer")
    if not merge and not isinstance(healer, Lora):
        raise InputError("an adapter by itself comes of --how lora or qlora only")
    return healer


def _usual(how: str, has_teacher: bool) -> dict[str, float]:
    if how == "block":
        return {"mse": 1.0}
    return {"logits": 1.0} if has_teacher else {"language": 1.0}


def _teacher(
    checkpoint: Checkpoint, given: str | Path | None, before: Sequence[Ancestor]
) -> Checkpoint | Saved:
    """The dense model, or the logits that were saved of it.

    Raises InputError if it can't be found, or has another vocabulary.
    """
    vocabulary = checkpoint.config.get_text_config(decoder=True).vocab_size
    if given is not None and (Path(given) / RECORD).is_file():
        saved = Saved(Path(given))
        saved.check_vocabulary(vocabulary)
        return saved
    if given is None and not before:
        raise InputError(
            f"{checkpoint.name}: its prunekit.json names no model that it was made from; give "
            "--teacher, or --losses language=1"
        )
    if given is None:
        try:
            found = Checkpoint.open(before[-1].name)
        except InputError as error:
            raise InputError(
                f"the model that {checkpoint.name} was made from can't be its teacher ({error}); "
                "give --teacher, or --losses language=1"
            ) from None
        if found.digest != before[-1].digest:
            raise InputError(
                f"{before[-1].name!r} is not the model any more that {checkpoint.name} was made "
                "from; give --teacher, or --losses language=1"
            )
    else:
        found = Checkpoint.open(given)
    its = found.config.get_text_config(decoder=True).vocab_size
    if its != vocabulary:
        raise InputError(
            f"teacher {found.name!r} has a vocabulary of {its} tokens, {checkpoint.name} one of "
            f"{vocabulary}; a teacher needs the same"
        )
    return found


def _split(samples: int, seed: int) -> tuple[Tensor, int]:
    """All samples' numbers, in an order that the seed gives, and how many at its end are held
    out."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    held = min(HELD_OUT, samples // 8)
    if not held:
        raise InputError(
            f"the text has {samples} samples, too few to hold one of eight out; give more text, or "
            "a smaller --length"
        )
    return order, held


def _steps(packed: Text, samples: int, tokens: int | None, batch: int, repeat: bool) -> int:
    """How many steps the budget of tokens makes. Raises InputError if the text has not so many."""
    if batch < 1:
        raise InputError(f"batch {batch}: 1 or more samples a step")
    step = batch * packed.length
    has = samples // batch * step
    if not has:
        raise InputError(
            f"{packed.source!r} has {samples} samples of {packed.length} tokens to train on, and a "
            f"step takes {batch}; give more text, or a smaller --batch or --length"
        )
    if tokens is None:
        tokens = min(TOKENS, has)
    if tokens < step:
        raise InputError(f"{tokens} tokens make no step: one takes {batch} x {packed.length}")
    if tokens > has and not repeat:
        raise InputError(
            f"{packed.source!r} has {has} tokens to train on, and {tokens} were asked for; give "
            "--repeat to see them more than once, or more text"
        )
    return tokens // step


def _rate(healer: Healer, checkpoint: Checkpoint, rate: float | None) -> float:
    if rate is not None:
        return rate
    return healer.usual_rate(text_config(checkpoint.config)[1].hidden_size)


def parse_count(tokens: int | str | None) -> int | None:
    """A number of tokens, also as 250k or 4M. Raises InputError if it is none."""
    if tokens is None or isinstance(tokens, int):
        return tokens
    shift = {"k": 10**3, "m": 10**6, "b": 10**9}.get(tokens[-1:].lower(), 1)
    try:
        found = float(tokens[:-1] if shift > 1 else tokens) * shift
    except ValueError:
        found = 0
    if not 1 <= found < float("inf"):
        raise InputError(f"tokens {tokens!r}: a number such as 250000, 250k or 4M is expected")
    return round(found)


def _micro(micro: int | None, batch: int, ranks: int, length: int) -> int:
    if batch % ranks:
        raise InputError(f"batch {batch}: {ranks} processes can't share it evenly")
    each = batch // ranks
    if micro is not None and not 1 <= micro <= each:
        raise InputError(f"micro {micro}: a process has {each} samples a step; give 1 to {each}")
    micro = micro or max(1, min(each, AT_ONCE // length))
    # Gradients are means: all batches of a step must have as many samples.
    return next(size for size in range(micro, 0, -1) if each % size == 0)


def _patient(student: Loaded, before: Sequence[Ancestor]) -> Patient:
    if not before:
        return Patient(student.model, student.family, (), ())
    places = replaced(student.checkpoint, before[-1])
    own = [layer for place in places for layer in place.layers]
    return Patient(student.model, student.family, before[-1].seams, own)


@dataclass(frozen=True)
class _Ready:
    """A model to train: `net` is all of it, `task` what is minimised, `layers` its layers if it is
    trained as a whole, `pruned` the parameters whose zeros are removed weights."""

    net: nn.Module
    task: Task
    layers: Sequence[nn.Module]
    pruned: Sequence[nn.Parameter]


def _global(
    checkpoint: Checkpoint, healer: Healer, wanted: Mapping[str, float],
    dense: Checkpoint | Saved | None, before: Sequence[Ancestor], opening: How, beside: How,
    temperature: float, checkpointing: bool,
) -> _Ready:  # fmt: skip
    """A model that is trained on losses of its own output."""
    whole: How = {**opening, "walk": "memory", "quantize": healer.quantize}
    student = load(checkpoint, **whole)
    patient = _patient(student, before)
    net = healer.adapt(patient)
    autocast = _autocast(student)
    chosen = _choose(healer, patient)
    for module in student.model.modules():
        if hasattr(module, "layerdrop"):  # layers left out at random have no state to compare
            module.layerdrop = 0.0
    if checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    matches: dict[int, int] = {}
    teacher: Teacher | None = None
    if isinstance(dense, Saved):
        if "states" in wanted:
            raise InputError("saved logits hold no states; give a model as --teacher")
        if temperature != 1:
            raise InputError("saved logits are of temperature 1; give a model as --teacher")
        teacher = dense
    elif dense is not None:
        if "states" in wanted:
            matches = dict(enumerate(_origins(student, dense, before)))
        opened = load(dense, **beside)
        kind = InMemory if opened.layers is None else FromDisk
        teacher = kind(opened, list(matches.values()), "logits" in wanted)
    task = Student(
        net, patient.layers, wanted, teacher=teacher, matches=matches, temperature=temperature,
        autocast=autocast,
    )  # fmt: skip
    pruned = [] if isinstance(healer, Lora) else _pruned(student, chosen)
    return _Ready(net, task, list(patient.layers), pruned)


def _local(
    checkpoint: Checkpoint, healer: Healer, wanted: Mapping[str, float],
    dense: Checkpoint | Saved | None, before: Sequence[Ancestor], opening: How, beside: How,
    store: Cache,
) -> _Ready:  # fmt: skip
    """The layers that stand in the place of blocks, trained on losses of their own."""
    if not isinstance(healer, Block):
        raise InputError(f"the losses {', '.join(LOCAL)} are for --how block")
    if not isinstance(dense, Checkpoint):
        raise InputError("to train blocks the teacher must be a model: saved logits hold no states")
    ancestor = next((found for found in before if found.digest == dense.digest), None)
    if ancestor is None:
        raise InputError(
            f"{checkpoint.name} was not made from {dense.name}, so it can't be told which of its "
            "layers a block stands for"
        )
    student = load(checkpoint, **opening)
    autocast = _autocast(student)
    places = replaced(checkpoint, ancestor)
    own = [layer for place in places for layer in place.layers]
    for layer, module in zip(own, student.take(own), strict=True):
        student.family.layers(student.model)[layer] = module
    patient = _patient(student, before)
    chosen = _choose(healer, patient)
    task = Blocks(
        student.family.path, {layer: patient.layers[layer] for layer in own}, places,
        ancestor.origins, wanted, load(dense, **beside), autocast=autocast, cache=store,
    )  # fmt: skip
    return _Ready(student.model, task, (), _pruned(student, chosen))


def _choose(healer: Healer, patient: Patient) -> list[nn.Parameter]:
    """What is trained: in float32, and nothing else wanting gradients."""
    chosen = [weight for weight in healer.choose(patient) if weight.is_floating_point()]
    if not chosen:
        raise InputError("nothing to train: no layer of this model was replaced or dropped")
    patient.model.requires_grad_(False)
    for weight in chosen:
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    return chosen


def _autocast(student: Loaded) -> torch.dtype | None:
    """What a model computes in while it is trained, unless float32: asked before weights change."""
    return None if student.model.dtype == torch.float32 else torch.bfloat16


def _origins(student: Loaded, dense: Checkpoint, before: Sequence[Ancestor]) -> Sequence[int]:
    """The teacher's number of each of the student's layers.

    Raises InputError if it can't be told.
    """
    for ancestor in before:
        if ancestor.digest == dense.digest:
            return ancestor.origins
    depth = Family.of(dense.config).depth
    if depth == student.family.depth:
        return range(depth)
    raise InputError(
        f"{student.checkpoint.name} was not made from {dense.name}, so it can't be told which of "
        "its layers have the same states; leave the loss `states` away"
    )


def _pruned(student: Loaded, chosen: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters whose zeros are removed weights: matrices, and all of a muted half's, where
    `prunekit.load` has not left them out."""
    halves = Halves(student.family)
    layers = student.family.layers(student.model)
    muted = set()
    for layer, half in student.checkpoint.muted:
        own = dict(layers[layer].named_parameters())
        muted |= {own[name] for name in halves.writers(layer, half) if name in own}
    return [weight for weight in chosen if weight.ndim > 1 or weight in muted]


def _story(checkpoint: Checkpoint, healed: dict[str, Any], text: Text | None) -> dict[str, Any]:
    return {
        "prunekit": importlib.metadata.version("prunekit"),
        "base": {"name": checkpoint.name, "digest": checkpoint.digest},
        "healed": healed,
        "dropped": [],
        "merged": [],
        "muted": [list(unit) for unit in checkpoint.muted],
        "made_by": {},
        "calibration_text": None,
        "training_text": text.describe() if text else None,
        "before": checkpoint.story or None,
    }


def _logs(out: Path) -> Path:
    """Where trackers that write files write them: not in what is removed when all is done."""
    return out.absolute().parent / f"{out.name}.logs"


def _work(out: Path) -> Path:
    """Where the state of a training is that goes on when the same is asked for again."""
    return out.absolute().parent / f".{out.name}.healing"
