"""Makes the tiny base that the repository ships: `python -m searchr1_mini.pretrain --output searchr1_mini/tiny_base`.

A small Qwen2 with a byte-level BPE tokenizer, pre-trained on demonstrations from fresh synthetic worlds (names of the
train split only), in two stages (tiny/pretraining.py).
"""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):
    from searchr1_mini.options.entry import begin

    begin(is_child=__name__ != "__main__")

from collections.abc import Sequence
from pathlib import Path

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse
from searchr1_mini.options.needs import check_ranges
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.paths import check_folder
from searchr1_mini.storage import status
from searchr1_mini.tiny.pretrain_config import PretrainConfig


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, and pre-trains.

    Raises:
        UserError: anything that the user can fix.
    """
    config = parse(PretrainConfig, "python -m searchr1_mini.pretrain", __doc__.splitlines()[0], argv)
    check_ranges(config)
    if config.output is None:
        raise UserError("name the folder for the base and its tokenizer: --output FOLDER")
    check_folder(Path(config.output), "--output")
    if config.init and not Path(config.init).is_dir():
        raise UserError(f"--init {config.init}: there is no such folder; name a base that this command wrote")
    if config.hidden % 64:
        raise UserError(f"--hidden {config.hidden}: it must be a multiple of 64, since a head has 32 numbers")
    status.now("loading torch and transformers")

    from searchr1_mini.models.loading import pick_device
    from searchr1_mini.tiny.pretraining import pretrain  # heavy: after the arguments are known to be good

    status.now("pre-training")
    pretrain(config, pick_device(config.device))


if __name__ == "__main__":
    run_command(main)
