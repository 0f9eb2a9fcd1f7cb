"""An export as its users meet it: plain transformers and peft load the weights, our own loader the questions."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
import torch
from helpers.paths import ROOT
from helpers.programs import run_program
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from searchr1_mini.core.errors import UserError
from searchr1_mini.data.datasets import load_examples
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.export import main, probe_texts
from searchr1_mini.models.identity import BASE_FILE
from searchr1_mini.models.merge import Kept
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make, options_of, with_options
from searchr1_mini.options.resolve import resolve, resolve_model, saved_config
from searchr1_mini.pages.model_card import model_card
from searchr1_mini.run.held_out import TRAINED_ON
from searchr1_mini.run.task import load_task
from searchr1_mini.run.training import train
from searchr1_mini.storage.checkpoint import _checksum
from searchr1_mini.storage.files import read_jsonl

SMALL = "--steps 2 --save-every 1 --questions-per-step 4 --eval-questions 4 --no-tensorboard".split()
IDS = torch.arange(3, 43)[None]


@pytest.fixture(scope="module")
def grpo(tmp_path_factory) -> Path:
    """LoRA on float32; two steps without warm-up move the logits by far more than rounding does."""
    flags = "--group-size 4 --no-drop-zero-variance --learning-rate 0.003 --reward f1 --warmup-steps 0"
    folder = tmp_path_factory.mktemp("export") / "grpo"
    result = run_program("train.py", "--output-dir", folder, *SMALL, *flags.split())
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def exported(grpo, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "of-grpo"
    result = run_program("-m", "searchr1_mini.export", grpo, "--output-dir", out, "--dtype", "float32")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"written to {out}: adapter, merged, questions\n")
    return out


def train_here(folder: Path, flags: str) -> Path:
    """In this process, which has loaded torch already."""
    return train(resolve(parse(TrainConfig, "train.py", "", ["--output-dir", str(folder), *SMALL, *flags.split()])))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def base(dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(resolve_model("tiny"), dtype=dtype)


def assert_same_model(out: Path) -> None:
    """merged/ alone, and adapter/ on the base, in float32; neither is the base as it was."""
    merged = logits(AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32))
    adapted = logits(PeftModel.from_pretrained(base(), out / "adapter"))
    scale = merged.abs().max().item()
    torch.testing.assert_close(merged, adapted, atol=1e-5 * scale, rtol=0)
    assert (merged - logits(base())).abs().max() > 1e-2 * scale


def test_merged_weights_are_the_base_and_its_adapter(exported):
    assert_same_model(exported)
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (exported / "merged", resolve_model("tiny"))]
    assert len({str(tokenizer("Who is Ada?")["input_ids"]) for tokenizer in tokenizers}) == 1


def test_the_adapter_is_the_checkpoints_and_names_its_base(exported, grpo):
    weights = grpo / "checkpoints" / "step-000002" / "model" / "policy" / "adapter_model.safetensors"
    assert (exported / "adapter" / "adapter_model.safetensors").read_bytes() == weights.read_bytes()
    about = json.loads((exported / "adapter" / "adapter_config.json").read_text())
    assert (about["base_model_name_or_path"], about["revision"]) == ("tiny_base", None)


def test_our_own_eval_takes_the_exported_adapter(exported, grpo, tmp_path):
    """As peft finds it in OUT/adapter, and in a checkpoint with the folder above or without: the same answers."""
    saved = grpo / "checkpoints" / "step-000002" / "model"
    found = []
    for number, folder in enumerate((saved, saved / "policy", exported / "adapter")):
        out = tmp_path / str(number)
        evaluate_command(EvalConfig(model="tiny", adapter=str(folder), limit=4, output_dir=str(out)))
        (cell,) = (out / "cells").glob("*.jsonl")
        found.append([row["segments"] for row in read_jsonl(cell)])
    assert found[0] == found[1] == found[2]
    copied = Path(shutil.copytree(saved, tmp_path / "copied"))
    about = json.loads((copied / BASE_FILE).read_text())
    (copied / BASE_FILE).write_text(json.dumps(about | {"weights": "of another"}))
    for folder, told in ((copied / "policy", "was trained on another base"), (exported, "there is no adapter in")):
        with pytest.raises(UserError, match=told):
            evaluate_command(EvalConfig(model="tiny", adapter=str(folder), limit=4, output_dir=str(tmp_path / "none")))


def test_the_card_tells_how_the_weights_came_to_be(exported, grpo):
    summary = json.loads((grpo / "summary.json").read_text())
    for part, library in (("merged", "transformers"), ("adapter", "peft")):
        card = (exported / part / "README.md").read_text()
        assert card.startswith("---\n") and f"library_name: {library}" in card
        assert "grpo, step 2" in card and "2 of 4 questions x 4 rollouts" in card and "Question: {question}\n" in card
        assert f"| exact match | {summary['after']['em']:.3f} on 4 held-out questions" in card


@pytest.mark.parametrize("method", ["direct", "r1", "search-r1"])
def test_the_cards_fences_stand_alone(method, tmp_path):
    card = model_card(resolve(make(TrainConfig, method=method)), tmp_path, 1, is_adapter=False)
    fences = [line for line in card.splitlines() if "```" in line]
    assert fences == ["```text", "```", "```python", "```"]


def test_the_card_of_an_own_method_tells_no_prompt_and_no_path(tmp_path):
    own = {"method": "/home/ada/meth.py:mine", "model": "Qwen2.5-0.5B", "template": "paper"}
    settings = with_options(resolve(TrainConfig()), **own)
    card = model_card(settings, tmp_path, 1, is_adapter=True)
    assert "Its prompt is written by `meth.py:mine`" in card and "/home/ada" not in card and "{question}" not in card


def test_questions_come_back_as_they_were(exported, grpo):
    """Both splits, through `--dataset FILE.parquet`; rows are in the form of Search-R1's public code."""
    saved = saved_config(grpo)
    settings = make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig)})
    for split, ours in (("train", "train"), ("test", "eval")):
        wanted = load_task(settings, ours).examples
        file = str(exported / "questions" / f"{split}.parquet")
        assert load_examples("jsonl", file, "all") == [replace(example, supporting=()) for example in wanted]
        named = resolve(make(TrainConfig, dataset=file, method="r1"))
        found = [example.id for part in ("train", "eval") for example in load_task(named, part).examples]
        assert sorted(found) == sorted(example.id for example in wanted)
        rows = datasets.Dataset.from_parquet(file)
        for index, (row, example) in enumerate(zip(rows, wanted, strict=True)):
            assert (row["data_source"], row["ability"]) == (example.source, "fact-reasoning")
            assert row["prompt"] == [{"role": "user", "content": f"Question: {example.question}\n"}]
            target = {"target": list(example.golden_answers)}
            assert row["reward_model"] == {"style": "rule", "ground_truth": target}
            assert row["extra_info"] == {"split": split, "index": index}


def test_an_earlier_checkpoint_is_merged_in_the_requested_dtype(grpo, tmp_path, capsys):
    """Rounded once, from the sum; without a summary of that step, the card has no exact match."""
    words = ["--what", "merged", "--checkpoint", "1", "--dtype", "bfloat16", "--output-dir", str(tmp_path / "out")]
    main([str(grpo), *words])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["merged"]
    found = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    adapter = grpo / "checkpoints" / "step-000001" / "model" / "policy"
    wanted = PeftModel.from_pretrained(base(), adapter).merge_and_unload().state_dict()
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in found.items())
    assert "| exact match |" not in (tmp_path / "out" / "merged" / "README.md").read_text()
    told = capsys.readouterr()
    lost = float(re.search(r"bfloat16 keeps ([\d.]+)% of the update", told.out)[1])
    assert 0 <= lost < 99 and f"warning: bfloat16 loses {100 - lost:.1f}% of the update" in told.err


def test_the_default_dtype_keeps_a_small_update(grpo, tmp_path, capsys):
    """A hundredth of what was learned is less than half a step of bfloat16 almost everywhere."""
    run = Path(shutil.copytree(grpo, tmp_path / "run"))
    checkpoint = run / "checkpoints" / "step-000002"
    file = checkpoint / "model" / "policy" / "adapter_model.safetensors"
    save_file({n: t * (0.01 if "lora_B" in n else 1) for n, t in load_file(file).items()}, file)
    rewrite_manifest(checkpoint)
    main([str(run), "--what", "merged"])
    told = capsys.readouterr()
    assert "merged: float32 keeps 100.0% of the update (bfloat16 " in told.out and told.err.count("warning") == 0
    shares = {name: float(share) for name, share in re.findall(r"(b?float16) ([\d.]+)%", told.out)}
    assert shares["bfloat16"] < shares["float16"] < 100 and shares["bfloat16"] < 50
    card = (run / "export" / "merged" / "README.md").read_text()
    assert "| merged weights | float32 keeps 100.0% of the update" in card and "before the weights were merged" in card
    assert_same_logits(run / "export" / "merged", checkpoint / "model" / "policy")


def assert_same_logits(merged: Path, adapter: Path) -> None:
    found = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    wanted = logits(PeftModel.from_pretrained(base(), adapter))
    torch.testing.assert_close(found, wanted, atol=1e-5 * wanted.abs().max().item(), rtol=0)


def rewrite_manifest(checkpoint: Path) -> None:
    """Makes a changed checkpoint a whole one."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    found = {str(path.relative_to(checkpoint)): _checksum(path) for path in files}
    (checkpoint / "manifest.json").write_text(json.dumps(found))


def test_the_share_that_is_kept_is_that_of_the_rounded_sum():
    """On a grid of steps of 2^-7: a quarter of a step is lost, a whole one stays, and together they weigh 1 : 16."""
    ones, step = torch.ones(4), 2.0**-7
    for updates, share in (([0.25] * 4, 0.0), ([1.0] * 4, 1.0), ([0.25, 1.0, 0.25, 1.0], 16 / 17), ([0.0] * 4, 1.0)):
        kept = {dtype: Kept(dtype) for dtype in (torch.bfloat16, torch.float32)}
        for each in kept.values():
            each.add(ones, ones + torch.tensor(updates) * step)
        assert kept[torch.bfloat16].share == pytest.approx(share) and kept[torch.float32].share == 1


@pytest.mark.parametrize(
    "flags",
    ["--reward f1", "--algorithm ppo", "--reward f1 --lora-rank 0"],
    ids=["grpo", "ppo", "full"],
)
def test_no_file_that_others_get_to_see_says_where_anything_lay(random_qwen2, tmp_path, flags):
    """Of the export, and of weights in checkpoints, which people upload as they are; the base ties its embeddings."""
    base = shutil.copytree(random_qwen2, tmp_path / "my-base")
    data = "--dataset world --template short --max-total-tokens 300 --max-new-tokens 16 --max-observation-tokens 64"
    size = "--learning-rate 0.01 --warmup-steps 0 --no-load-in-4bit --no-memory-check"
    size += "" if "rank 0" in flags else " --lora-rank 4"
    folder = train_here(tmp_path / "run", f"--model {base} {data} {size} {flags}")
    main([str(folder)])
    places = [str(place).encode() for place in (tmp_path, base, ROOT, Path.home())]
    patterns = ("export/**/*", "checkpoints/*/model/**/*", "checkpoints/*/critic/**/*")
    files = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    assert len(files) > 8
    for file in files:
        assert not [place for place in places if place in file.read_bytes()], file
    for about in folder.rglob("adapter_config.json"):
        assert json.loads(about.read_text())["base_model_name_or_path"] == "my-base"
    assert "| base | my-base |" in (folder / "export" / "merged" / "README.md").read_text()
    if "rank 0" not in flags:
        found = logits(AutoModelForCausalLM.from_pretrained(folder / "export" / "merged", dtype=torch.float32))
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wanted = logits(PeftModel.from_pretrained(plain, folder / "export" / "adapter"))
        torch.testing.assert_close(found, wanted, atol=1e-4 * wanted.abs().max().item(), rtol=0)
        return
    shutil.rmtree(base)  # a fine-tuned model needs it no more
    main([str(folder), "--what", "merged", "--output-dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file()


def test_ppo_on_4_bits_is_merged_into_the_base_as_it_was(tmp_path):
    flags = "--algorithm ppo --load-in-4bit --mini-batches 1 --warmup-steps 0"
    folder = train_here(tmp_path / "ppo", flags)
    main([str(folder), "--dtype", "float32"])
    assert_same_model(folder / "export")
    names = {path.name for path in (folder / "export" / "adapter").iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", BASE_FILE, TRAINED_ON}
    assert "4-bit NF4" in (folder / "export" / "adapter" / "README.md").read_text()


def test_full_fine_tuning_by_sft_has_no_adapter(tmp_path):
    folder = train_here(tmp_path / "sft", "--algorithm sft --lora-rank 0 --demonstration-questions 8")
    main([str(folder), "--dtype", "float32"])
    assert {path.name for path in (folder / "export").iterdir()} == {"merged", "questions"}
    saved = load_file(folder / "checkpoints" / "step-000002" / "model" / "model.safetensors")
    merged = load_file(folder / "export" / "merged" / "model.safetensors")
    assert saved.keys() == merged.keys() and all(torch.equal(saved[name], merged[name]) for name in saved)
    with pytest.raises(UserError, match="has no adapter; take --what merged"):
        main([str(folder), "--what", "adapter", "--output-dir", str(tmp_path / "out")])


def test_what_cannot_be_exported_is_told(grpo, exported, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(grpo / "config.json", bare)
    told = {
        "name the run": [],
        "holds no run": [tmp_path / "nowhere"],
        "no whole checkpoint yet": [bare],
        "it has [1, 2]": [grpo, "--checkpoint", 7],
        "is not empty": [grpo, "--output-dir", exported],
        "--dtype does nothing": [grpo, "--what", "adapter", "--dtype", "float16"],
        "--checkpoint does nothing": [grpo, "--what", "questions", "--checkpoint", 1],
        "must be one of all, merged": [grpo, "--what", "weights"],
    }
    for sentence, words in told.items():
        with pytest.raises(UserError) as caught:
            main([str(word) for word in words])
        assert sentence in str(caught.value)
    main([str(bare), "--what", "questions"])  # needs no checkpoint
    assert len(list((bare / "export" / "questions").iterdir())) == 2


def test_an_export_that_fails_leaves_nothing(grpo, tmp_path):
    """The questions are written; then the base turns out to be gone."""
    broken, no_model = tmp_path / "broken", tmp_path / "empty"
    shutil.copytree(grpo, broken)
    no_model.mkdir()
    saved = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(saved | {"model": str(no_model)}))
    before = set(broken.iterdir())
    with pytest.raises(UserError, match="cannot load"):
        main([str(broken)])
    assert set(broken.iterdir()) == before


def test_help_loads_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "searchr1_mini.export", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0 and "--output-dir" in shown.stdout
    assert "| torch\n" not in shown.stderr and "| numpy\n" not in shown.stderr


def test_without_rollouts_an_own_method_is_probed_by_a_prompt(tmp_path):
    settings = resolve(make(TrainConfig, model="tiny"))
    for method in ("my.py:mine", "search-r1"):
        settings = replace(settings, run=replace(settings.run, method=method))
        assert probe_texts(tmp_path, settings)[0].strip()
