"""The command line: every verb, and every bad input gives one line, exit code 2 and no output."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import tiny_model

import prunekit
from prunekit.cli import app
from prunekit.model.checkpoint import DEMO


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Runs a command line in an empty folder; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prunekit", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            app.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


@pytest.fixture
def small(words: tuple[Path, Path]) -> list[object]:
    return ["--text", words[0], "--samples", 4, "--length", 32]


def test_prune_writes_a_checkpoint_and_says_what_it_cost(run, tiny_llama, words, small) -> None:
    code, out, err = run(
        "prune", tiny_llama, "-o", "out", "--drop", 3, *small, "--test", words[1], "--json"
    )
    assert code == 0, err
    record = json.loads(out)
    assert (record["dense"]["layers"], record["pruned"]["layers"]) == (8, 5)
    assert record["pruned"]["parameters"] < record["dense"]["parameters"]
    assert json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 5
    story = json.loads(Path("out/prunekit.json").read_text())
    assert story["measures"]["pruned"]["perplexity"] == record["pruned"]["perplexity"]
    code, out, _ = run("show", "out")
    assert code == 0
    assert "layers removed" in out
    Path("out/prunekit.json").write_text('{"base": "me"}')
    code, _, err = run("show", "out")
    assert code == 2
    assert "broken" in err


def test_each_arrow_is_a_file(run, tiny_llama, small) -> None:
    assert run("score", tiny_llama, "-o", "scores.json", *small)[0] == 0
    assert run("plan", "scores.json", "--drop", 2, "-o", "plan.yaml", "--protect", "0,-1")[0] == 0
    assert run("cut", tiny_llama, "plan.yaml", "-o", "out")[0] == 0
    code, out, _ = run("show", "plan.yaml", "--as", "mergekit")
    Path("mergekit.yaml").write_text(out)
    assert code == 0
    assert run("cut", tiny_llama, "mergekit.yaml", "-o", "again")[0] == 0
    assert (
        Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    )
    code, out, _ = run("show", "scores.json", "--as", "csv")
    rows = out.splitlines()
    assert rows[0] == "block_start,block_end,average_distance"
    assert len(rows) == 1 + 8 * 9 // 2
    for form in ("png", "svg"):
        assert run("show", "scores.json", "--as", form, "--drop", 2)[0] == 0
        assert Path(f"scores.{form}").stat().st_size > 1000
    code, out, _ = run("evaluate", tiny_llama, "out", "--text", "stdlib/test", "--samples", 2,
                       "--length", 32, "--measure", "perplexity,latency", "--json")  # fmt: skip
    assert code == 0
    assert [result["layers"] for result in json.loads(out)] == [8, 6]


def test_halves_from_scores_to_a_checkpoint(run, tiny_llama, small) -> None:
    halves = ["--criterion", "cosine", "-O", "halves=true"]
    assert run("score", tiny_llama, "-o", "scores.json", *small, *halves)[0] == 0
    assert run("plan", "scores.json", "--drop", 3, "--unit", "half", "-o", "plan.yaml")[0] == 0
    (edit,) = yaml.safe_load(Path("plan.yaml").read_text())["edits"]
    code, _, err = run("cut", tiny_llama, "plan.yaml", "-o", "out")
    assert code == 0
    assert "without" in err
    muted = json.loads(Path("out/prunekit.json").read_text())["muted"]
    assert sum(len(layers) for layers in edit["mute"].values()) <= len(muted) == 3
    code, out, _ = run("show", "plan.yaml")
    assert code == 0
    assert yaml.safe_load(out)["edits"] == [edit]


def test_pairs_are_merged(run, tiny_llama, small, words) -> None:
    code, _, err = run(
        "prune", tiny_llama, "-o", "out", "--drop", 2, *small[:2], "--samples", 12, "--length", 32,
        "--test", words[1], "--criterion", "manifold", "-O", "save=mka", "--choose", "pairs",
    )  # fmt: skip
    assert code == 0, err
    story = json.loads(Path("out/prunekit.json").read_text())
    assert sum(len(edit["layers"]) for edit in story["merged"]) == 2
    pairs = json.loads(Path("mka/similarities.json").read_text())["pairs"]
    folded = {layer: weight for edit in story["merged"]
              for layer, weight in zip(edit["layers"], edit["weights"], strict=True)}  # fmt: skip
    for pair in pairs:
        if pair["layer"] in folded:
            assert folded[pair["layer"]] == pytest.approx(pair["ratio"])


def test_search_and_compare(run, tiny_llama, small, words) -> None:
    quick = ["--choose-option", "generations=2", "--choose-option", "initial=4"]
    code, _, err = run("search", tiny_llama, "-o", "plan.yaml", "--params", 0.85, *small, *quick)
    assert code == 0, err
    assert "variants tried" in err
    assert run("cut", tiny_llama, "plan.yaml", "-o", "out")[0] == 0
    asked = ["compare", tiny_llama, "--drop", "1,2", "--criteria", "cosine,perplexity", *small,
             "--test", words[1], "--choosers", "block,lowest,greedy"]  # fmt: skip
    code, out, err = run(*asked)
    assert code == 0, err
    assert "2 off" in out
    assert "greedy" in out
    code, out, _ = run(*asked, "--json")
    assert code == 0
    assert len(json.loads(out)["entries"]) == 2 * 5


def test_plan_edited_by_hand_is_applied(run, tiny_llama, small) -> None:
    run("score", tiny_llama, "-o", "scores.json", *small)
    run("plan", "scores.json", "--drop", 2, "-o", "plan.yaml")
    plan = yaml.safe_load(Path("plan.yaml").read_text())
    plan["edits"] = [{"drop": ["1:3", 6]}]
    Path("plan.yaml").write_text(yaml.safe_dump(plan))
    assert run("cut", tiny_llama, "plan.yaml", "-o", "out")[0] == 0
    assert json.loads(Path("out/prunekit.json").read_text())["dropped"] == [1, 2, 6]


def test_lists(run) -> None:
    for what, name in {"criteria": "angular", "choosers": "lowest", "edits": "drop",
                       "measures": "perplexity"}.items():  # fmt: skip
        code, out, _ = run("list", what)
        assert code == 0
        assert any(line.startswith(name) for line in out.splitlines())


BAD = {
    "no such model": ["prune", "nothing/", "--drop", "1"],
    "no such command": ["prun"],
    "no drop": ["prune", "LLAMA"],
    "drop is no number": ["prune", "LLAMA", "--drop", "x"],
    "drop too many": ["prune", "LLAMA", "--drop", "8"],
    "drop negative": ["prune", "LLAMA", "--drop", "-1"],
    "protect out of range": ["prune", "LLAMA", "--drop", "1", "--protect", "8"],
    "protect no number": ["prune", "LLAMA", "--drop", "1", "--protect", "first"],
    "protect too many": ["prune", "LLAMA", "--drop", "5", "--protect", "0,1,2,-1"],
    "no block avoids": ["prune", "LLAMA", "--drop", "4", "--protect", "3,-4"],
    "unknown criterion": ["prune", "LLAMA", "--drop", "1", "--criterion", "angualr"],
    "unknown option": ["prune", "LLAMA", "--drop", "1", "-O", "token=all"],
    "wrong value": ["prune", "LLAMA", "--drop", "1", "-O", "tokens=some"],
    "no value": ["prune", "LLAMA", "--drop", "1", "-O", "tokens"],
    "no private criterion": ["prune", "LLAMA", "--drop", "1", "--criterion", "./mine.py"],
    "unknown chooser": ["prune", "LLAMA", "--drop", "1", "--choose", "blok"],
    "unknown flag": ["prune", "LLAMA", "--drop", "1", "--nothing"],
    "no such text": ["prune", "LLAMA", "--drop", "1", "--text", "gone.txt"],
    "empty text": ["prune", "LLAMA", "--drop", "1", "--text", "EMPTY"],
    "short text": ["prune", "LLAMA", "--drop", "1", "--text", "SHORT"],
    "too many samples": ["prune", "LLAMA", "--drop", "1", "--samples", "100000"],
    "no samples": ["prune", "LLAMA", "--drop", "1", "--samples", "0"],
    "too long": ["prune", "LLAMA", "--drop", "1", "--length", "100000"],
    "no length": ["prune", "LLAMA", "--drop", "1", "--length", "1"],
    "no batch": ["prune", "LLAMA", "--drop", "1", "--batch", "0"],
    "unknown dtype": ["prune", "LLAMA", "--drop", "1", "--dtype", "float23"],
    "unknown device": ["prune", "LLAMA", "--drop", "1", "--device", "tpu9"],
    "calibration is test": ["prune", "LLAMA", "--drop", "1", "--test", "stdlib/calibrate"],
    "unknown walk": ["prune", "LLAMA", "--drop", "1", "--walk", "fast"],
    "memory is no size": ["prune", "LLAMA", "--drop", "1", "--walk", "disk", "--memory", "much"],
    "no scratch folder": [
        "prune",
        "LLAMA",
        "--drop",
        "1",
        "--walk",
        "disk",
        "--memory",
        "1KB",
        "--samples",
        "8",
        "--length",
        "32",
        "--scratch",
        "gone/nowhere",
    ],
    "unknown quantisation": ["prune", "LLAMA", "--drop", "1", "--quantize", "nf5"],
    "quantised from disk": ["prune", "LLAMA", "--drop", "1", "--quantize", "nf4", "--walk", "disk"],
    "gradients of quantised": [
        "prune",
        "LLAMA",
        "--drop",
        "1",
        "--quantize",
        "int8",
        "--criterion",
        "taylor",
        "--samples",
        "2",
        "--length",
        "16",
    ],
    "unknown unit": ["prune", "LLAMA", "--drop", "1", "--unit", "head"],
    "halves of a block": ["prune", "LLAMA", "--drop", "1", "--unit", "mlp", "--choose", "block"],
    "too many halves": ["prune", "LLAMA", "--drop", "17", "--unit", "half"],
    "unknown chooser option": ["prune", "LLAMA", "--drop", "1", "--choose-option", "n=1"],
    "search without a target": ["search", "LLAMA"],
    "search for two targets": ["search", "LLAMA", "--drop", "1", "--params", "0.5"],
    "search for nothing left": ["search", "LLAMA", "--params", "0.01"],
    "compare too many": ["compare", "LLAMA", "--drop", "2,8"],
    "compare no number": ["compare", "LLAMA", "--drop", "two"],
    "compare the unknown": ["compare", "LLAMA", "--drop", "2", "--criteria", "cosin"],
    "shards of no size": ["cut", "LLAMA", "PLAN", "--shard-size", "some"],
    "linked shards of a size": ["cut", "LLAMA", "PLAN", "--shard-size", "1GB", "--link"],
    "plan for other layers": ["cut", "LLAMA", "PLAN9"],
    "no such plan": ["cut", "LLAMA", "gone.yaml"],
    "plan is no plan": ["cut", "LLAMA", "SHORT"],
    "edit there is not": ["prune", "LLAMA", "--drop", "1", "--edit", "flod"],
    "edit by another flag": ["prune", "LLAMA", "--drop", "1", "--edit", "mute"],
    "edit of halves": ["prune", "LLAMA", "--drop", "1", "--edit", "fold", "--unit", "mlp"],
    "edit's option": ["prune", "LLAMA", "--drop", "1", "--edit", "fold",
                      "--edit-option", "rigde=1"],
    "replace scattered": ["prune", "LLAMA", "--drop", "2", "--edit", "replace",
                          "--choose", "lowest"],
    "replace by what": ["prune", "LLAMA", "--drop", "2", "--edit", "replace",
                        "--edit-option", "by=linear"],
    "fold nothing": ["fold", "LLAMA", "PLAN9"],
    "healer there is not": ["heal", "LLAMA", "--how", "laro"],
    "healer's option": ["heal", "LLAMA", "--how", "lora", "-O", "rang=8"],
    "loss there is not": ["heal", "LLAMA", "--losses", "langauge=1"],
    "loss without a number": ["heal", "LLAMA", "--losses", "language=much"],
    "teacher that is not told": ["heal", "LLAMA", "--losses", "logits=1"],
    "teacher that is not there": ["heal", "LLAMA", "--losses", "logits=1", "--teacher", "gone/"],
    "tokens that are no number": ["heal", "LLAMA", "--tokens", "lots"],
    "tokens of a short text": ["heal", "LLAMA", "--text", "SHORT"],
    "rank of none": ["heal", "LLAMA", "--how", "lora", "-O", "rank=0"],
    "device that is not": ["heal", "LLAMA", "--text", "stdlib/calibrate", "--device", "cuda:9"],
    "loss given twice": ["heal", "LLAMA", "--losses", "language=1,language=2"],
    "cache there is not": ["heal", "LLAMA", "--cache", "foo"],
    "temperature of none": ["heal", "LLAMA", "--text", "stdlib/calibrate", "--temperature", "0"],
    "batch of none": ["heal", "LLAMA", "--text", "stdlib/calibrate", "--batch", "0"],
    "saved never": ["heal", "LLAMA", "--text", "stdlib/calibrate", "--save-every", "-1"],
    "rate below zero": ["heal", "LLAMA", "--text", "stdlib/calibrate", "--rate", "-1"],
    "no adapter there": ["heal", "LLAMA", "--adapter", "SHORT"],
    "processes that are not": ["heal", "LLAMA", "--processes", "2"],
    "adapter of a healer without": ["heal", "LLAMA", "--how", "full", "--no-merge"],
    "recipe there is not": ["run", "mkaa"],
    "recipe's key": ["run", "mka", "prune.dorp=3"],
    "recipe's change": ["run", "mka", "prune"],
    "top beyond the vocabulary": ["teach", "LLAMA", "--text", "stdlib/calibrate", "--top", "900"],
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_written(run, case, tiny_llama, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    (tmp_path / "plan.yaml").write_text("edits: [{drop: [1]}]")
    (tmp_path / "plan9.yaml").write_text("edits: [{mute: {mlp: [9]}}]")
    places = {"LLAMA": tiny_llama, "EMPTY": "empty.txt", "SHORT": "short.txt", "PLAN": "plan.yaml",
              "PLAN9": "plan9.yaml"}  # fmt: skip
    arguments = [places.get(word, word) for word in BAD[case]]
    if arguments[0] not in ("prun", "compare"):
        arguments += ["-o", "out"]
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*arguments)
    assert code == 2, err
    assert out == ""
    assert err.startswith("prunekit: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


def test_existing_output_is_never_touched(run, tiny_llama, small, words) -> None:
    Path("out").mkdir()
    Path("out/mine").write_text("mine")
    for command in (
        ["prune", tiny_llama, "-o", "out", "--drop", 1, *small, "--test", words[1]],
        ["demo", "out"],
    ):
        code, _, err = run(*command)
        assert code == 2
        assert "exists" in err
    assert [file.name for file in Path("out").iterdir()] == ["mine"]


def test_output_called_demo_is_not_the_demo(run, tiny_llama, small, words) -> None:
    """A name that also stands for the shipped model: what is written is what is measured."""
    shipped = sorted(DEMO.iterdir())
    code, out, err = run(
        "prune", tiny_llama, "-o", "demo", "--drop", 2, *small, "--test", words[1], "--json"
    )
    assert code == 0, err
    assert json.loads(out)["pruned"]["layers"] == 6
    assert "measures" in json.loads(Path("demo/prunekit.json").read_text())
    assert run("cut", "./demo", write_plan("edits: [{drop: [0]}]"), "-o", "again/demo")[0] == 0
    assert sorted(DEMO.iterdir()) == shipped


def test_python_gives_back_what_it_wrote(tiny_llama, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = prunekit.prune(
        tiny_llama, "demo", drop=2, text=str(words[0]), test=str(words[1]), length=32
    )
    assert made.checkpoint.folder.resolve() == tmp_path / "demo"
    assert "measures" in made.checkpoint.story


@pytest.mark.parametrize("kind", ["bart", "longcat_flash", "mpt"])
def test_layers_are_counted_whatever_the_config_calls_them(run, tmp_path, kind) -> None:
    tiny_model(kind).save_pretrained(tmp_path / kind)
    assert json.loads(run("show", kind, "--json")[1])["layers"] == 8
    code, _, err = run("cut", kind, write_plan("edits: [{drop: [6, 7]}]"), "-o", "out")
    assert code == 0, err
    assert "out: 6 layers" in err


def write_plan(text: str) -> Path:
    Path("plan.yaml").write_text(text)
    return Path("plan.yaml")


def test_model_without_a_tokenizer_is_never_measured(run, tiny_llama, tmp_path) -> None:
    """transformers makes up an empty tokenizer, and any number measured with it means nothing."""
    tiny_model("qwen3").save_pretrained(tmp_path / "bare")
    for command in (
        ["evaluate", "bare"],
        ["prune", "bare", "-o", "out", "--drop", 1, "--length", 4],
        ["score", "bare"],
    ):
        code, out, err = run(*command)
        assert code == 2
        assert out == ""
        assert "no tokenizer" in err
    plan = write_plan("edits: [{drop: [0]}]")
    assert run("cut", "bare", plan, "-o", "out")[0] == 0  # which needs none


@pytest.mark.parametrize(
    ("layers", "said"), [(6, "hold 8 layers"), (10, "layers"), (0, "no layers")]
)
def test_config_with_a_wrong_number_of_layers(run, tiny_llama, tmp_path, layers, said) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    for command in (
        ["show", "wrong"],
        ["cut", "wrong", write_plan("edits: [{drop: [0]}]"), "-o", "out"],
    ):
        code, _, err = run(*command)
        assert code == 2
        assert said in err
    assert not Path("out").exists()


def test_broken_private_criterion_is_one_line(run, tiny_llama) -> None:
    Path("broken.py").write_text("import dataclasses\ndef (:\n")
    Path("raises.py").write_text("\n\n1 / 0\n")
    for name, line in (("broken", 2), ("raises", 3)):
        code, _, err = run("score", tiny_llama, "--criterion", f"./{name}.py")
        assert code == 2
        assert f"{name}.py, line {line}" in err
        assert err.count("\n") == 1


def test_interrupt_is_said_and_leaves_nothing(tiny_llama, tmp_path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "prunekit", "prune", str(tiny_llama), "-o", "out", "--drop", "1",
         "--samples", "500", "--length", "64"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(4)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_evaluate_and_list_refuse_bad_input(run, tiny_llama) -> None:
    assert "did you mean 'perplexity'" in run("evaluate", tiny_llama, "--measure", "perplexty")[2]
    assert "did you mean 'criteria'" in run("list", "criterias")[2]
    assert run("show", tiny_llama, "--as", "csv")[0] == 2


def test_plan_for_another_model_is_refused(run, tiny_llama, small, tmp_path) -> None:
    run("score", tiny_llama, "-o", "scores.json", *small)
    run("plan", "scores.json", "--drop", 2, "-o", "plan.yaml")
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    code, _, err = run("cut", other, "plan.yaml", "-o", "out")
    assert code == 2
    assert "made for" in err
    assert not Path("out").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["list", "criteria"]])
def test_help_and_list_do_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom prunekit.cli.app import main\n"
        f"sys.argv = ['prunekit', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "False False"
    assert done.stdout


def test_module_runs_as_a_program(tiny_llama: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", "show", str(tiny_llama)],
        capture_output=True, text=True, check=True, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert "llama" in done.stdout
