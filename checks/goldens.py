"""Takes golden logs of short runs, and tells whether those of another commit are equal to the bit.

    python checks/goldens.py take goldens.json       # before a change
    python checks/goldens.py compare goldens.json    # after it; exit code 1 where a number differs

Runs of three steps on the tiny base (GRPO, PPO, SFT, rejection sampling, one after a cold start, one that is resumed)
and an evaluation, on the CPU in one thread. What is compared: every logged number but times and speeds, every rollout,
the adapter's bytes and the scores.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = (
    "--steps 3 --questions-per-step 4 --group-size 4 --eval-questions 12 --eval-every 2 --save-every 1 "
    "--no-tensorboard --warmup-steps 1 --device cpu"
).split()
RUNS = {
    "grpo": ["--kl-coef", "0.01", "--dynamic-sampling", "2", "--epochs", "2"],
    "ppo": ["--algorithm", "ppo", "--group-size", "1", "--questions-per-step", "8", "--gae-lambda", "0.9"],
    "sft": ["--algorithm", "sft", "--group-size", "1", "--demonstration-questions", "12"],
    "rejection-sampling": ["--algorithm", "rejection-sampling", "--demonstration-questions", "24"],
    "cold-start": ["--cold-start", "16", "--entropy-coef", "0.01", "--importance-cap", "1.5", "--llds-coef", "0.1"],
}
TIMES = ("seconds", "tokens_per_second", "memory", "bug")  # and how faults are asked for


def run(words: list[str]) -> None:
    """Runs a command of the repository in one thread; what it prints is shown where it fails."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")


def timeless(value):
    """The same without times and speeds, at any depth."""
    if isinstance(value, dict):
        return {key: timeless(part) for key, part in value.items() if not any(word in key for word in TIMES)}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def lines(path: Path) -> list:
    """The rows of a JSONL file."""
    return [timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def joined(rows: list[dict]) -> list[dict]:
    """The rows of a log by their steps: an evaluation is a row of its own."""
    steps: dict[int, dict] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return list(steps.values())


def golden_of(folder: Path) -> dict:
    """What a run left that must not change."""
    newest = max((folder / "checkpoints").iterdir())
    weights = (newest / "model" / "policy" / "adapter_model.safetensors").read_bytes()
    rollouts = [lines(path) for path in sorted((folder / "rollouts").glob("*.jsonl"))]
    return {
        "metrics": joined(lines(folder / "metrics.jsonl")),
        "cold start": lines(cold) if (cold := folder / "cold_start" / "metrics.jsonl").exists() else [],
        "rollouts": hashlib.sha256(json.dumps(rollouts).encode()).hexdigest(),
        "weights": hashlib.sha256(weights).hexdigest(),
        "summary": timeless(json.loads((folder / "summary.json").read_text(encoding="utf-8"))),
    }


def take(folder: Path) -> dict[str, dict]:
    """Runs everything inside an empty folder; returns the goldens by name."""
    goldens = {}
    for name, flags in RUNS.items():
        out = folder / name
        print(name, flush=True)
        run(["train.py", *SMALL, *flags, "--output-dir", str(out)])
        goldens[name] = golden_of(out)
    print("resume", flush=True)
    out = folder / "resume"
    run(["train.py", *SMALL, *RUNS["grpo"], "--steps", "2", "--decay-steps", "1", "--output-dir", str(out)])
    run(["train.py", "--resume", "--steps", "3", "--output-dir", str(out)])
    goldens["resume"] = golden_of(out)
    print("evaluation", flush=True)
    words = ["eval.py", "--run", str(folder / "grpo"), "--limit", "12", "--methods", "search-r1,rag,cot", "--no-train"]
    run([*words, "--output-dir", str(folder / "evaluation")])
    goldens["evaluation"] = timeless(json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8")))
    return goldens


def differences(old, new, where: str = "") -> list[str]:
    """Where two goldens differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d for key in dict.fromkeys([*old, *new]) for d in differences(old.get(key), new.get(key), f"{where}/{key}")
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for at, (one, other) in pairs for d in differences(one, other, f"{where}[{at}]")]
    return [] if old == new else [f"{where}: {str(old)[:80]} became {str(new)[:80]}"]


def main() -> None:
    """Takes goldens, or compares with those of a file."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("take", "compare"):
        sys.exit("usage: python checks/goldens.py take|compare FILE.json")
    path = Path(sys.argv[2])
    before = json.loads(path.read_text(encoding="utf-8")) if sys.argv[1] == "compare" else None
    with tempfile.TemporaryDirectory() as scratch:
        goldens = json.loads(json.dumps(take(Path(scratch))))
    if before is None:
        path.write_text(json.dumps(goldens, indent=1), encoding="utf-8")
        return
    found = differences(before, goldens)
    print("\n".join(found[:40]) or f"equal to the bit: {', '.join(goldens)}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
