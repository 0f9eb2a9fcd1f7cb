"""Puts a deliberate bug into the package, one after the other, and sees whether the tests tell.

    python checks/mutations.py            # all; about a quarter of an hour on two cores
    python checks/mutations.py std clip   # some, by name

Each bug is put into a copy of the repository; the tests named beside it are run there until one fails. A bug that they
all let through is named, and the exit code is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Bug(NamedTuple):
    """Text of a module, what stands in its place, and the test files that should tell."""

    name: str
    module: str
    old: str
    new: str
    tests: str


BUGS = [
    # masks
    Bug("mask not shifted", "batch", "loss_mask=loss_mask[:, 1:]", "loss_mask=loss_mask[:, :-1]", "batch"),
    Bug("log-probs not shifted", "batch", "old_logprobs=old_logprobs[:, 1:]",
        "old_logprobs=old_logprobs[:, :-1]", "batch"),
    Bug("observations trained on", "batch", 'elif segment.kind == "observation" and not mask_observations:',
        'elif segment.kind == "observation":', "batch"),
    Bug("prompt trained on", "batch", 'if segment.kind == "policy":\n                loss_mask[row, span] = True\n',
        'loss_mask[row, span] = True\n            if segment.kind == "policy":\n', "batch"),
    Bug("mask from pad ids", "batch", "loss_mask=loss_mask[:, 1:]",
        "loss_mask=loss_mask[:, 1:] & (input_ids[:, 1:] != pad_token_id)", "batch"),
    Bug("cut to the shortest row", "batch", "width = int(self.lengths[rows].max())",
        "width = int(self.lengths[rows].min())", "batch"),
    # advantages
    Bug("biased std", "algorithms", "(r.std() + eps", "(r.std(unbiased=False) + eps", "algorithms references"),
    Bug("mean of the batch", "algorithms", "(r - r.mean())", "(r - rewards.mean())", "algorithms references"),
    Bug("leave-one-out divides by n", "algorithms", "(r.sum() - r) / (n - 1)", "(r.sum() - r) / n",
        "algorithms references"),
    Bug("groups interleaved", "training", "first + index // config.group_size",
        "first + index % config.questions_per_step", "invariants"),
    Bug("GAE sees observations", "algorithms", "next_value = torch.where(is_policy, values[:, t], next_value)",
        "next_value = values[:, t]", "algorithms references"),
    Bug("equal rewards teach", "algorithms", "if (r == r[0]).all():", "if False:", "algorithms"),
    # losses
    Bug("clip the wrong way", "algorithms", "torch.maximum(plain, clipped), clipped > plain",
        "torch.minimum(plain, clipped), clipped > plain", "algorithms references"),
    Bug("k3 reversed", "algorithms", "d = (ref_logprobs - logprobs)", "d = (logprobs - ref_logprobs)",
        "algorithms references"),
    Bug("mean over padding", "algorithms", "return mask / mask.sum().clamp(min=1)", "return mask / mask.numel()",
        "algorithms references"),
    Bug("log-probs without temperature", "logprobs", "lm_head(chunk).float() / temperature", "lm_head(chunk).float()",
        "logprobs"),
    Bug("each micro-batch a mean of its own", "update", "policy_backward(run, part, weights[rows, :width])",
        "policy_backward(run, part, step_weights(config, part.batch.loss_mask))", "accumulation"),
    Bug("gradients kept when memory ran out", "accumulation", "run.optimizer.zero_grad(set_to_none=True)", "pass",
        "accumulation"),
    Bug("value clip unbounded", "algorithms", "clipped = old + (v - old).clamp(-value_clip, value_clip)", "clipped = v",
        "algorithms references"),
    # stops and sampling
    Bug("stop only within one token", "stops", "start = max(0, len(self.seen) - self.keep)",
        "start = len(self.seen)", "generation"),
    Bug("EOS goes on", "generation", "if id_ in self.eos_ids:", "if id_ == -1:", "generation rollout"),
    Bug("sampled without temperature", "generation", "logits.float() / (self.temperature or 1.0)", "logits.float()",
        "generation"),
    Bug("a rollout keeps a graph", "generation", "@torch.no_grad()\n    def start",
        "@torch.enable_grad()\n    def start", "rollout_weights"),
    Bug("a position too far", "generation", "positions[indices, 0] = torch.tensor([row.length for row in rows])",
        "positions[indices, 0] = torch.tensor([row.length + 1 for row in rows])", "generation"),
    # protocol and rewards
    Bug("the last action decides", "prompts", "end, kind = min(ends)", "end, kind = max(ends)", "prompts"),
    Bug("tags of passages stay", "prompts", '[f"({inside})" for inside', '[f"<{inside}>" for inside', "prompts"),
    Bug("an answer that contains the gold", "rewards",
        "float(compared(answer) in {compared(gold) for gold in golden_answers})",
        "float(any(compared(gold) in compared(answer) for gold in golden_answers))", "rewards"),
    Bug("articles count", "rewards", '_ARTICLES.sub(" ", ', '(lambda _, t: t)(" ", ', "rewards"),
    # resume
    Bug("moments forgotten", "checkpoint", 'optimizer.load_state_dict(state["optimizer"])', "pass", "checkpoint"),
    Bug("schedule from the start", "checkpoint", "scheduler.load_state_dict(", "dict(", "checkpoint"),
    Bug("every checkpoint is whole", "checkpoint",
        "return bool(manifest) and all(_checksum(path / name) == expected for name, expected in manifest.items())",
        "return bool(manifest)", "checkpoint"),
    Bug("mini-batches shuffled from the start", "session",
        'run.first_step, run.updates = progress["step"] + 1, progress["updates"]',
        'run.first_step = progress["step"] + 1', "interrupt"),
    Bug("a step that was thrown away stays in the log", "session",
        'logged = progress["step"] - (run.unlogged is not None)', 'logged = progress["step"] + 1', "end_to_end"),
    Bug("the first questions again after a resume", "training", "metrics = train_step(run, step)",
        "metrics = train_step(run, step - run.first_step + 1)", "interrupt"),
]  # fmt: skip


def put(bug: Bug, root: Path) -> None:
    """Puts a bug into the copy of the repository under `root`; ends if its place is not there exactly once."""
    path = root / "searchr1_mini" / f"{bug.module}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        sys.exit(f"{bug.name}: {bug.old!r} stands {text.count(bug.old)} times in {path.name}; mend the list")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def copied(scratch: Path) -> Path:
    """A copy of the repository in this folder."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
    return Path(shutil.copytree(ROOT, scratch / "copy", ignore=ignored))


def run_tests(names: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    """Runs test files by their names, up to the first failure, with the package under `root`."""
    files = [f"tests/test_{name}.py" for name in names]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files], cwd=root, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip


def is_caught(bug: Bug, root: Path) -> tuple[bool, str]:
    """Whether a test fails with the bug in, and the name of the first that does."""
    done = run_tests(bug.tests.split(), root)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 1 and bool(failed), failed[0] if failed else done.stdout[-300:]


def main() -> None:
    """Tries the bugs that were named, or all; one line each."""
    wanted = sys.argv[1:]
    bugs = [bug for bug in BUGS if not wanted or any(word in bug.name for word in wanted)]
    with tempfile.TemporaryDirectory() as scratch:  # the control: a test that fails without a bug catches nothing
        root = copied(Path(scratch))
        for name in dict.fromkeys(name for bug in bugs for name in bug.tests.split()):
            if (done := run_tests([name], root)).returncode:
                sys.exit(f"tests/test_{name}.py fails without a bug; mend it first:\n{done.stdout[-300:]}")
    escaped = []
    for number, bug in enumerate(bugs, start=1):
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            put(bug, root := copied(Path(scratch)))
            caught, told = is_caught(bug, root)
        escaped += [] if caught else [bug.name]
        seconds = time.monotonic() - began
        print(f"{number:2d} {'caught' if caught else 'ESCAPED':8s}{bug.name}: {told} ({seconds:.0f} s)", flush=True)
    print(f"{len(bugs) - len(escaped)} of {len(bugs)} bugs are caught")
    sys.exit(bool(escaped))


if __name__ == "__main__":
    main()
