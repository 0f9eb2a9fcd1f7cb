"""A cold start: the episodes that it imitates, and a run that is broken off in each of its phases."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sessions import session_of

from searchr1_mini.core.errors import UserError
from searchr1_mini.core.interrupt import Stopped
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rewards import exact_match
from searchr1_mini.core.rollout import rollout
from searchr1_mini.core.training import teaches
from searchr1_mini.data.datasets import question_key
from searchr1_mini.data.demonstrations import n_searches, read_demonstrations
from searchr1_mini.data.scripts import play_script
from searchr1_mini.options.checks import check_demonstrations
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.report import eval_series, write_report
from searchr1_mini.run import cold_start as module
from searchr1_mini.run.cold_start import demonstrated, scripted_episodes
from searchr1_mini.run.evaluations import Evaluations
from searchr1_mini.run.held_out import trained_on
from searchr1_mini.run.log import COLD_START
from searchr1_mini.run.methods import make_method
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.training import all_phases, configured_reward, train
from searchr1_mini.storage.checkpoint import latest_checkpoint
from searchr1_mini.storage.files import read_metrics
from searchr1_mini.train import main as train_command


@pytest.mark.parametrize("form", ["plain", "paper"])
def test_a_played_episode_has_the_very_form_of_a_rollout(tmp_path, form):
    """The turns of real rollouts, played again, give the same prompts, passages and ends."""
    run = session_of(tmp_path / "run")
    examples, limits = run.train.examples[:12], replace(run.limits, form=form)
    make = make_method("search-r1", template="short", max_turns=4, max_new_tokens=64, topk=3)
    sampled, _ = rollout(examples, make, run.policy, run.train.retriever, limits, temperature=1.0, seed=0)
    n = 0
    for example, real in zip(examples, sampled, strict=True):
        turns = [segment.text for segment in real.of_kind("policy")]
        again = play_script(example, turns, make, run.policy, run.train.retriever, limits)
        if real.finish_reason != "answer":
            assert again is None
            continue
        n += 1
        assert [s.kind for s in again.segments] == [s.kind for s in real.segments]
        assert [s.token_ids for s in again.segments if s.kind != "policy"] == [
            s.token_ids for s in real.segments if s.kind != "policy"
        ]
        assert (again.answer, again.queries, again.titles) == (real.answer, real.queries, real.titles)
        assert again.retrieved == real.retrieved
    assert n >= 6


def test_episodes_end_right_and_fit_and_are_the_same_twice(tmp_path):
    run = session_of(tmp_path / "run", cold_start=30)
    episodes = scripted_episodes(run)
    answers = {example.id: example.golden_answers for example in run.train.examples}
    assert len(episodes) == 30 and episodes == scripted_episodes(run)
    assert all(exact_match(episode.answer, answers[episode.example_id]) for episode in episodes)
    assert all(len(episode.token_ids) <= 640 and episode.queries for episode in episodes)


def test_an_answer_that_cannot_be_written_is_no_episode(tmp_path):
    """A word that is an added token is broken in foreign text, and would be another answer."""
    run = session_of(tmp_path / "run", cold_start=8)
    run.train.examples[:] = run.train.examples[:12]
    whole = {episode.answer for episode in scripted_episodes(run)}
    gone = sorted(whole)[0].split()[0]
    run.policy.tokenizer.add_tokens([gone])
    left = {episode.answer for episode in scripted_episodes(run)}
    assert left and not any(gone in answer or f"{gone[0]} {gone[1:]}" in answer for answer in left)


def test_more_episodes_than_questions_come_again_in_other_words(tmp_path):
    run = session_of(tmp_path / "run", cold_start=20)
    run.train.examples[:] = run.train.examples[:6]
    texts = ["".join(s.text for s in episode.of_kind("policy")) for episode in scripted_episodes(run)]
    assert len(texts) == 20 and len(set(texts)) > 6


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_the_share_of_multi_hop_episodes_is_the_requested_one(tmp_path, share):
    run = session_of(tmp_path / "run", cold_start=20, cold_start_multi_hop=share)
    searches = [len(episode.queries) for episode in scripted_episodes(run)]
    assert [sum(n > 1 for n in searches), sum(n == 1 for n in searches)] == [round(20 * share), round(20 * (1 - share))]


def test_a_kind_of_episode_that_no_question_gives_is_told(tmp_path):
    run = session_of(tmp_path / "run", cold_start=20, cold_start_multi_hop=0.5)
    run.train.examples[:] = [e for e in run.train.examples if len(e.supporting) == 1][:30]
    with pytest.raises(UserError, match="none of 60 questions gave an episode that searches twice or more"):
        scripted_episodes(run)


def demonstration_file(path: Path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SEARCH, ANSWER = "<think> a </think>\n<search> q </search>", "<think> b </think>\n<answer> yes </answer>"


def test_demonstrations_are_turns_or_right_rollouts_of_a_run(tmp_path):
    segments = [{"kind": "prompt", "text": "Q"}, {"kind": "policy", "text": ANSWER}]
    right = {"question": "R?", "segments": segments, "answer": "yes", "golden_answers": ["Yes"]}
    path = demonstration_file(
        tmp_path / "d.jsonl", {"question": "Q?", "turns": [SEARCH, ANSWER]}, right, right | {"golden_answers": ["no"]}
    )
    shown = list(read_demonstrations(Path(path)))
    assert [(example.question, turns) for example, turns in shown] == [("Q?", [SEARCH, ANSWER]), ("R?", [ANSWER])]


INVALID, PASSAGES = "<think> I do not know. </think>", "<information>Doc 1 yes</information>"
ROLLOUT = {
    "question": "R?",
    "segments": [{"kind": "policy", "text": ANSWER}],
    "answer": "yes",
    "golden_answers": ["yes"],
}


def test_a_turn_ends_where_a_rollouts_turn_does(tmp_path):
    """What stands behind its first closing tag is the engine's, or nobody's."""
    for search in (SEARCH + "\n" + PASSAGES, SEARCH + SEARCH, SEARCH + "\n" + ANSWER):
        row = {"question": "Q?", "turns": [search, ANSWER + "\n<|im_end|> and so on"]}
        ((_, turns),) = read_demonstrations(Path(demonstration_file(tmp_path / "d.jsonl", row)))
        assert turns == [SEARCH, ANSWER]


@pytest.mark.parametrize("turn", [INVALID, PASSAGES + SEARCH])
def test_a_rollout_with_a_turn_that_teaches_wrong_is_passed_over(tmp_path, turn):
    segments = [{"kind": "policy", "text": text} for text in (turn, ANSWER)]
    path = demonstration_file(tmp_path / "d.jsonl", ROLLOUT | {"segments": segments}, ROLLOUT)
    assert [turns for _, turns in read_demonstrations(Path(path))] == [None, [ANSWER]]


def test_answers_of_a_rollout_may_be_numbers(tmp_path):
    rows = [ROLLOUT | {"golden_answers": [1998], "answer": n} for n in (1998, "1998", "1999")]
    assert len(list(read_demonstrations(Path(demonstration_file(tmp_path / "d.jsonl", *rows))))) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q?", "turns": [INVALID, ANSWER]},
        {"question": "Q?", "turns": [PASSAGES + SEARCH, ANSWER]},
        {"question": "Q?", "turns": ["<answer> \ud800 </answer>"]},
        {"question": "Q\ud800?", "turns": [ANSWER]},
        ROLLOUT | {"segments": ["a"]},
        ROLLOUT | {"segments": "a"},
        ROLLOUT | {"segments": [{"kind": "policy", "text": 3}]},
        ROLLOUT | {"golden_answers": [{"no": "text"}]},
        ROLLOUT | {"answer": {"no": "text"}},
        {"question": "Q?"},
        {"question": "Q?", "turns": []},
        {"question": "Q?", "turns": "text"},
        {"question": "Q?", "turns": [SEARCH]},
        {"question": "Q?", "turns": [ANSWER, SEARCH]},
        {"question": 3, "turns": [ANSWER]},
    ],
)
def test_what_is_no_demonstration_is_told_with_its_line(tmp_path, row):
    path = demonstration_file(tmp_path / "d.jsonl", {"question": "Q?", "turns": [ANSWER]}, row)
    with pytest.raises(UserError, match="line 2"):
        list(read_demonstrations(Path(path)))


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"cold_start": 9, "algorithm": "sft"}, "--algorithm sft"),
        ({"cold_start": 9, "method": "r1"}, "--method r1"),
        ({"cold_start": 9, "retriever": "random"}, "--retriever random"),
        ({"demonstrations": "x.jsonl"}, "--demonstrations"),
        ({"cold_start_learning_rate": 1e-3}, "--cold-start-learning-rate"),
        ({"cold_start_multi_hop": 0.5}, "--cold-start-multi-hop"),
    ],
)
def test_a_cold_start_that_cannot_be_is_refused(settings, told):
    with pytest.raises(UserError, match=told):
        resolve(make(TrainConfig, **settings))


def test_a_missing_demonstrations_file_is_refused_at_once():
    with pytest.raises(UserError, match="no such file"):
        check_demonstrations("/nowhere.jsonl")


RUN = {
    "cold_start": 48, "cold_start_batch_size": 8, "steps": 2, "questions_per_step": 4, "group_size": 4,
    "eval_questions": 12, "save_every": 1, "eval_every": 2, "tensorboard": False, "memory_check": False,
    "kl_coef": 0.01,
}  # fmt: skip


def trained(folder: Path, stop_at: tuple[tuple[Any, str], int] | None, monkeypatch, **settings) -> None:
    """Runs to the end; with `stop_at` it is broken off at that call of that function, and resumed from the disk."""
    config = resolve(make(TrainConfig, **RUN | settings, output_dir=str(folder)))
    run = open_run(config)
    if stop_at:
        (owner, name), number = stop_at
        calls, real = 0, getattr(owner, name)

        def stopped(*arguments):
            nonlocal calls
            calls += 1
            if calls == number:
                raise Stopped
            return real(*arguments)

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(owner, name, stopped)
            all_phases(run, configured_reward(run.config))
        run.tracker.__exit__()
        run = open_run(with_options(config, resume=True))
    all_phases(run, configured_reward(run.config))
    run.tracker.__exit__()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cold") / "whole"
    trained(folder, None, pytest.MonkeyPatch)
    return folder


def adapter(folder: Path) -> bytes:
    return (latest_checkpoint(folder) / "model" / "policy" / "adapter_model.safetensors").read_bytes()


def test_the_cold_start_teaches_search_and_becomes_the_reference(whole):
    curve = [row["loss"] for row in read_metrics(whole / COLD_START / "metrics.jsonl")]
    assert len(curve) == 6 and curve[-1] < curve[0]
    progress = json.loads((latest_checkpoint(whole) / "progress.json").read_text())
    assert progress["after_cold_start"]["searches"] > progress["before"]["searches"] + 0.3
    cold = latest_checkpoint(whole / COLD_START) / "model" / "policy" / "adapter_model.safetensors"
    kept = latest_checkpoint(whole) / "model" / "reference" / "adapter_model.safetensors"
    assert list(map(torch.Tensor.tolist, tensors(cold))) == list(map(torch.Tensor.tolist, tensors(kept)))
    first, _ = read_metrics(whole / "metrics.jsonl")
    assert abs(first["kl"]) < 0.02  # of two updates, the first at the reference itself


def test_the_report_shows_the_cold_start_and_rl_starts_from_it(whole):
    page = write_report(whole).read_text()
    assert "<h2>Cold start</h2>" in page and "Cold start: loss" in page
    summary = json.loads((latest_checkpoint(whole) / "progress.json").read_text())
    assert summary["before"] != summary["after_cold_start"]
    metrics = read_metrics(whole / "metrics.jsonl")
    for source, line in eval_series(metrics, summary, "searches").items():
        assert line[0] == (0, summary["after_cold_start"]["by_source"][source]["searches"])


def tensors(path: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return [tensor for _, tensor in sorted(load_file(path).items())]


@pytest.mark.parametrize(
    "stop_at",
    [
        ((module, "imitation_step"), 1),
        ((module, "imitation_step"), 4),
        ((Evaluations, "measure"), 2),
        ((Policy, "freeze_reference"), 1),
    ],
    ids=["before an update", "between updates", "in the evaluation after it", "at the reference"],
)
def test_interrupting_the_cold_start_changes_no_result(whole, tmp_path, monkeypatch, stop_at):
    trained(tmp_path / "run", stop_at, monkeypatch)
    assert adapter(tmp_path / "run") == adapter(whole)
    for name in ("loss", "reward", "kl"):
        rows = [
            [row.get(name) for row in read_metrics(folder / "metrics.jsonl")] for folder in (tmp_path / "run", whole)
        ]
        assert rows[0] == rows[1]
    cold = [read_metrics(folder / COLD_START / "metrics.jsonl") for folder in (tmp_path / "run", whole)]
    assert [row["loss"] for row in cold[0]] == [row["loss"] for row in cold[1]]


def test_a_cold_start_that_breaks_off_tells_how_to_go_on(tmp_path, monkeypatch):
    few = {"cold_start": 8, "cold_start_batch_size": 4, "steps": 1, "eval_questions": 2, "questions_per_step": 2}
    config = resolve(make(TrainConfig, **RUN | few, output_dir=str(tmp_path / "run")))
    real, calls = module.imitation_step, []

    def broken(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise UserError("it broke off")
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="it broke off; step 1 is saved") as told:
        patch.setattr(module, "imitation_step", broken)
        train(config)
    _, _, flags = str(told.value).partition("continue with: python train.py ")
    train_command(shlex.split(flags))
    assert [row["step"] for row in read_metrics(tmp_path / "run" / COLD_START / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "summary.json").is_file()


def test_a_critic_of_whole_weights_begins_before_the_cold_start(tmp_path, monkeypatch):
    settings = {"algorithm": "ppo", "lora_rank": 0, "group_size": 1, "questions_per_step": 8, "cold_start": 16}
    for name, stop_at in (("whole", None), ("stopped", ((module, "imitation_step"), 2))):
        trained(tmp_path / name, stop_at, monkeypatch, **settings)
    whole, stopped = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "stopped"))
    for name in ("loss", "value_loss", "critic_grad_norm"):
        assert [row[name] for row in stopped] == [row[name] for row in whole], name


def test_an_update_that_cannot_move_a_weight_is_not_made():
    flat, config = torch.zeros(4), resolve(TrainConfig())
    assert not teaches(config.objective, 0.0, flat, updates=0)  # the KL to itself has no gradient
    assert teaches(config.objective, 0.0, flat, updates=3)
    no_kl = with_options(config, kl_coef=0.0).objective
    assert not teaches(no_kl, 0.0, flat, updates=3)
    assert teaches(no_kl, 0.0, torch.tensor([0.0, 1.0]), updates=0)
    assert teaches(no_kl, 0.1, flat, updates=0)
    for term in ("entropy_coef", "llds_coef"):
        assert teaches(replace(no_kl, **{term: 0.1}), 0.0, flat, updates=0)


def test_updates_that_are_not_finite_are_logged_and_end_it(tmp_path, monkeypatch):
    """One is skipped and harms no reader of the log; too many in a row end the run, and name the flag of their rate."""
    real, n_skipped = module.imitation_step, 1

    def skipping(policy, optimizer, *rest):
        metrics = real(policy, optimizer, *rest)
        optimizer.skipped_in_a_row = n_skipped
        return metrics | {"grad_norm": float("nan")}

    monkeypatch.setattr(module, "imitation_step", skipping)
    few = {"cold_start": 4, "cold_start_batch_size": 4, "steps": 1, "eval_questions": 2, "questions_per_step": 2}
    trained(tmp_path / "run", None, monkeypatch, **few)
    (row,) = read_metrics(tmp_path / "run" / COLD_START / "metrics.jsonl")
    assert row["grad_norm"] is None
    write_report(tmp_path / "run")
    n_skipped = 50
    with pytest.raises(UserError, match="Lower --cold-start-learning-rate"):
        trained(tmp_path / "other", None, monkeypatch, **few)


def test_a_demonstration_that_finds_no_answer_is_left_out(tmp_path, capsys):
    """It would teach to make answers up; yes, no and what the question names stand in no passage."""
    data = demonstration_file(tmp_path / "q.jsonl", *({"question": f"Is T{n} old?", "answer": "no"} for n in range(4)))
    search = SEARCH.replace(" q ", " Oslo Ferry ")
    passage = {"id": "1", "title": "Oslo Ferry", "text": "The Oslo Ferry was built by Ada Brook."}
    about = {"dataset": "jsonl", "data_path": data, "corpus": demonstration_file(tmp_path / "c.jsonl", passage)}

    def episodes(name: str, *shown: tuple[str, str]) -> list[str | None]:
        rows = [
            {"question": question, "turns": [search, f"<think> b </think>\n<answer> {answer} </answer>"]}
            for question, answer in shown
        ]
        path = demonstration_file(tmp_path / f"{name}.jsonl", *rows)
        run = session_of(tmp_path / name, **about, cold_start=len(rows), demonstrations=path)
        return sorted({episode.answer for episode in scripted_episodes(run)})

    made_up = ("Who built the ship?", "Jo Field")
    shown = [("Who built it?", "Ada Brook"), ("Is it old?", "yes"), ("Is Rome or Bern older?", "Rome")]
    assert episodes("some", made_up, *shown) == ["Ada Brook", "Rome", "yes"]
    told = "cold start: 1 of the demonstrations are left out: no search of theirs finds a passage with their answer"
    assert told in capsys.readouterr().out
    with pytest.raises(UserError, match="none can be imitated; 1 of"):
        episodes("none", made_up)


def test_invalid_turns_are_no_searches():
    assert n_searches([INVALID, SEARCH, ANSWER]) == 1


def test_demonstrations_of_held_out_questions_are_not_shown(tmp_path):
    """Nor are those that are shown asked by an evaluation afterwards."""
    rows = [{"id": str(n), "question": f"Where is T{n}?", "answer": "yes"} for n in range(40)]
    data = demonstration_file(tmp_path / "q.jsonl", *rows)
    corpus = demonstration_file(tmp_path / "c.jsonl", {"id": "1", "title": "T", "text": "yes"})
    shown = [{"question": question, "turns": [ANSWER]} for question in ("Who is new?", *(r["question"] for r in rows))]
    about = {"dataset": "jsonl", "data_path": data, "corpus": corpus, "cold_start": 4}
    about |= {"demonstrations": demonstration_file(tmp_path / "d.jsonl", *shown), "eval_questions": 8}
    run = session_of(tmp_path / "run", **about)
    asked = {question_key(example) for example in run.held_out.examples}
    kept = {question_key(example) for example, _ in demonstrated(run.config, run.held_out.examples)}
    everything = {question_key(Example("", row["question"], ("yes",), "")) for row in shown}
    assert asked and kept == everything - asked
    assert kept <= trained_on([tmp_path / "run"]) and not asked & trained_on([tmp_path / "run"])
    held_out_alone = [{"question": example.question, "turns": [ANSWER]} for example in run.held_out.examples]
    about["demonstrations"] = demonstration_file(tmp_path / "h.jsonl", *held_out_alone)
    with pytest.raises(UserError, match="are of held-out questions"):
        session_of(tmp_path / "other", **about)
