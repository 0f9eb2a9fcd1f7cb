"""The command behind train.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from searchr1_mini.options.checks import check_data_files, check_demonstrations, check_world
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.own_parts import short_name
from searchr1_mini.options.paths import check_folder, with_folder
from searchr1_mini.options.resolve import resolve, resolve_model, resumed_config
from searchr1_mini.storage import status
from searchr1_mini.storage.checkpoint import check_new
from searchr1_mini.storage.printable import counted

ABOUT = "Trains a language model to search: tiny on a laptop, --model Qwen2.5-3B on one GPU."


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, resolves what is left open for the model, and trains.

    Raises:
        UserError: anything that the user can fix.
    """
    config, unasked = parse_asked(TrainConfig, "train.py", ABOUT, argv)
    if config.run.resume and config.run.output_dir:  # with the run's own options, where no flag says otherwise
        config, unasked = parse_asked(TrainConfig, "train.py", ABOUT, argv, resumed_config(Path(config.run.output_dir)))
    config = with_folder(resolve(config, unasked))
    resolve_model(config.run.model)
    if not config.run.resume:  # which has its episodes
        check_demonstrations(config.imitation.demonstrations)
        check_world(config)
        check_folder(Path(config.run.output_dir))
        check_new(Path(config.run.output_dir))
    check_data_files(config.data.data_path, config.data.corpus)

    print(banner(config), flush=True)
    status.now("loading torch and transformers")

    from searchr1_mini.pages.report import write_report
    from searchr1_mini.run.training import train  # heavy: after the arguments are known to be good

    status.now("preparing the run")
    train(config, write_report)


def banner(config: TrainConfig) -> str:
    """Says what will be done, and where it will lie."""
    run, data = config.run, config.data
    how = run.method if run.algorithm == "sft" else f"{short_name(run.method)} by {run.algorithm.upper()}"
    episodes = counted(config.imitation.cold_start, "episode")
    cold = f"a cold start on {episodes}, then " if config.imitation.cold_start else ""
    return (
        f"{'resuming' if run.resume else 'training'} {run.model}: {cold}{counted(config.optimization.steps, 'step')} "
        f"of {how} on {data.data_path or data.dataset}, in {run.output_dir}\nCtrl-C saves; --resume goes on"
    )
