"""Takes a run elsewhere: `python -m searchr1_mini.export runs/NAME` writes weights and questions for other programs.

OUT/adapter    the LoRA adapter alone, for peft and vLLM: to the bit what was trained
OUT/merged     the base with the adapter added in, or the fine-tuned model, and its tokenizer
OUT/questions  train.parquet and test.parquet, in the form of verl and of Search-R1's public code
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from searchr1_mini.core.errors import UserError
from searchr1_mini.models.gguf_base import find_gguf
from searchr1_mini.models.names import base_name, base_revision
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.needs import check_ranges
from searchr1_mini.options.nested import grouped, make, options_of, with_options
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.own_parts import is_own
from searchr1_mini.options.paths import check_folder
from searchr1_mini.options.resolve import resolve_model, saved_config
from searchr1_mini.run.templates import template_of

if TYPE_CHECKING:  # what is heavy is imported inside functions, so that --help and a wrong flag answer at once
    from searchr1_mini.core.methods import MakeMethod
    from searchr1_mini.core.policy import Policy
    from searchr1_mini.core.questions import Example
    from searchr1_mini.models.merge import Merge

PROBE_TEXTS, PROBE_TOKENS = 4, 256  # on which the merged model is compared with what was trained


@dataclass(frozen=True)
class ExportConfig:
    """Options of the export."""

    run: str | None = grouped("what", None, "folder of a training run; it may also stand first, without this flag")
    what: Literal["all", "merged", "adapter", "questions"] = grouped(
        "what",
        "all",
        "parts to export: the model with its adapter merged, the adapter alone, the questions, or all of them",
    )
    checkpoint: str | None = grouped("what", None, "checkpoint of the run: a step, or best [default: the newest]")
    dtype: Literal["bfloat16", "float16", "float32"] | None = grouped(
        "what", None, "number format of the merged model's weights [default: float32, which loses nothing]"
    )
    output_dir: str | None = grouped("what", None, "folder to write to, new or empty [default: RUN/export]")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses and exports.

    Raises:
        UserError: anything that the user can fix.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--run")
    config = parse(ExportConfig, "python -m searchr1_mini.export", __doc__.splitlines()[0], words)
    check_ranges(config)
    out = export_run(config)
    print(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}", flush=True)


def export_run(config: ExportConfig) -> Path:
    """Writes what the config asks for into a folder that is whole or not there; returns it.

    Raises:
        UserError: no run or checkpoint, a part that the run does not have, a folder that cannot be made or is in use, a
            full disk.
    """
    from searchr1_mini.evaluation.plan import chosen_checkpoint
    from searchr1_mini.pages.model_card import model_card
    from searchr1_mini.run.held_out import TRAINED_ON
    from searchr1_mini.storage.checkpoint import checkpoint_step

    if config.run is None:
        raise UserError("name the run: python -m searchr1_mini.export runs/NAME")
    run = Path(config.run)
    saved = saved_config(run)
    settings = make(TrainConfig, **{name: saved[name] for name in options_of(TrainConfig) if name in saved})
    told = with_options(settings, model=public_name(settings.run.model))
    parts = requested_parts(config, settings)
    out = Path(config.output_dir or run / "export")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is not empty; name another --output-dir, or remove it first")
    check_folder(out)
    weights = chosen_checkpoint(EvalConfig(checkpoint=config.checkpoint), run) if parts != ["questions"] else None
    with whole(out) as aside:
        if "questions" in parts:
            write_questions(settings, aside / "questions")
        merge = None
        for part in [part for part in ("adapter", "merged") if part in parts]:
            if part == "adapter":
                write_adapter(settings, weights / "model", aside / part)
            else:
                merge = write_merged(
                    settings, weights / "model", aside / part, config.dtype or "float32", probe_texts(run, settings)
                )
            card = model_card(
                told, run, checkpoint_step(weights), part == "adapter", merge, config.checkpoint == "best"
            )
            (aside / part / "README.md").write_text(card, encoding="utf-8")
            if (run / TRAINED_ON).is_file():  # an older version wrote none
                shutil.copy(run / TRAINED_ON, aside / part)
    return out


def requested_parts(config: ExportConfig, settings: TrainConfig) -> list[str]:
    """Returns the parts that are asked for; `all` leaves out the adapter of a run that has none.

    Raises:
        UserError: the run has no such part, or a flag belongs to none of them.
    """
    parts = ["questions", "adapter", "merged"] if config.what == "all" else [config.what]
    if settings.weights.lora_rank == 0 and "adapter" in parts:
        if config.what == "adapter":
            raise UserError(f"{config.run} trained every weight and has no adapter; take --what merged")
        parts.remove("adapter")
    if config.dtype and "merged" not in parts:
        raise UserError(f"--dtype does nothing with --what {config.what}; leave it out, or take --what merged")
    if config.checkpoint and parts == ["questions"]:
        raise UserError("--checkpoint does nothing with --what questions; leave it out")
    return parts


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Gives a folder to fill beside `out`, which becomes `out` at the end: nobody ever meets half an export.

    Raises:
        UserError: the disk is full, and nothing is left behind; or another process writes there.
    """
    from safetensors import SafetensorError

    from searchr1_mini.storage.checkpoint import is_full_disk
    from searchr1_mini.storage.lock import aside_folder, only_writer

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(out, "name another --output-dir"), aside_folder(out.parent, "export") as temporary:
            aside = temporary / "whole"
            aside.mkdir()
            yield aside
            if out.exists():
                out.rmdir()
            aside.rename(out)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full_disk(error, out.parent):
            raise
        raise UserError(
            f"the disk is full: {out} was not written; free some space or name another --output-dir"
        ) from error


def public_name(model: str) -> str:
    """Returns a model's name without a path: as it was named, or the name of its folder or file alone."""
    gguf = find_gguf(model)
    if model == "tiny" or (gguf is None and not Path(model).expanduser().is_dir()):
        return model
    return gguf.name if gguf else base_name(model)


def probe_texts(run: Path, settings: TrainConfig) -> list[str]:
    """Returns texts that the run wrote: prompts, turns and passages of its last rollouts; without any, its prompt."""
    from searchr1_mini.storage.files import read_jsonl

    newest = max((run / "rollouts").glob("step-*.jsonl"), default=None)
    by_question = {row["example_id"]: row for row in (read_jsonl(newest) if newest else [])}
    texts = ["".join(segment["text"] for segment in row["segments"]) for row in by_question.values()]
    method = "search-r1" if is_own(settings.run.method) else settings.run.method
    return texts[:PROBE_TEXTS] or [template_of(method, settings.data.template)]


def write_merged(settings: TrainConfig, weights: Path, folder: Path, dtype: str, probe: Sequence[str]) -> Merge:
    """Writes the whole model as safetensors, and its tokenizer, added up in float32 on a base that is not in 4 bits."""
    from searchr1_mini.models.merge import merge, warn_of_loss

    policy = load_in_float32(settings, weights)
    ids = [policy.tokenizer(text)["input_ids"][:PROBE_TOKENS] for text in probe]
    model, found = merge(policy, dtype, [row for row in ids if len(row) > 1])
    print(f"merged: {found.told()}", flush=True)
    warn_of_loss(found)
    model.config._name_or_path = model.name_or_path = ""
    model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return found


def load_in_float32(settings: TrainConfig, weights: Path) -> Policy:
    """Loads the policy of a checkpoint; a fine-tuned model also where its base is gone, which it needs no more."""
    import torch

    from searchr1_mini.core.policy import Policy
    from searchr1_mini.models.bases import from_pretrained, load_tokenizer
    from searchr1_mini.models.loading import load_policy

    try:
        return load_policy(
            resolve_model(settings.run.model),
            lora_rank=settings.weights.lora_rank,
            lora_alpha=settings.weights.lora_alpha,
            load_in_4bit=False,
            dtype=torch.float32,
            device=torch.device("cpu"),
            weights=weights,
        )
    except UserError as error:
        if settings.weights.lora_rank:
            raise
        print(f"warning: {error}; what rounding costs cannot be told without the base", file=sys.stderr)
    from transformers import AutoModelForCausalLM

    model = from_pretrained(AutoModelForCausalLM, str(weights), dtype=torch.float32, use_safetensors=True)
    return Policy(model.eval(), load_tokenizer(str(weights)), torch.float32)


def write_adapter(settings: TrainConfig, weights: Path, folder: Path) -> None:
    """Writes the adapter to the bit, with its base's name and what identifies that base, but no paths."""
    from searchr1_mini.models.identity import BASE_FILE
    from searchr1_mini.models.loading import ADAPTER

    shutil.copytree(weights / ADAPTER, folder)
    if (weights / BASE_FILE).is_file():  # an older version wrote none
        shutil.copy(weights / BASE_FILE, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    gguf = find_gguf(settings.run.model)
    source = gguf.name if gguf else resolve_model(settings.run.model)
    config |= {"base_model_name_or_path": base_name(source), "revision": base_revision(source)}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_questions(settings: TrainConfig, folder: Path) -> None:
    """Writes train.parquet and test.parquet: all training questions, and the held-out ones of the run."""
    import datasets

    from searchr1_mini.run.opening import configured_method
    from searchr1_mini.run.task import load_task

    make_method = configured_method(settings)
    settings = with_options(settings, retriever="empty", retriever_url=None)  # no index is needed
    for split, ours in (("train", "train"), ("test", "selection")):
        examples = load_task(settings, ours).examples
        rows = [question_row(example, make_method, split, index) for index, example in enumerate(examples)]
        datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")


def question_row(example: Example, make_method: MakeMethod, split: str, index: int) -> dict[str, Any]:
    """Makes a row of the parquet that Search-R1's public code trains on, `id` to `golden_answers` included."""
    prompt = make_method(example.question).send(None).text
    return {
        "id": example.id.removeprefix(f"{example.source}/"),
        "question": example.question,
        "golden_answers": list(example.golden_answers),
        "data_source": example.source,
        "prompt": [{"role": "user", "content": prompt}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": list(example.golden_answers)}},
        "extra_info": {"split": split, "index": index},
    }


if __name__ == "__main__":
    run_command(main)
