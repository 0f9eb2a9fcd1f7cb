"""Small random models of many families, each through load, rollout, an update with every check, and export.

    python checks/architectures.py            all of tests/helpers/families.py, as the table of docs/models.md
    python checks/architectures.py gpt2 opt   some

Each must be right or refused in one sentence, within a minute. Right is: the log-probs that the rollouts were sampled
with are those of transformers' own forward with its plain attention, and the exported model is base and adapter. Exits
with 1 where that does not hold.
"""

from __future__ import annotations

import contextlib
import io
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]

from helpers.families import FAMILIES, save_family  # noqa: E402

from searchr1_mini import export  # noqa: E402
from searchr1_mini.core.errors import UserError  # noqa: E402
from searchr1_mini.options.config import TrainConfig  # noqa: E402
from searchr1_mini.options.nested import make  # noqa: E402
from searchr1_mini.options.resolve import resolve, resolve_model  # noqa: E402
from searchr1_mini.run.training import train  # noqa: E402

SECONDS = 60
NOISE = 1e-3  # nats, of float32
SMALL = {
    "dataset": "world", "steps": 1, "questions_per_step": 2, "group_size": 2, "eval_questions": 2, "check": True,
    "max_total_tokens": 256, "max_new_tokens": 24, "max_observation_tokens": 64, "template": "short", "lora_rank": 4,
    "load_in_4bit": False, "tensorboard": False, "dtype": "float32", "device": "cpu", "drop_zero_variance": False,
    "mini_batches": 1, "reward": "format",
}  # fmt: skip


def result_of(name: str, folder: Path) -> str:
    """What becomes of a family: "right", or the sentence that refuses it; all else begins with WRONG."""
    base = save_family(folder / "base", name, AutoTokenizer.from_pretrained(resolve_model("tiny")))
    for checkpointing in (True, False):
        run = folder / f"run-{checkpointing}"
        config = make(TrainConfig, model=str(base), output_dir=str(run), gradient_checkpointing=checkpointing, **SMALL)
        told = in_time(lambda: train(resolve(config)))  # noqa: B023
        if "no gradient checkpointing" in told:
            continue
        if told:
            return told
        if (off := distance_of_rollouts(base, run)) > NOISE:
            return f"WRONG: rollouts are {off:.2g} nats off"
    if told := in_time(lambda: export.main([str(run), "--what", "merged", "--dtype", "float32"])):
        return told
    off = distance_of_export(base, run)
    without = "" if (folder / "run-True" / "summary.json").exists() else ", with `--no-gradient-checkpointing`"
    return f"right{without}" if off <= NOISE else f"WRONG: the export is {off:.2g} off"


def in_time(work: Callable[[], object]) -> str:
    """ "" once the work is done; a sentence that refuses it, or what went wrong."""
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()
    except UserError as error:
        return str(error)
    except BaseException as error:
        traceback.print_exc()
        return f"WRONG: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return ""


def plain(folder: Path) -> torch.nn.Module:
    """The model as transformers loads it, with the attention that is written out."""
    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, attn_implementation="eager").eval()


@torch.no_grad()
def distance_of_rollouts(base: Path, run: Path) -> float:
    """Largest difference of the first step's log-probs, whose adapter adds nothing yet, from the plain base's."""
    model, most = plain(base), 0.0
    for line in (run / "rollouts" / "step-000001.jsonl").read_text().splitlines():
        segments = json.loads(line)["segments"]
        ids = [id_ for segment in segments for id_ in segment["token_ids"]]
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        at = 0
        for segment in segments:
            for id_, logprob in zip(segment["token_ids"], segment["logprobs"], strict=False):
                most = max(most, abs(logprobs[at - 1, id_].item() - logprob))
                at += 1
            at += len(segment["token_ids"]) if not segment["logprobs"] else 0
    return most


@torch.no_grad()
def distance_of_export(base: Path, run: Path) -> float:
    """Largest difference of log-probs between the exported model and the adapter on its plain base."""
    ids = torch.arange(5, 60)[None]
    adapter = run / "checkpoints" / "step-000001" / "model" / "policy"
    apart, whole = PeftModel.from_pretrained(plain(base), adapter), plain(run / "export" / "merged")
    one, other = (model(ids).logits.float().log_softmax(-1) for model in (apart, whole))
    return (one - other).abs().max().item()


def main() -> None:
    """Prints a line a family."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    print("| family | result |\n|---|---|")
    is_sound = True
    for name in sys.argv[1:] or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            told = result_of(name, Path(folder))
        told = told.split(" are not supported: ")[-1].split("; take a decoder-only")[0].replace("|", "/")
        is_sound &= not told.startswith("WRONG")
        print(f"| `{name.replace(':', '`, ')}{'' if ':' in name else '`'} | {told} |", flush=True)
    sys.exit(not is_sound)


if __name__ == "__main__":
    main()
