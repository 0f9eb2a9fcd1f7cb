"""The cold start: a model that never earns a first reward imitates scripted episodes before RL begins.

RL can only make likelier what is sampled now and then. A small or plainly instructed model never writes a tag, so that
every reward is 0; some hundred scripted episodes teach it the form (DeepSeek-R1, arXiv 2501.12948, section 2.3.1, calls
this the cold start). The loss is that of imitation with RL's mask; the policy that comes of it is RL's reference.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path

from searchr1_mini.core import interrupt
from searchr1_mini.core.distributed import any_process, is_main
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.core.optimizer import Optimizer
from searchr1_mini.core.questions import Example
from searchr1_mini.core.retrieval import Passage
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.data.datasets import question_key
from searchr1_mini.data.demonstrations import n_searches, read_demonstrations, why_left_out
from searchr1_mini.data.scripts import (
    Find,
    Script,
    answer_of,
    data_hops,
    play_script,
    world_hops,
    write_turns,
)
from searchr1_mini.data.world import make_world
from searchr1_mini.models.names import is_instructed
from searchr1_mini.options.checks import check_demonstrations
from searchr1_mini.options.config import ImitationConfig, TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.diagnosis import diagnose, tell
from searchr1_mini.run.imitation import imitation_step
from searchr1_mini.run.log import COLD_START, loggable
from searchr1_mini.run.processes import on_main
from searchr1_mini.run.run import Clock, Run
from searchr1_mini.storage import status
from searchr1_mini.storage.checkpoint import latest_checkpoint
from searchr1_mini.storage.files import append_jsonl, read_jsonl, write_jsonl_atomic

SAVE_EVERY = 10  # updates
WARM_UP, DECAY = 0.1, 0.3  # shares of the updates: the rate rises to the full one, and falls to 0
EPISODES = "episodes.jsonl"


def cold_start(run: Run) -> None:
    """Imitates scripted episodes, measures what comes of it, and makes that the reference; resumable at any update.

    Its checkpoints, metrics and episodes lie in the run's `cold_start` folder. Once it is over it is step 0 of the run.

    Raises:
        Stopped: the user asked to stop; the last whole update is saved.
        UserError: no episode can be written, or memory does not suffice.
    """
    folder = run.folder / COLD_START
    newest = on_main(lambda: latest_checkpoint(folder)) if run.config.run.resume else None
    if is_main():
        folder.mkdir(exist_ok=True)
    with status.phase("writing scripts for the cold start"):
        episodes = on_main(lambda: kept_episodes(run, folder / EPISODES))
    size = run.config.imitation.cold_start_batch_size
    n_updates = -(-len(episodes) // size)
    cold = cold_start_phase(run, folder, n_updates)
    if newest:
        cold.restore(newest)
        run.clock.earlier_seconds = cold.clock.earlier_seconds
    run.evaluations.measure_before(run)
    if not newest:
        cold.save(0)  # the evaluation of the base is not made twice
    for update in range(cold.first_step, n_updates + 1):
        with cold.saved_if_broken_off(), status.phase(f"cold start {update}/{n_updates}"):
            chosen = episodes[(update - 1) * size : update * size]
            metrics = imitation_step(cold.policy, cold.optimizer, chosen, update, cold.config.optimization)
        cold.finish_step(update, metrics)
        if is_main():
            append_jsonl(folder / "metrics.jsonl", [{"step": update, **loggable(metrics)}])
            told = f"loss {metrics['loss']:.3f}, {metrics['tokens_per_second']:.0f} tokens/s"
            print(f"cold start {update}/{n_updates}: {told}", flush=True)
        if update % SAVE_EVERY == 0 or update == n_updates or any_process(interrupt.is_asked()):
            cold.save(update)
        if any_process(interrupt.is_asked()):
            raise Stopped
        cold.stop_if_diverged(update, "--cold-start-learning-rate")
    run.clock.cold_start_seconds = cold.clock.train_seconds
    run.optimizer.micro_batches.tokens = cold.optimizer.micro_batches.tokens
    run.policy.freeze_reference()
    run.evaluations.after_cold_start = run.evaluations.measure(run, "after the cold start")
    if is_main():
        tell(run.folder, diagnose(run.evaluations.samples, run.config, is_instructed(run.policy.base_name)))
    run.save(0)


def cold_start_phase(run: Run, folder: Path, n_updates: int) -> Run:
    """Returns the run as a run of imitation, with a folder, an optimizer and a clock of its own."""
    config = with_options(
        run.config, algorithm="sft", mini_batches=1, epochs=1, steps=n_updates, weight_decay=0.0,
        learning_rate=run.config.imitation.cold_start_learning_rate, warmup_steps=max(round(WARM_UP * n_updates), 1),
        decay_steps=max(round(DECAY * n_updates), 1),
    )  # fmt: skip
    cold = copy(run)
    cold.config, cold.folder, cold.critic = config, folder, None
    cold.optimizer, cold.clock = Optimizer(run.policy, None, config.optimization), Clock()
    return cold


def kept_episodes(run: Run, path: Path) -> list[Trajectory]:
    """Returns the episodes of the run, written once, so that a resumed run imitates the same ones."""
    if not path.exists():
        write_jsonl_atomic(path, map(asdict, scripted_episodes(run)))
    return [Trajectory.from_json(row) for row in read_jsonl(path)]


def scripted_episodes(run: Run) -> list[Trajectory]:
    """Plays `--cold-start` episodes, each through the method and the engine of the run.

    Where there are fewer questions, each comes again, in other words.

    Raises:
        UserError: none can be written, or none of a kind of which `--cold-start-multi-hop` wants a share, or a file of
            demonstrations is not as it should be.
    """
    config = run.config
    rng = random.Random(f"{config.optimization.seed}/cold start")

    def find(query: str) -> list[Passage]:
        return [hit.passage for hit in run.train.retriever.search([query], config.retrieval.topk)[0]]

    episodes: list[Trajectory] = []
    wanted = kinds_wanted(config.imitation.cold_start, config.imitation.cold_start_multi_hop)
    n_tried, n_before, left_out = 0, -1, defaultdict(set)
    if config.imitation.demonstrations:
        check_demonstrations(config.imitation.demonstrations)
    shown = demonstrated(config, run.held_out.examples)
    while n_before < len(episodes) < config.imitation.cold_start:
        n_before = len(episodes)
        for example, turns in shown or scripted(run, find, rng):
            n_tried += 1
            is_multi_hop = n_searches(turns or ()) > 1
            if wanted and not wanted[is_multi_hop]:
                continue
            played = turns and play_script(example, turns, run.make_method, run.policy, run.train.retriever, run.limits)
            if shown and (why := why_left_out(example, turns, played)):
                left_out[why].add(example.id)
            elif played and exact_match(played.answer, example.golden_answers):
                episodes.append(played)
                if wanted:
                    wanted[is_multi_hop] -= 1
            if len(episodes) == config.imitation.cold_start:
                break
    told = [f"{len(ids)} of the demonstrations are left out: {why}" for why, ids in left_out.items()]
    refuse_too_few(config.imitation, len(episodes), n_tried, wanted, told)
    for line in (f"{len(episodes)} scripted episodes, from {n_tried} scripts", *told):
        print(f"cold start: {line}", flush=True)
    rng.shuffle(episodes)
    return episodes


def refuse_too_few(
    settings: ImitationConfig, n_episodes: int, n_tried: int, wanted: Counter[bool] | None, told: Sequence[str]
) -> None:
    """Refuses to begin without an episode, or without one of a kind that is wanted.

    Args:
        wanted: how many are still missing, as `kinds_wanted`.
        told: why demonstrations were left out.

    Raises:
        UserError: says what to do.
    """
    if told and not n_episodes:
        raise UserError(
            f"--demonstrations {settings.demonstrations}: none can be imitated; {'; '.join(told)}; take some "
            "that were made of this run's questions and passages"
        )
    if not n_episodes:
        raise UserError(
            f"--cold-start: none of {n_tried} questions gave a scripted episode: no search finds what answers them, or "
            "they do not fit into --max-total-tokens, --max-new-tokens and --max-turns; give --demonstrations FILE"
        )
    if wanted and any(wanted.values()):
        raise UserError(
            f"--cold-start-multi-hop {settings.cold_start_multi_hop:g}: none of {n_tried} questions gave an "
            f"episode that searches {'twice or more' if wanted[True] else 'once'}; take `--cold-start-multi-hop None` "
            "(any kind will do), or other questions"
        )


def kinds_wanted(n_episodes: int, multi_hop: float | None) -> Counter[bool] | None:
    """Tells how many episodes shall search twice or more (True), and how many once; None where any will do."""
    if multi_hop is None:
        return None
    n_multi_hop = round(multi_hop * n_episodes)
    return Counter({True: n_multi_hop, False: n_episodes - n_multi_hop})


def demonstrated(config: TrainConfig, held_out: Sequence[Example]) -> list[Script]:
    """Returns the scripts of `--demonstrations`, if the run has such a file and it is there.

    Those of held-out questions are left out: a run is not shown what it is measured on.

    Raises:
        UserError: the file holds none.
    """
    path = config.imitation.demonstrations
    if path is None or not Path(path).is_file():
        return []
    scripts = list(read_demonstrations(Path(path)))
    if not scripts:
        raise UserError(f"--demonstrations {path} holds no demonstration that ends in a right answer")
    asked = set(map(question_key, held_out))
    kept = [(example, turns) for example, turns in scripts if question_key(example) not in asked]
    if not kept:
        raise UserError(
            f"--demonstrations {path}: all {len(scripts)} are of held-out questions, which the run is measured on; add "
            "some of training questions"
        )
    return kept


def scripted(run: Run, find: Find, rng: random.Random) -> Iterator[Script]:
    """Yields a script for every training question, in random order; None in the place of one that cannot be written."""
    config, world = run.config, None
    plans = config.run.model != "tiny"  # which was pre-trained on thoughts without one, and knows few words
    if config.data.dataset == "world":
        world = make_world(config.optimization.seed, "train", config.data.world_difficulty, config.data.world_noise)
    for example in rng.sample(run.train.examples, len(run.train.examples)):
        hops = world_hops(world, example, find, rng) if world else data_hops(example, find)
        yield example, hops and write_turns(hops, answer_of(example, hops), rng, plans)
