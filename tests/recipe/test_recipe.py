"""Reading recipes: what they lay out, and what they refuse, with its line."""

from pathlib import Path

import pytest

from prunekit.errors import InputError
from prunekit.recipe.recipe import read_recipe, shipped

WHOLE = """\
model: demo
text: {samples: 4, test: other.txt}
length: 64
steps:
  - prune: {drop: 2}
  - repeat:
      times: 2
      steps:
        - heal: {how: lora, rank: 8, tokens: 250k}
        - evaluate: [perplexity]
sweep: {prune.drop: [2, 4], heal.rate: [1.0e-3]}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_repeats_are_unrolled_and_sweeps_multiplied(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, WHOLE))
    assert recipe.model == "demo"
    assert recipe.text == {"calibrate": "stdlib/calibrate", "train": "stdlib/train",
                           "test": "other.txt"}  # fmt: skip
    assert [variant.set["prune.drop"] for variant in recipe.variants] == [2, 4]
    kinds = [step.kind for step in recipe.variants[0].steps]
    assert kinds == ["prune", "heal", "evaluate", "heal", "evaluate"]
    assert [variant.steps[0].options["drop"] for variant in recipe.variants] == [2, 4]
    assert recipe.variants[0].steps[1].options["rate"] == 1e-3


def test_keys_are_set_from_outside(tmp_path: Path) -> None:
    changes = {"model": "m", "text.test": "t.txt", "prune.drop": 6, "heal.rank": 4, "seed": 3}
    recipe = read_recipe(written(tmp_path, WHOLE), changes)
    assert recipe.model == "m"
    assert recipe.text["test"] == "t.txt"
    assert [variant.steps[0].options["drop"] for variant in recipe.variants] == [6]
    assert recipe.variants[0].steps[3].options["rank"] == 4
    assert recipe.shared["seed"] == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("length: 64", "lenght: 64", r"line 3: lenght: no such key; did you mean 'length'"),
        ("{drop: 2}", "{dorp: 2}", r"line 5: prune: no option 'dorp'; did you mean 'drop'"),
        ("{drop: 2}", "{drop: many}", r"line 5: prune: drop='many': Input should be a valid int"),
        ("{drop: 2}", "{}", r"line 5: prune: needs the option 'drop'"),
        ("times: 2", "times: 0", r"line 6: steps.1.repeat: times: a number from 1"),
        ("- heal:", "- heel:", r"line 9: .*no step 'heel'; did you mean 'heal'"),
        ("rank: 8", "rang: 8", r"line 9: heal: no option 'rang'"),
        ("how: lora", "how: lorra", r"line 9: heal: no healer called 'lorra'; did you mean 'lora'"),
        ("{drop: 2}", "{drop: 2, criterion: angualr}", r"line 5: prune: no criterion called"),
        ("{drop: 2}", "{drop: 2, choose: blok}", r"line 5: prune: no chooser called 'blok'"),
        ("[perplexity]", "[perplexty]", r"line 10: evaluate: no measure called 'perplexty'"),
        ("tokens: 250k", "tokens: lots", r"line 9: heal: tokens 'lots'"),
        ("heal.rate: [1.0e-3]", "cut.rate: [1]", r"line 11: sweep.cut.rate: no step of this"),
        ("[2, 4]", "[]", r"line 11: sweep.prune.drop: a list of values"),
        ("model: demo\n", "", r"a recipe needs `model`"),
        ("samples: 4", "smples: 4", r"line 2: text.smples: no such key; did you mean 'samples'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    text = WHOLE.replace(old, new, 1)
    if "prune.drop: [2, 4], " in text and "prune" in message and "sweep" not in message:
        text = text.replace("prune.drop: [2, 4], ", "")  # which would mend it
    with pytest.raises(InputError, match=message):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize("text", ["[1, 2]", "- : :", "model: demo\nsteps: 5\n", "{{{", ""])
def test_what_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_recipe(written(tmp_path, text))


def test_changes_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no step 'search'"):
        read_recipe(written(tmp_path, WHOLE), {"search.drop": 3})
    with pytest.raises(InputError, match="give model="):
        read_recipe(written(tmp_path, WHOLE), {"banana": 3})
    with pytest.raises(InputError, match="no recipe called 'mkaa'; did you mean 'mka'"):
        read_recipe("mkaa")


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_recipes_are_read_and_described(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.model == "demo"
    assert recipe.variants[-1].steps
    assert "arXiv" in shipped()[name]
