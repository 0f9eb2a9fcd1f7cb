"""Evaluates a trained run greedily on held-out questions, or answers questions live: --ask, --chat, --web."""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

    from searchr1_mini.evaluate import main
    from searchr1_mini.options.outcome import run_command

    run_command(main)
