"""The stability watch, the guard against updates that are not finite, and the museum of bugs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr1_mini.core.algorithms import loss_weights
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.questions import Example
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.options.nested import make
from searchr1_mini.run import museum
from searchr1_mini.run.metrics import empty_think
from searchr1_mini.run.watch import QUIET, SIGNS, WINDOW, Watch
from searchr1_mini.storage.files import read_metrics

HEALTHY = {
    "em": 0.6, "reward": 0.6, "kl": 0.1, "entropy": 0.3, "zero_variance_groups": 0.4, "valid_actions": 0.95,
    "response_tokens": 40.0, "overlong": 0.0, "empty_think": 0.1, "correct_loglik_change": 0.01, "grad_norm": 1.0,
    "skipped_updates": 0.0, "logprob_diff_mean": 0.002, "logprob_diff_max": 0.1,
}  # fmt: skip
SICK = {
    "not finite": {"skipped_updates": 0.5},
    "not what was sampled": {"logprob_diff_mean": 0.05, "logprob_diff_max": 8.5},
    "far from the reference": {"kl": 6.0},
    "entropy gone": {"entropy": 0.01, "em": 0.4},
    "entropy bursts": {"entropy": 2.0},
    "all fail": {"zero_variance_groups": 0.95, "em": 0.4},
    "all succeed": {"zero_variance_groups": 0.95},
    "invalid actions": {"valid_actions": 0.2},
    "length runs away": {"response_tokens": 200.0, "overlong": 0.5},
    "thinks nothing": {"empty_think": 0.9},
    "likelihood falls": {"correct_loglik_change": -0.05},
    "reward fell": {"em": 0.1},
}


def test_every_sign_has_a_case():
    assert set(SICK) == set(SIGNS)


@pytest.mark.parametrize("name", SICK)
def test_a_sign_appears_alone_names_a_flag_and_seldom_repeats(name):
    watch = Watch()
    for step in range(1, 11):
        assert watch.see(step, dict(HEALTHY)) == {}
    seen = {step: watch.see(step, HEALTHY | SICK[name]) for step in range(11, 11 + WINDOW + QUIET + 1)}
    told = [step for step, warnings in seen.items() if name in warnings]
    assert {sign for warnings in seen.values() for sign in warnings} == {name}
    assert 11 <= told[0] <= 10 + WINDOW
    assert told[1:] == [told[0] + QUIET]
    assert "--" in seen[told[0]][name] or name == "all succeed"


@pytest.mark.parametrize("name", SICK)
def test_only_non_finite_values_are_a_sign_before_the_window(name):
    warnings = Watch().see(1, HEALTHY | SICK[name])
    assert list(warnings) == (["not finite"] if name == "not finite" else [])


def test_a_resumed_run_remembers_what_was_normal():
    watch = Watch([{"step": step, **HEALTHY} for step in range(1, 11)])
    warnings = [w for step in range(11, 11 + WINDOW) for w in watch.see(step, HEALTHY | SICK["reward fell"])]
    assert warnings == ["reward fell"]


def test_a_resumed_run_does_not_repeat_a_warning_at_once():
    sick = HEALTHY | SICK["not finite"]
    whole, logged = Watch(), []
    for step in range(1, 6):
        whole.see(step, dict(sick))
        logged.append({"step": step, **sick})
    assert Watch(logged).see(6, dict(sick)) == whole.see(6, dict(sick)) == {}


def turn(text: str) -> Segment:
    return Segment("policy", [1], [-1.0], text)


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["<think> I look </think><search> a </search>", "<think> found b </think><answer> b </answer>"], 0.0),
        (["<think> </think><answer> b </answer>"], 1.0),
        (["<answer> b </answer>"], 1.0),
        (["<think> same </think><search> a </search>", "<think> same </think><answer> b </answer>"], 0.5),
        ([f"<think> {'wait ' * 20}</think><answer> b </answer>"], 1.0),
        ([], 1.0),
    ],
)
def test_empty_and_repeated_thoughts(texts, share):
    assert empty_think(Trajectory("q", [Segment("prompt", [1]), *map(turn, texts)])) == share


class TestMuseum:
    def test_retokenizing_trains_on_other_ids_than_were_sampled(self, tokenizer):
        """`>\\n\\n` is one token: cut at the stop string and encoded again, the turn has lost it, and EOS."""
        text = "<think> a </think>\n<search> b </search>"
        ids = tokenizer(text + "\n\n")["input_ids"]
        sampled = Segment("policy", [*ids, tokenizer.eos_token_id], [-1.0] * (len(ids) + 1), text)
        assert tokenizer.decode([ids[-1]]) == ">\n\n"
        bad = museum.retokenized(Trajectory("q", [Segment("prompt", [5, 6]), sampled]), tokenizer)
        assert bad.segments[0].token_ids == [5, 6]
        assert bad.segments[1].token_ids == tokenizer(text)["input_ids"] != sampled.token_ids
        assert all(map(math.isnan, bad.segments[1].logprobs))
        assert sampled.token_ids[-1] == tokenizer.eos_token_id  # the rollout's own record is not touched

    def test_group_numbers_collide_across_sources(self):
        examples = [Example(i, "", (), s) for i, s in ("1a", "1a", "2b", "3a", "4b")]
        assert museum.colliding_group_ids(examples) == [0, 0, 0, 1, 1]

    @given(st.data())
    def test_denominators(self, data):
        ids = st.lists(st.integers(1, 9), min_size=1, max_size=4)
        rows = []
        for _ in range(data.draw(st.integers(1, 3))):
            observation, policies = data.draw(ids), [data.draw(ids) for _ in range(2)]
            segments = [Segment("policy", p, [-1.0] * len(p)) for p in policies]
            rows.append(Trajectory("q", [Segment("prompt", [1]), segments[0], Segment("observation", observation),
                                         segments[1]]))  # fmt: skip
        batch = build_batch(rows, [0.0] * len(rows), list(range(len(rows))), 0)
        over_all = museum.weights_over_all_tokens(batch.loss_mask)
        assert over_all.sum().item() == pytest.approx(batch.loss_mask.sum().item() / batch.loss_mask.numel())
        by_length = museum.weights_by_whole_length(batch.loss_mask)
        for row, trajectory in enumerate(rows):
            share = trajectory.n_policy_tokens / (len(trajectory.token_ids) - 1)
            assert by_length[row].sum().item() == pytest.approx(share / len(rows), rel=1e-5)
        assert (loss_weights(batch.loss_mask, "sequence").sum(1) >= by_length.sum(1) - 1e-6).all()

    def test_the_whole_text_pays_for_a_passage(self):
        seen = Trajectory("q", [Segment("prompt", [1], text="Who?"), Segment("observation", [2], text="It is Rome.")])
        assert museum.whole_text_reward(seen, ["rome"]) == 1.0
        assert museum.whole_text_reward(seen, ["Romeo"]) == 0.0


def test_non_finite_updates_are_skipped_and_stop_the_run(tmp_path, monkeypatch):
    """From the third step on the loss is nan: no weight moves, the run saves, and ends in one sentence."""
    from searchr1_mini.core import training
    from searchr1_mini.core.errors import UserError
    from searchr1_mini.options.config import TrainConfig
    from searchr1_mini.options.resolve import resolve
    from searchr1_mini.run.training import train
    from searchr1_mini.storage.files import read_jsonl

    sound = training.policy_loss

    def policy_loss(*arguments, **options):
        loss, stats = sound(*arguments, **options)
        return (loss * math.nan if len(list(tmp_path.glob("run/rollouts/*"))) >= 2 else loss), stats

    monkeypatch.setattr(training, "policy_loss", policy_loss)
    config = resolve(
        make(
            TrainConfig, questions_per_step=8, group_size=8, eval_questions=2, steps=9, mini_batches=1,
            max_skipped_updates=2, tensorboard=False, output_dir=str(tmp_path / "run"), drop_zero_variance=False,
            save_every=2,
        )
    )  # fmt: skip
    with pytest.raises(UserError, match=r"last 2 updates .*step-000004.*--learning-rate"):
        train(config)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["skipped_updates"] for row in rows] == [0, 0, 1, 1]
    warnings = read_jsonl(tmp_path / "run" / "warnings.jsonl")
    assert [w["step"] for w in warnings if "not finite" in w["warning"]] == [3]
    from safetensors.torch import load_file

    weights = [
        load_file(tmp_path / "run" / "checkpoints" / f"step-{n:06d}" / "model/policy/adapter_model.safetensors")
        for n in (2, 4)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
