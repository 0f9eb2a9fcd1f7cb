"""Opening a run: its folder, model, questions and index, and with `--resume` its newest checkpoint."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from searchr1_mini import __version__
from searchr1_mini.core.critic import Critic
from searchr1_mini.core.distributed import is_main, n_processes
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.methods import MakeMethod
from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rollout import RolloutLimits
from searchr1_mini.core.training import Reward
from searchr1_mini.models.bases import check_model, run_date
from searchr1_mini.models.identity import digest
from searchr1_mini.models.initial import keep_init, open_init, origin
from searchr1_mini.models.loading import load_policy, pick_device, pick_dtype, report_no_gpu
from searchr1_mini.models.saving import load_critic
from searchr1_mini.options.checks import COLLIDING_NEEDS_SOURCES
from searchr1_mini.options.config import KEPT_ON_RESUME, MAY_CHANGE, TrainConfig
from searchr1_mini.options.entry import keep_log
from searchr1_mini.options.nested import flat, get, options_of, with_options
from searchr1_mini.options.own_parts import FITS, from_python, is_own, own_hashes, own_method, short_name, source_hash
from searchr1_mini.options.resolve import resolve_model
from searchr1_mini.options.words import as_now
from searchr1_mini.run import preflight
from searchr1_mini.run.cold_start import demonstrated
from searchr1_mini.run.data_identity import CONTENTS, check_data, data_identity
from searchr1_mini.run.held_out import HELD_OUT, keep_held_out, keep_trained_on, keeps_held_out
from searchr1_mini.run.log import COLD_START, Tracker, truncate_metrics
from searchr1_mini.run.methods import OpenMessage, make_method
from searchr1_mini.run.museum import active_bug, without_last_turn
from searchr1_mini.run.processes import main_first, on_main
from searchr1_mini.run.run import Run
from searchr1_mini.run.task import Library, load_task
from searchr1_mini.run.templates import Worked
from searchr1_mini.storage import checkpoint, training_state
from searchr1_mini.storage.commit import git_commit, keep_commit
from searchr1_mini.storage.forms import WARNING
from searchr1_mini.storage.printable import counted

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def open_run(config: TrainConfig, scratch: Path | None = None, reward: Reward | None = None) -> Run:
    """Opens the run's folder, loads model, questions and index, and with `--resume` the newest checkpoint.

    Args:
        scratch: a process that is not the first of its run writes there instead of into the run's folder.
        reward: the function from Python that the run is paid by.

    Raises:
        UserError: anything that the user can fix.
    """
    began, asked = time.perf_counter(), config
    folder = on_main(lambda: Path(config.run.output_dir))  # one name, though each process made up one by its clock
    training_state.seed_rng(config.optimization.seed)
    device = pick_device(config.run.device)
    report_no_gpu(config.run.device, device, config.weights.load_in_4bit)
    dtype = pick_dtype(config.weights.dtype, device)
    source = resolve_model(config.run.model)
    began_on = folder / "config.json" if config.run.resume else None
    day = on_main(lambda: run_date(source, config.run.model, config.data.date, began_on))
    config = with_options(config, date=day.isoformat())
    init = open_init(config.run.init, source, folder if config.run.resume else None) if config.run.init else None
    check_model(source, config.rollout.max_total_tokens)
    library = Library()
    with main_first():
        # an older run chose its held-out questions otherwise, and kept no list of them
        is_older = config.run.resume and not ((folder / HELD_OUT).is_file() or keeps_held_out(folder))
        train = load_task(config, "train", library)
        held_out = load_task(config, "eval" if is_older else "selection", library)
    check_sources(train.examples, config)
    questions = [example.question for example in train.examples + held_out.examples]
    checked = preflight.check(config, source, device, dtype, questions)
    config = on_main(lambda: checked)
    data_hashes = data_identity(train.examples, train.corpus_hash if config.retrieval.retriever != "http" else "")
    data_hashes |= {CONTENTS + place: value for place, value in files_of_ones_own(config, reward).items()}
    about = _describe(config, source, device, dtype) | {"data_hashes": data_hashes}
    about |= {"started_from": origin(config.run.init, init)} if init else {}
    about |= {"held_out_split": "eval" if is_older else "selection"}
    shown = [example for example, turns in demonstrated(config, held_out.examples) if turns]
    must_match = [name for name in options_of(TrainConfig) if name not in MAY_CHANGE]
    on_main(lambda: checkpoint.prepare_run_dir(folder, config.run.resume, about, must_match, compared))
    on_main(lambda: None if is_older or (folder / HELD_OUT).is_file() else keep_held_out(folder, held_out.examples))
    on_main(lambda: check_data(folder, data_hashes) if config.run.resume else None)
    on_main(lambda: keep_trained_on(folder, train.examples + shown, config.run.init, config.run.model))
    newest = on_main(lambda: checkpoint.checkpoint_to_resume(folder)) if config.run.resume else None
    last = checkpoint.checkpoint_step(newest) if newest else 0
    if last > config.optimization.steps:
        told = f"--steps {config.optimization.steps}: the run in {folder} has trained {counted(last, 'step')}"
        raise UserError(f"{told}; name as many, or more")
    init = init and on_main(lambda: keep_init(init, folder))
    folder = scratch or folder
    if is_main():
        keep_log(folder / "train.log")
    print(f"model {source} on {device.type} in {str(dtype).removeprefix('torch.')}, run folder {folder}", flush=True)
    saved = newest
    if config.run.resume and config.imitation.cold_start and newest is None:
        saved = on_main(lambda: checkpoint.latest_checkpoint(Path(config.run.output_dir) / COLD_START))
    load = partial(
        load_policy,
        source,
        lora_rank=config.weights.lora_rank,
        lora_alpha=config.weights.lora_alpha,
        load_in_4bit=config.weights.load_in_4bit,
        dtype=dtype,
        device=device,
        dequantize=config.weights.rollout_weights == "dequantized",
        gradient_checkpointing=config.weights.gradient_checkpointing,
        fused_kernels=config.weights.fused_kernels,
        compile_decode=config.weights.compile_decode,
        seed=config.optimization.seed,
        day=day,
    )
    policy = load(weights=saved / "model" if saved else init)
    preflight.give_back_free_memory()
    if init and not saved:
        policy.freeze_reference()
    check_questions(train.examples + held_out.examples, policy, config)
    critic = None
    if config.run.algorithm == "ppo":
        critic = Critic(policy, config.optimization.seed)
        if newest:
            load_critic(critic, newest / "critic")
        elif saved and critic.copy is not None:  # a critic begins as the policy did before its cold start
            critic.copy.load_state_dict(load(weights=init).model.state_dict())
    optimizer = Optimizer(policy, critic, config.optimization, config.ppo)
    run = Run(
        config, folder, policy, critic, optimizer, train, held_out, configured_method(config), rollout_limits(config)
    )
    run.clock.began = began
    if newest:
        run.restore(newest)
    elif config.run.resume:  # interrupted before the first checkpoint: from the start
        truncate_metrics(folder / "metrics.jsonl", 0)
        truncate_metrics(folder / "warnings.jsonl", 0, WARNING)
    run.tracker = Tracker(
        folder, config.optimization.steps, run.first_step, config.logging.tensorboard and is_main(),
        config.logging.wandb and is_main(), flat(config), folder.name,
    )  # fmt: skip
    if config.run.resume:  # only now: one that is refused keeps nothing
        on_main(lambda: checkpoint.keep_changed(Path(config.run.output_dir), flat(asked), KEPT_ON_RESUME))
        on_main(lambda: keep_commit(Path(config.run.output_dir), about["git_commit"]))
    return run


def compared(value: Any) -> Any:
    """Returns what counts of an option's value where a resumed run is compared with what it was trained with."""
    return short_name(as_now(value))


def files_of_ones_own(config: TrainConfig, reward: Reward | None = None) -> dict[str, str]:
    """Hashes the files that a run reads code or demonstrations from, and a reward from Python; by their names."""
    named = {name: get(config, name) for name in FITS}
    shown = Path(config.imitation.demonstrations or "")
    hashes = own_hashes(named) | ({str(shown): digest(shown.read_bytes())} if shown.is_file() else {})
    return hashes | ({from_python(reward): source_hash(reward)} if reward else {})


def configured_method(
    config: TrainConfig, shots: Sequence[Worked] = (), open_message: OpenMessage | None = None
) -> MakeMethod:
    """Makes the method that the config names, with its settings, and worked examples in its prompt if wanted."""
    if is_own(config.run.method):
        return own_method(
            config.run.method,
            max_turns=config.rollout.max_turns,
            max_new_tokens=config.rollout.max_new_tokens,
            topk=config.retrieval.topk,
        )
    make = make_method(
        config.run.method,
        template=config.data.template,
        max_turns=config.rollout.max_turns,
        max_new_tokens=config.rollout.max_new_tokens,
        topk=config.retrieval.topk,
        serves_search=config.retrieval.retriever != "none",
        shots=shots,
        open_message=open_message,
    )
    if active_bug(config.run) == "no-last-turn" and config.run.method in ("search-r1", "search-o1"):
        make = without_last_turn(make, config.rollout.max_turns)
    return make


def rollout_limits(config: TrainConfig) -> RolloutLimits:
    """Returns the bounds of a rollout that the config names."""
    return RolloutLimits(
        config.rollout.rollout_batch_size,
        config.rollout.max_total_tokens,
        config.rollout.max_observation_tokens,
        overlap_search=config.retrieval.retriever in ("http", "milvus"),
        form=config.data.observation,
    )


def check_sources(examples: Sequence[Example], config: TrainConfig) -> None:
    """Refuses a fault that does nothing on questions of one source; a bug hunt, whichever fault it hides.

    Raises:
        UserError: there is one source.
    """
    if config.run.bug == "colliding-groups" or config.run.mystery is not None:
        sources = {example.source for example in examples}
        if len(sources) < 2:
            told = f"{COLLIDING_NEEDS_SOURCES}, and all of these are of {min(sources)}"
            raise UserError(f'{told}; give each row its "data_source", or take --dataset world')


def check_questions(examples, policy: Policy, config: TrainConfig) -> None:
    """Refuses a question that does not fit into the context before any work is spent on the run.

    Raises:
        UserError: names the question.
    """
    make = configured_method(config)
    for example in examples:
        if len(example.question.encode()) < config.rollout.max_total_tokens // 2:  # a token is at least a byte
            continue
        n_tokens = len(policy.encode_prompt(make(example.question).send(None).text))
        if n_tokens >= config.rollout.max_total_tokens:
            raise UserError(
                f"question {example.id} is {n_tokens} tokens long with its prompt, but --max-total-tokens is "
                f"{config.rollout.max_total_tokens}; raise it or leave the question out"
            )


def _describe(config: TrainConfig, source: str, device: torch.device, dtype: torch.dtype) -> dict:
    """config.json: every resolved value, and what it ran on."""
    return {
        **flat(config),
        "resolved_model": source,
        **computes_on(device, dtype),
        "git_commit": git_commit(),
    }


def computes_on(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what decides how the numbers of a run are rounded, beside its options."""
    return {
        "resolved_device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "resolved_dtype": str(dtype).removeprefix("torch."),
        "processes": n_processes(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "versions": {"searchr1_mini": __version__, **{name: version(name) for name in PACKAGES if find_spec(name)}},
    }
