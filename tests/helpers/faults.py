"""Runs of seconds to damage, and what a command says of the damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import resolve
from searchr1_mini.storage import checkpoint

ADAPTER = Path("model") / "policy" / "adapter_model.safetensors"
QUESTIONS = [{"question": f"Where is T{n}?", "answer": f"x{n}"} for n in range(20)]
PASSAGES = [{"id": str(n), "contents": f'"T{n}"\nT{n} is in x{n}.'} for n in range(20)]


SMALL = {
    "steps": 2, "questions_per_step": 2, "group_size": 2, "eval_questions": 2, "save_every": 1, "eval_every": 100,
    "max_new_tokens": 16, "max_turns": 2, "drop_zero_variance": False, "decay_steps": 0, "tensorboard": False,
    "reward": "format", "baseline": "none",
}  # fmt: skip


def config_of(folder: Path, **options) -> TrainConfig:
    """A run of seconds whose every step changes the weights."""
    return resolve(make(TrainConfig, **SMALL | {"output_dir": str(folder)} | options))


def sentence_of(capsys, command, *arguments) -> str:
    """What a command says that ends with code 2: one line, without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        run_command(lambda: command(*arguments))
    assert left.value.code == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return told


def evaluation_of(run: Path, **options) -> EvalConfig:
    return EvalConfig(run=str(run), limit=2, output_dir=str(run.with_name("eval")), **options)


def sign(folder: Path) -> None:
    """A manifest for what the folder holds, as the version that wrote it would have made."""
    shutil.copytree(folder, aside := folder.with_name("aside"))
    shutil.rmtree(folder)
    (aside / "manifest.json").unlink()
    step = checkpoint.checkpoint_step(folder)
    checkpoint.save_checkpoint(folder.parent.parent, step, lambda to: shutil.copytree(aside, to, dirs_exist_ok=True))
    shutil.rmtree(aside)
