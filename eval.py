"""Evaluates a trained run greedily on held-out questions, or answers questions live: --ask, --chat, --web."""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

from searchr1_mini.options.cli import parse
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.needs import check_ranges
from searchr1_mini.options.outcome import run_command


def main() -> None:
    """Parses and evaluates."""
    config = parse(EvalConfig, "eval.py", __doc__)
    check_ranges(config)

    from searchr1_mini.evaluate import evaluate_command  # heavy: after the arguments are known to be good

    evaluate_command(config)


if __name__ == "__main__":
    run_command(main)
