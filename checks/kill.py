"""Kills a run at random instants, resumes it, and compares the end with that of a run that was left alone, bit by bit.

    python checks/kill.py --kind grpo --times 30

An instant is a random time after a random step (or after the start); every third is inside the writing of the next
checkpoint. A run may be killed again after it was resumed (`--kills`). Exits with 1 unless every run was killed, and
ends the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
STEPS = 6
SMALL = (
    f"--steps {STEPS} --questions-per-step 4 --group-size 4 --eval-questions 4 --eval-every 3 --save-every 1 "
    "--max-new-tokens 40 --keep-checkpoints 2 --reward format --no-drop-zero-variance --no-tensorboard "
    "--no-memory-check"
).split()
KINDS = {
    "grpo": [],
    "ppo": "--algorithm ppo --group-size 1 --questions-per-step 16".split(),
    "4bit": "--load-in-4bit".split(),
    "2-processes": [],
}
TIMINGS = ("seconds", "rollout_seconds", "tokens_per_second")


def start(kind: str, folder: Path, *flags: str) -> subprocess.Popen:
    """The run in a process group of its own, so that it can be killed with all that it started."""
    launcher = []
    if kind == "2-processes":
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "train.py", "--output-dir", str(folder), *SMALL, *KINDS[kind], *flags]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def steps_done(folder: Path) -> int:
    """Steps in the log; -1 before the run's folder is there, while it loads."""
    if not (folder / "config.json").exists():
        return -1
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return len(lines) - sum(b'"eval/em"' in line for line in lines)  # an evaluation is a line of its own


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    try:
        return any((folder / "checkpoints").glob(".step-*/*"))
    except FileNotFoundError:  # it was renamed between the two looks
        return False


def kill(process: subprocess.Popen, folder: Path, step: int, seconds: float, in_a_save: bool) -> bool:
    """Kills the run some time after a step, or in the save that comes next; False if it ended before."""
    while steps_done(folder) < step and process.poll() is None:
        time.sleep(0.001)
    due = time.monotonic() + seconds
    while process.poll() is None:
        if is_saving(folder) if in_a_save else time.monotonic() >= due:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.001)
    process.communicate()
    return False


def outcome(folder: Path) -> dict[str, object]:
    """Everything that must be the same: metrics but the timings, warnings, rollouts, weights, optimizer, best step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, object] = {"metrics": [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]}
    for pattern in ("warnings.jsonl", "rollouts/*", "checkpoints/*/**/*.safetensors"):
        found |= {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}
    for path in folder.glob("checkpoints/*/state.pt"):  # a pickle's bytes tell where objects were, too
        found[str(path.relative_to(folder))] = plain(torch.load(path, weights_only=True))
    summary = json.loads((folder / "summary.json").read_text())
    return found | {name: summary[name] for name in ("before", "after", "after_without_retriever", "steps")}


def plain(value: object) -> object:
    """Tensors as bytes, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Names of what is not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def main() -> None:
    """Runs the check and prints one line a killed run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, default="grpo")
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--kills", type=int, default=1, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, same, killed = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole"
        process = start(args.kind, whole)
        while steps_done(whole) < 1 and process.poll() is None:
            time.sleep(0.01)
        began = time.monotonic()
        out, _ = process.communicate()
        if process.returncode:
            sys.exit(f"the run that was left alone failed:\n{out}")
        a_step, expected = (time.monotonic() - began) / STEPS, outcome(whole)
        for number in range(1, args.times + 1):
            folder, told = Path(scratch) / str(number), []
            process = start(args.kind, folder)
            for _ in range(args.kills):
                step, seconds, in_a_save = rng.randrange(STEPS), rng.uniform(0, a_step), number % 3 == 0
                if not kill(process, folder, step, seconds, in_a_save):
                    told.append("had ended")
                    break
                killed += 1
                told.append(f"killed after step {step} " + ("in a save" if in_a_save else f"and {seconds:.2f} s"))
                process = start(args.kind, folder, "--resume")
            out, _ = process.communicate() if process.stdout and not process.stdout.closed else ("", "")
            wrong = differences(expected, outcome(folder)) if process.returncode == 0 else [out[-500:]]
            same += not wrong
            print(f"{number:3d} {', '.join(told)}: {wrong or 'the same bits'}", flush=True)
            shutil.rmtree(folder)
    print(f"{args.kind}: {same} of {args.times} runs end with the same bits; {killed} kills")
    sys.exit(same != args.times or killed < args.times * args.kills)


if __name__ == "__main__":
    main()
