"""Trains a language model to search: `python train.py` on a laptop, `python train.py --model Qwen2.5-3B` on one GPU.

for step: questions -> rollouts -> rewards -> advantages -> update -> log: see searchr1_mini/core/training.py.
"""

from __future__ import annotations

if __name__ == "__main__":
    from searchr1_mini.options.entry import begin

    begin()

import time
from pathlib import Path

from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.resolve import check_demonstrations, resolve, resolve_model, saved_config


def main() -> None:
    """Parses, resolves what is left open for the model, and trains."""
    about = __doc__.splitlines()[0]
    config, unasked = parse_asked(TrainConfig, "train.py", about)
    if config.run.resume and config.run.output_dir:  # with the run's own options, where no flag says otherwise
        config, unasked = parse_asked(TrainConfig, "train.py", about, base=saved_config(Path(config.run.output_dir)))
    config = resolve(config, unasked)
    resolve_model(config.run.model)
    check_demonstrations(config.imitation.demonstrations)
    if config.run.output_dir is None:
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(config.run.model).name[:80]}-{config.run.algorithm}"
        config = with_options(config, output_dir=str(Path("runs") / name))

    from searchr1_mini.pages.report import write_report
    from searchr1_mini.run.training import train  # heavy: after the arguments are known to be good

    train(config, write_report)


if __name__ == "__main__":
    run_command(main)
