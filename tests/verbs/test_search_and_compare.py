"""Searches on a tiny model: what they judge, what they may take, and what they say."""

from itertools import combinations
from pathlib import Path

import pytest

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import Loaded, load
from prunekit.model.mute import _Silent
from prunekit.verbs.compare import compare
from prunekit.verbs.cut import cut
from prunekit.verbs.prune import prune
from prunekit.verbs.score import score
from prunekit.verbs.search import layer_caches, search

TEXT = {"samples": 4, "length": 32}


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Loaded:
    return load(Checkpoint.open(tiny_llama))


def test_evolve_finds_the_best_pair_and_greedy_its_own(
    loaded: Loaded, words: tuple[Path, Path]
) -> None:
    text = str(words[0])
    tried = {}
    for pair in combinations(range(8), 2):
        plan = search(
            loaded, drop=2, chooser="greedy", by="perplexity", text=text,
            protect=[layer for layer in range(8) if layer not in pair], **TEXT,
        )  # fmt: skip
        assert plan.dropped == pair
        tried[pair] = plan.made_by["loss"]
    best = search(
        loaded, drop=2, chooser="evolve", by="perplexity", text=text,
        options={"generations": 6, "offspring": 12, "initial": 16}, **TEXT,
    )  # fmt: skip
    assert tried[best.dropped] == min(tried.values()) == best.made_by["loss"]
    first = search(loaded, drop=1, chooser="greedy", by="perplexity", text=text, **TEXT)
    (scores,) = score(loaded, criterion="perplexity", text=text, **TEXT)
    assert first.dropped == (min(range(8), key=scores.layers.__getitem__),)
    assert first.made_by["loss"] == pytest.approx(min(scores.layers), abs=1e-6)
    greedy = search(loaded, drop=2, chooser="greedy", by="perplexity", text=text, **TEXT)
    assert first.dropped[0] in greedy.dropped
    rest = {pair: loss for pair, loss in tried.items() if first.dropped[0] in pair}
    assert greedy.dropped == min(rest, key=rest.__getitem__)


@pytest.mark.parametrize("wanted", [{"params": 0.9}, {"bytes": "140 KB"}, {"kv_cache": 0.7}])
def test_targets_that_take_whole_layers(
    loaded: Loaded, words: tuple[Path, Path], wanted: dict, tmp_path: Path
) -> None:
    plan = search(loaded, chooser="greedy", text=str(words[0]), **TEXT, **wanted)
    assert not plan.muted
    made = cut(loaded.checkpoint, plan, tmp_path / "out")
    base = loaded.checkpoint
    if "params" in wanted:
        kept, one = made.parameters, base.parameters - made.parameters
        assert kept <= 0.9 * base.parameters < kept + one / len(plan.dropped)
    elif "bytes" in wanted:
        assert made.bytes <= 140_000 < made.bytes + (base.bytes - made.bytes) / len(plan.dropped)
    else:
        assert len(plan.dropped) == 3


def test_a_share_of_bytes_is_a_share_of_parameters_where_all_weights_are_alike(
    loaded: Loaded, words: tuple[Path, Path]
) -> None:
    plans = [
        search(loaded, chooser="greedy", text=str(words[0]), **TEXT, **wanted)
        for wanted in ({"bytes": 0.8}, {"params": 0.8})
    ]
    assert plans[0].dropped == plans[1].dropped


def test_speed_is_over_layers_and_halves(loaded: Loaded, words: tuple[Path, Path]) -> None:
    plan = search(loaded, speed="1.2x", chooser="greedy", text=str(words[0]), **TEXT)
    assert plan.variant
    assert "1.2x" in plan.made_by["target"]


def test_targets_that_cannot_be_met(loaded: Loaded, words: tuple[Path, Path]) -> None:
    def refused(said: str, **wanted: object) -> None:
        with pytest.raises(InputError, match=said):
            search(loaded, text=str(words[0]), **TEXT, **wanted)

    refused(r"every unprotected layer but one comes to \d+", params=0.1)
    refused("every unprotected layer but one comes to", speed="100x")
    refused("give one target of drop, .* not none")
    refused("not drop and params", drop=1, params=0.5)
    refused("the share to keep, such as 0.75", params=1.5)
    refused("the share to keep, such as 0.75 or a size", bytes="0")
    refused("such as 1.3x", speed="fast")
    refused("such as 1.3x", speed="0.5x")
    refused("muted halves are zeros and save no params", params=0.5, unit="mlp")
    refused("can't judge trials", drop=1, by="angular")
    refused("does not search", drop=1, chooser="lowest")


def test_the_cache_of_a_layer(loaded: Loaded) -> None:
    config = loaded.checkpoint.config
    wide = config.num_key_value_heads * config.head_dim
    assert layer_caches(loaded, 100) == [2 * wide * 100] * 8


@pytest.mark.parametrize("chooser", ["lowest", "greedy", "evolve"])
@pytest.mark.parametrize("unit", ["mlp", "half"])
def test_prune_mutes_halves(
    tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path, unit: str, chooser: str
) -> None:
    options = {"generations": 2, "offspring": 4, "initial": 4} if chooser == "evolve" else {}
    pruned = prune(
        tiny_llama, tmp_path / "out", drop=3, criterion="cosine", chooser=chooser, unit=unit,
        choose_options=options, text=str(words[0]), test=str(words[1]), **TEXT,
    )  # fmt: skip
    assert len(pruned.plan.muted) == 3
    assert not pruned.plan.dropped
    assert pruned.pruned.layers == 8
    quick = load(pruned.checkpoint).model
    silent = [module for module in quick.modules() if isinstance(module, _Silent)]
    assert 2 <= len(silent) <= 3


def test_compare(loaded: Loaded, words: tuple[Path, Path]) -> None:
    found = compare(
        loaded, drop=[1, 2], criteria=["cosine", "magnitude", "perplexity"],
        text=str(words[0]), test=str(words[1]), choosers=["block", "lowest", "greedy"], **TEXT,
    )  # fmt: skip
    methods = {(entry.criterion, entry.chooser, entry.drop) for entry in found.entries}
    assert methods == {
        (*method, drop)
        for drop in (1, 2)
        for method in [("cosine", "block"), ("cosine", "lowest"), ("magnitude", "lowest"),
                       ("perplexity", "lowest"), ("divergence", "greedy"), ("random", "lowest")]
    }  # fmt: skip
    for entry in found.entries:
        assert len(entry.gone) == entry.drop
        assert entry.divergence > 0
    order = [(entry.drop, entry.perplexity) for entry in found.entries]
    assert order == sorted(order)
    control = next(entry for entry in found.entries if entry.criterion == "random")
    assert control.draws == 5
    assert control.spread[0] <= control.perplexity <= control.spread[1]
    from prunekit.measures.perplexity import perplexity
    from prunekit.verbs.score import pack_for

    text = pack_for(loaded, str(words[1]), samples=None, length=32)
    assert found.dense == pytest.approx(perplexity(loaded, text, batch=8).perplexity, rel=1e-6)
    best = found.entries[0]
    alone = perplexity(loaded, text, batch=8, skip=[layer for layer, _ in best.gone])
    assert best.perplexity == pytest.approx(alone.perplexity, rel=1e-6)


def test_compare_refuses(loaded: Loaded, words: tuple[Path, Path]) -> None:
    texts = {"text": str(words[0]), "test": str(words[1])}
    with pytest.raises(InputError, match="can't drop 8 of 8"):
        compare(loaded, drop=[8], criteria=["cosine"], **texts, **TEXT)
    with pytest.raises(InputError, match="did you mean 'cosine'"):
        compare(loaded, drop=[1], criteria=["cosin"], **texts, **TEXT)
    with pytest.raises(InputError):
        compare(loaded, drop=[1], criteria=["cosine"], text=str(words[0]), test=str(words[0]))
