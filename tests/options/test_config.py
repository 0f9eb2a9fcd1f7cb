"""The command line at the real boundary."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT
from helpers.programs import run_program
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr1_mini.classroom import ClassroomConfig
from searchr1_mini.core.errors import UserError
from searchr1_mini.export import ExportConfig
from searchr1_mini.mystery import MysteryConfig
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flat, make, option_sections, options_of, type_hints, with_options
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve, saved_config
from searchr1_mini.options.retrieval_config import MetricsConfig, ServerConfig
from searchr1_mini.race import RaceConfig
from searchr1_mini.storage.files import write_json_atomic


def parsed(*arguments: str) -> TrainConfig:
    return parse(TrainConfig, "train.py", "", arguments)


@pytest.mark.parametrize(("script", "config"), [("train.py", TrainConfig), ("eval.py", EvalConfig)])
def test_help_names_every_option_in_groups_and_loads_no_torch(script, config):
    shown = run_program(script, "--help")
    assert shown.returncode == 0
    for name, option in options_of(config).items():
        section = option_sections(config).get(name) or option.metadata["group"]
        assert "--" + name.replace("_", "-") in shown.stdout
        assert f"{section.replace('_', '-')} options" in shown.stdout
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", script, "--help"], capture_output=True, text=True, cwd=ROOT
    ).stderr
    assert "tyro" in imported
    for heavy in ("torch", "transformers", "numpy", "datasets"):
        assert f"| {heavy}\n" not in imported


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--learnig-rate", "1"], "did you mean --learning-rate?"),
        (["--model", "Qwen2.5-3"], "did you mean Qwen2.5-3B?"),
        (["--model", "./nowhere"], "there is no folder"),
        (["--dataset", "hotpot"], "did you mean hotpotqa?"),
        (["--preset", "12g"], "did you mean 12gb?"),
        (["--steps", "0"], "--steps 0: it must be at least 1"),
        (["--temperature", "0"], "--temperature 0.0: it must be above 0"),
        (["--resume"], "--output-dir"),
        (["--retriever", "http"], "--retriever-url"),
        (
            ["--retriever-url", "http://x"],
            "it needs --retriever http or milvus",
        ),
        (["--retriever", "milvus"], "a path that ends in .db"),
        (["--retriever", "http", "--retriever-url", "http://x", "--stemming"], "--stemming does nothing"),
        (["--retriever", "dense", "--no-stop-words"], "--stop-words does nothing with --retriever dense"),
        (["--retriever", "bm25s", "--dense-index", "hnsw"], "it needs --retriever dense or hybrid"),
        (["--retriever", "oracle", "--reranker", "m"], "--reranker does nothing with --retriever oracle"),
        (["--method", "r1", "--stemming"], "trains without a search engine; leave out --stemming"),
        (["--corpus", "x.jsonl"], "--corpus x.jsonl needs questions that its passages answer"),
        (["--corpus", "squad", "--model", "Qwen2.5-3B"], "name them: --dataset FILE.jsonl"),
        (["--corpus", "x.jsonl", "--dataset", "world"], "--corpus does not go with --dataset world"),
        (["--data-path", "x.jsonl"], "--data-path does not go with --dataset world"),
        (["--model", "Qwen2.5-3B", "--world-hops", "1"], "need --dataset world"),
        (["--world-hops", "1,5"], "numbers from 1 to 3"),
        (["--world-hops", "1,1"], "numbers from 1 to 3"),
        (["--load-in-4bit", "--lora-rank", "0"], "--lora-rank"),
        (["--max-new-tokens", "700"], "--max-total-tokens 640"),
        (["--mini-batches", "17"], "--questions-per-step 16"),
        (["--clip-eps", "0.3", "--clip-eps-high", "0.2"], "--clip-eps-high"),
        (["--surrogate", "cispo", "--clip-eps", "0.1"], "--clip-eps does nothing with --surrogate cispo"),
        (["--method", "r1", "--action-penalty", "0.1"], "--action-penalty does nothing with --method r1"),
        (["--retriever", "none", "--search-cost", "0.1"], "--search-cost does nothing with --retriever none"),
        (["--importance-cap", "0.5", "--importance-mode", "mask"], "it must be above 1"),
        (["--gamma", "0.9"], "--gamma does nothing with --algorithm grpo"),
        (["--algorithm", "ppo", "--no-normalize-std"], "--normalize-std does nothing with --algorithm ppo"),
        (
            ["--baseline", "leave-one-out", "--no-normalize-std"],
            "it needs --baseline group or batch or group-batch or --turn-coef above 0 or --tree-branches above 0",
        ),
        (["--algorithm", "ppo", "--llds-coef", "0.1"], "--llds-coef"),
        (["--algorithm", "ppo", "--gae-lambda", "1.5"], "must be at most 1"),
        (["--group-size", "1", "--dynamic-sampling", "2"], "raise --group-size"),
        (
            ["--dynamic-sampling", "2", "--baseline", "batch"],
            "and --baseline batch learns from them too; leave one out",
        ),
        (["--dynamic-sampling", "2", "--baseline", "none"], "and --baseline none learns from them too; leave one out"),
        (["--dynamic-sampling", "2", "--turn-coef", "1"], "and --turn-coef learns from them too; leave one out"),
        (["--dynamic-sampling", "2", "--llds-coef", "0.1"], "and --llds-coef acts on them too; leave one out"),
        (
            ["--dynamic-sampling", "2", "--no-drop-zero-variance"],
            "and --no-drop-zero-variance keeps them; leave one out",
        ),
        (["--turn-coef", "1", "--llds-coef", "0.1"], "and --llds-coef judges a rollout by the one that it has; leave"),
        (["--turn-coef", "1", "--sapo-coef", "0.1"], "and --sapo-coef judges a rollout by the one that it has; leave"),
        (["--group-size", "1", "--baseline", "leave-one-out"], "--baseline none"),
        (["--group-size", "1", "--no-normalize-std"], "--no-normalize-std does nothing with --group-size 1"),
        (["--reward", "f2"], "did you mean f1?"),
        (["--overlong", "penalise"], "did you mean penalize?"),
        (["--bug-retokenise"], "--bug-retokenise is now --bug retokenize"),
        (["--model", "Qwen2.5-3B", "--world-noise", "3"], "--world-noise need --dataset world"),
        (["--method", "r1", "--retriever", "bm25"], "without a search engine"),
        (["--config", "nowhere.yaml"], "cannot read --config nowhere.yaml"),
        (["--preset"], "--preset needs a value"),
        (["--steps", "many"], "--steps many: it must be a whole number"),
        (["--steps", "--seed", "1"], "--steps needs a value"),
        (["--model="], "--model needs a value"),
        (["--device", "gpu"], "--device gpu: it must be one of auto, cpu, cuda, mps"),
        (["--learning-rate", "inf"], "--learning-rate inf: it must be a finite number"),
        (["--resume=True"], "--resume is a switch and takes no value"),
        (["--no-steps"], "did you mean --steps?"),
        (["steps", "4"], "unexpected argument 'steps'"),
        (["--method", "r1", "--topk", "5"], "--topk"),
        (["--algorithm", "sft", "--retriever", "oracle"], "--algorithm sft trains without a search engine"),
        (["--algorithm", "sft", "--method", "r1"], "leave out --method"),
        (["--algorithm", "rejection-sampling", "--kl-coef", "0.1"], "--kl-coef does nothing"),
        (["--demonstration-questions", "5"], "needs --algorithm sft or rejection-sampling"),
        (["--clip-eps", "1"], "--clip-eps 1.0: it must be below 1"),
        (["--max-observation-tokens", "640"], "--max-total-tokens 640"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(arguments, told):
    result = run_program("train.py", *arguments)
    assert result.returncode == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_no_gpu_is_told():
    result = run_program("train.py", "--device", "mps" if sys.platform != "darwin" else "cuda")
    assert result.returncode == 2 and "--device auto" in result.stderr and "Traceback" not in result.stderr


def test_underscores_are_accepted():
    assert parsed("--learning_rate", "0.5", "--no_mask_observations") == parsed(
        "--learning-rate", "0.5", "--no-mask-observations"
    )


def test_switches_that_are_open_by_default_take_three_forms():
    assert parsed("--load-in-4bit").weights.load_in_4bit is True
    assert parsed("--no-load_in_4bit").weights.load_in_4bit is False
    assert parsed("--load-in-4bit", "False").weights.load_in_4bit is False
    assert parsed().weights.load_in_4bit is None


def test_flags_go_over_yaml_over_presets(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("lora-rank: 7\nrollout_batch_size: 3\n")
    config = parsed("--preset", "12gb", "--config", str(file), "--rollout-batch-size", "5")
    assert (config.weights.lora_rank, config.rollout.rollout_batch_size) == (7, 5)
    assert config.optimization.tokens_per_micro_batch == PRESETS["12gb"]["tokens_per_micro_batch"]
    file.write_text("lora_rnk: 7\n")
    with pytest.raises(UserError, match="did you mean lora_rank"):
        parsed("--config", str(file))


def test_yaml_values_take_the_type_of_their_option(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("learning_rate: 3e-5\nworld_hops: 2\ntensorboard: off\nload_in_4bit: false\nlora_rank: null\n")
    config = parsed("--preset", "12gb", "--config", str(file))
    assert (config.optimization.learning_rate, config.data.world_hops, config.logging.tensorboard) == (3e-5, "2", False)
    assert config.weights.load_in_4bit is False and config.weights.lora_rank is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("steps: many", "steps many: it must be a whole number"),
        ("steps: 2.5", "steps 2.5: it must be a whole number"),
        ("steps: true", "steps True: it must be a whole number"),
        ("device: gpu", "must be one of auto"),
        ("tensorboard: 3", "tensorboard 3: it must be True or False"),
        ("model:", "model needs a value"),
        ("world_hops: [1, 2]", "must be a single value"),
        ("- steps", "must hold `option: value` lines"),
        ("steps: [", "cannot read --config"),
    ],
)
def test_a_yaml_value_of_the_wrong_type_is_refused(line, told, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(line)
    result = run_program("train.py", "--config", str(file))
    assert result.returncode == 2 and told in result.stderr and str(file) in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def exit_of(command, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as left:
        run_command(command)
    return left.value.code, capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--preset", "16gb"], ["--preset", "12gb"], ["--preset=12gb"]], ids=" ".join)
def test_running_out_of_memory_names_the_flags_that_save_it(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    code, told = exit_of(lambda: torch.empty(1 << 55), capsys)
    assert code == 2 and told.count("\n") == 1
    for flag in ("--tokens-per-micro-batch", "--rollout-batch-size", "--max-total-tokens"):
        assert flag in told
    assert ("--preset 12gb" in told) == ("12gb" not in " ".join(words))


def test_ctrl_c_exits_with_130_and_a_bug_keeps_its_traceback(capsys):
    def interrupt() -> None:
        raise KeyboardInterrupt

    assert exit_of(interrupt, capsys)[0] == 130
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        run_command(lambda: Path("no such file").read_text())


@given(
    steps=st.none() | st.integers(1, 10**6),
    learning_rate=st.none() | st.floats(1e-9, 1),
    load_in_4bit=st.none() | st.booleans(),
    resume=st.booleans(),
    device=st.sampled_from(["auto", "cpu", "cuda", "mps"]),
    as_underscores=st.booleans(),
)
@settings(max_examples=25, deadline=None)  # tyro builds its parser anew each time
def test_flags_say_what_the_fields_hold(as_underscores, **values):
    words = []
    for name, value in values.items():
        spelled = name if as_underscores else name.replace("_", "-")
        if name == "resume":
            words += ["--resume" if value else "--no-resume"]
        elif value is not None:
            words += [f"--{spelled}", str(value)]
    assert parsed(*words) == make(TrainConfig, **values)


def test_a_flag_of_an_older_version_names_todays():
    with pytest.raises(UserError, match="--colour is now --color"):
        parse(EvalConfig, "eval.py", "", ["--colour", "never"])


@pytest.mark.parametrize("config", [TrainConfig, EvalConfig])
def test_every_option_is_documented(config):
    for name, option in options_of(config).items():
        assert len(option.metadata["help"]) > 5, name


def test_the_manual_names_every_option_and_preset():
    manual = (ROOT / "docs" / "cli.md").read_text()
    configs = (TrainConfig, EvalConfig, ServerConfig, MetricsConfig, ExportConfig, ClassroomConfig, RaceConfig,
               MysteryConfig)  # fmt: skip
    for name in (name for config in configs for name in options_of(config)):
        assert f"`--{name.replace('_', '-')}`" in manual, name
    for preset, values in PRESETS.items():
        row = next(line for line in manual.splitlines() if line.startswith(f"| `{preset}` |"))
        for name, value in values.items():
            bare = {False: f"`--no-{name}`", True: f"`--{name}`"} if type_hints(TrainConfig)[name] is bool else {}
            told = bare.get(value) or (f"`--no-{name}`" if value is False else f"`--{name} {value}`")
            assert told.replace("_", "-") in row, (preset, name)


def test_a_run_goes_on_with_its_own_options_under_flags(tmp_path):
    """Whatever was asked for when it began, `--resume` without a flag asks for the same."""
    began = resolve(parsed("--reward", "f1", "--learning-rate", "1e-4", "--no-mask-observations", "--kl-coef", "0.05"))
    write_json_atomic(tmp_path / "config.json", flat(began) | {"git_commit": None, "output_dir": "elsewhere"})
    words = ["--resume", "--output-dir", str(tmp_path), "--steps", "50"]
    base = saved_config(tmp_path)
    config = resolve(parse(TrainConfig, "train.py", "", words, base=base))
    assert config == with_options(began, resume=True, output_dir=str(tmp_path), steps=50)
    with pytest.raises(UserError, match="holds no run"):
        saved_config(tmp_path / "nowhere")


def test_a_reader_that_leaves_gets_no_traceback():
    code = "from searchr1_mini.options.outcome import run_command\n"
    code += "run_command(lambda: [print('x' * 9999) for _ in range(999)])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
