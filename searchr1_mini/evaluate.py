"""The command behind eval.py: a table of methods on data sets, or questions of the user's answered live."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from searchr1_mini.evaluation.plan import Plan, plan_evaluation, run_folders, slug
from searchr1_mini.options.checks import check_data_files, check_live
from searchr1_mini.options.cli import parse_asked
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.needs import check_ranges
from searchr1_mini.options.paths import check_folder
from searchr1_mini.options.resolve import resolve_model, saved_config
from searchr1_mini.storage import status
from searchr1_mini.storage.lock import only_one

ABOUT = "Evaluates a trained run greedily on held-out questions, or answers questions live: --ask, --chat, --web."


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, checks what can be checked before torch is imported, and evaluates.

    Raises:
        UserError: anything that the user can fix.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--run")
    config, unasked = parse_asked(EvalConfig, "eval.py", ABOUT, words)
    check_ranges(config)
    check_data_files(config.data_path, config.corpus)
    check_live(config, live_flag(config))
    plan = None if live_flag(config) else plan_evaluation(config, unasked)
    if plan:
        check_folder(output_folder(config))
    for column in plan.columns if plan else ():
        check_data_files(column.data["data_path"], column.data["corpus"])
    for folder in run_folders(config):
        saved_config(folder)
    if config.model:
        resolve_model(config.model)
    evaluate_command(config, plan, unasked)


def live_flag(config: EvalConfig) -> str | None:
    """Returns the flag by which the user's own questions are answered; None for an evaluation."""
    return "--ask" if config.ask is not None else "--chat" if config.chat else "--web" if config.web else None


def evaluate_command(config: EvalConfig, plan: Plan | None = None, unasked: Collection[str] = ()) -> None:
    """Evaluates, or answers with `--ask`, `--chat` or `--web`.

    Args:
        plan: of `plan_evaluation`, where it was made already.
        unasked: as `plan_evaluation` takes them.

    Raises:
        UserError: anything that the user can fix.
    """
    status.now("loading torch and transformers")

    from searchr1_mini.chat.live import answer_live
    from searchr1_mini.evaluation.cells import prepare_output, run_cells
    from searchr1_mini.evaluation.tables import write_tables
    from searchr1_mini.run.processes import refuse_several

    refuse_several("eval.py")
    if flag := live_flag(config):
        answer_live(config, flag, unasked)
        return
    plan = plan or plan_evaluation(config, unasked)
    out = output_folder(config)
    prepare_output(out)
    with only_one(out, "name another --output-dir"):
        results = run_cells(config, plan, out)
    print(write_tables(results, out, config.compare, config.against, plan.notes))
    print(f"\nwritten to {out} (table.md, table.tex, results.json, and every trajectory under cells)", flush=True)


def output_folder(config: EvalConfig) -> Path:
    """Returns the folder of the results: as named, in a run's own folder, or one for what is compared."""
    if config.output_dir:
        return Path(config.output_dir)
    runs = run_folders(config)
    if len(runs) == 1:
        return runs[0] / "evaluation"
    return Path("evaluations") / slug(config.run or config.adapter or config.model or "tiny")
