"""The command behind eval.py: a table of methods on data sets, or questions of the user's answered live."""

from __future__ import annotations

from pathlib import Path

from searchr1_mini.chat.live import answer_live, check_live
from searchr1_mini.evaluation.cells import prepare_output, run_cells
from searchr1_mini.evaluation.plan import plan_evaluation, slug
from searchr1_mini.evaluation.tables import write_tables
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.run.processes import refuse_several
from searchr1_mini.storage.lock import only_one


def evaluate_command(config: EvalConfig) -> None:
    """Evaluates, or answers with `--ask`, `--chat` or `--web`.

    Raises:
        UserError: anything that the user can mend.
    """
    refuse_several("eval.py")
    if config.ask is not None or config.chat or config.web:
        answer_live(config)
        return
    check_live(config, None)
    plan = plan_evaluation(config)
    out = Path(config.output_dir or f"runs/eval-{slug(config.run or config.adapter or config.model or 'tiny')}")
    prepare_output(out)
    with only_one(out, "name another --output-dir"):
        results = run_cells(config, plan, out)
    print(write_tables(results, out, config.compare, config.against, plan.notes))
    print(f"\nwritten to {out} (table.md, table.tex, results.json, and every trajectory under cells)", flush=True)
