"""What a step learns, from its rollouts to the gradient, against a loop over tokens and the model's own logits.

Nothing here is at its default: temperature, clips, coefficients and weights are such that a factor that is dropped, an
argument that is swapped or a mask that is off by one shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, stdev

import pytest
import torch
from helpers.sessions import collect, losses_of, prepare, session_of, train_step
from torch import Tensor

from searchr1_mini.core import interrupt
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.experience import Experience
from searchr1_mini.core.optimizer import Losses
from searchr1_mini.core.training import weighted
from searchr1_mini.core.trajectory import Trajectory
from searchr1_mini.options.nested import with_options
from searchr1_mini.run.run import Run
from searchr1_mini.run.variant import configured_variant

pytestmark = pytest.mark.filterwarnings("ignore:Seems like `optimizer.step")
CLIPS = {"clip_eps": 0.1, "clip_eps_high": 0.3}
COMMON = {"temperature": 0.8, "tokens_per_micro_batch": 700, "importance_cap": 1.1, "entropy_coef": 0.05, **CLIPS}
GRPO = COMMON | {"kl_coef": 0.3, "llds_coef": 0.2, "max_new_tokens": 40, "drop_zero_variance": False}
PPO = COMMON | {
    "algorithm": "ppo", "group_size": 1, "questions_per_step": 8, "kl_coef": 0.3, "gamma": 0.9, "gae_lambda": 0.8,
    "value_clip": 0.05,
}  # fmt: skip


@dataclass
class Token:
    """One policy token: its row, its position, and what was true of it before the weights moved."""

    row: int
    at: int
    sampler: float = 0.0
    trainer: float = 0.0
    reference: float = 0.0
    value: float = 0.0
    advantage: float = 0.0
    target: float = 0.0

    @property
    def importance(self) -> float:
        return min(math.exp(self.trainer - self.sampler), COMMON["importance_cap"])


@dataclass
class Case:
    """A run at its first step, its trajectories, what its update needs, and all policy tokens row by row."""

    run: Run
    trajectories: list[Trajectory]
    rewards: list[float]
    experience: Experience
    rows: list[list[Token]]


def shake(parameters, seed: int, std: float) -> None:
    """Moves weights as updates would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += std * torch.randn(parameter.shape, generator=generator)


def logprobs_of(run: Run, trajectory: Trajectory) -> tuple[list[Tensor], list[Tensor]]:
    """Log-prob and entropy at every position of a trajectory, by the model as transformers and peft have it."""
    ids = torch.tensor([trajectory.token_ids])
    logits = run.policy.model(input_ids=ids).logits[0, :-1].float() / run.config.rollout.temperature
    full = logits.log_softmax(-1)
    chosen = full[torch.arange(len(full)), ids[0, 1:]]
    return [None, *chosen], [None, *-(full.exp() * full).sum(-1)]


def values_of(run: Run, trajectory: Trajectory) -> list[Tensor]:
    """The critic's value of the state before every position."""
    run.policy.model.set_adapter("critic")
    hidden = run.policy.model.get_base_model().model(input_ids=torch.tensor([trajectory.token_ids])).last_hidden_state
    return [None, *run.critic.head(hidden[0, :-1])[:, 0]]


def case_of(folder, settings: dict) -> Case:
    """Rollouts of the base, with searches, to learn from by a policy that is elsewhere; a sampler that is off."""
    run = session_of(folder, **settings)
    rollouts = collect(run, 1)
    shake(run.policy.trainable(), 0, 0.06)
    if run.critic:
        shake(run.critic.parameters(), 1, 0.05)
        run.policy.activate("policy")
    generator = torch.Generator().manual_seed(2)
    for trajectory in rollouts.trajectories:
        for segment in trajectory.of_kind("policy"):
            noise = 0.2 * torch.randn(len(segment.logprobs), generator=generator)
            segment.logprobs = [p + float(e) for p, e in zip(segment.logprobs, noise, strict=True)]
    rewards = [row * 7 % 5 / 5 for row in range(len(rollouts.trajectories))]
    batch = build_batch(rollouts.trajectories, rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    experience = prepare(run, batch)
    rows = []
    with torch.no_grad():
        for row, trajectory in enumerate(rollouts.trajectories):
            now, _ = logprobs_of(run, trajectory)
            with run.policy.model.disable_adapter():
                reference, _ = logprobs_of(run, trajectory)
            values = values_of(run, trajectory) if run.critic else now
            run.policy.activate("policy")
            rows.append([])
            at = 0
            for segment in trajectory.segments:
                for offset, sampler in enumerate(segment.logprobs):
                    p = at + offset
                    rows[-1].append(Token(row, p, sampler, float(now[p]), float(reference[p]), float(values[p])))
                at += len(segment.token_ids)
    return Case(run, rollouts.trajectories, rewards, experience, rows)


def add_group_advantages(case: Case) -> None:
    size = case.run.config.optimization.group_size
    for row, tokens in enumerate(case.rows):
        first = row // size * size
        paid = case.rewards[first : first + size]
        scale = stdev(paid) + 1e-6 if len(set(paid)) > 1 else 1.0
        for token in tokens:
            token.advantage = (case.rewards[row] - fmean(paid)) / scale


def add_ppo_targets(case: Case) -> None:
    """Rewards with the KL inside, GAE from the last token to the first, then whitened over the step."""
    for tokens, reward in zip(case.rows, case.rewards, strict=True):
        next_value = next_advantage = 0.0
        for token in reversed(tokens):
            paid = -PPO["kl_coef"] * (token.trainer - token.reference) + (reward if token is tokens[-1] else 0.0)
            delta = paid + PPO["gamma"] * next_value - token.value
            next_advantage = delta + PPO["gamma"] * PPO["gae_lambda"] * next_advantage
            token.advantage, token.target, next_value = next_advantage, next_advantage + token.value, token.value
    everything = [token for tokens in case.rows for token in tokens]
    mean, std = fmean(t.advantage for t in everything), stdev(t.advantage for t in everything)
    for token in everything:
        token.advantage = (token.advantage - mean) / std


@pytest.fixture(autouse=True)
def nothing_is_held() -> Iterator[None]:
    """What applies a gradient here ends no step of a run."""
    yield
    interrupt.clear()


@pytest.fixture(scope="module")
def grpo(tmp_path_factory) -> Case:
    case = case_of(tmp_path_factory.mktemp("run") / "grpo", GRPO)
    add_group_advantages(case)
    shake(case.run.policy.trainable(), 3, 0.04)  # as earlier mini-batches of the step would move it
    return case


@pytest.fixture(scope="module")
def ppo(tmp_path_factory) -> Case:
    case = case_of(tmp_path_factory.mktemp("run") / "ppo", PPO)
    add_ppo_targets(case)
    shake(case.run.policy.trainable(), 3, 0.04)
    shake(case.run.critic.parameters(), 4, 0.02)
    return case


def compare(case: Case, tensor: Tensor, of: str, atol: float = 1e-4) -> None:
    """A tensor of the experience holds this number of every policy token, and 0 (or nothing) anywhere else."""
    wanted = torch.zeros(tensor.shape)
    for tokens in case.rows:
        for token in tokens:
            wanted[token.row, token.at - 1] = getattr(token, of)
    found = torch.where(case.experience.batch.loss_mask, tensor.detach(), 0.0)
    torch.testing.assert_close(found, wanted, atol=atol, rtol=1e-3)


def test_grpo_prepares_what_a_loop_over_tokens_does(grpo):
    compare(grpo, grpo.experience.batch.old_logprobs, "trainer")
    compare(grpo, grpo.experience.ref_logprobs, "reference")
    compare(grpo, grpo.experience.importance, "importance")
    compare(grpo, grpo.experience.advantages, "advantage")
    tokens = [token for row in grpo.rows for token in row]
    assert any(segment.kind == "observation" for t in grpo.trajectories for segment in t.segments[:-1])
    assert fmean(abs(t.trainer - t.reference) for t in tokens) > 0.02  # or nothing would be compared
    assert len({round(t.importance, 3) for t in tokens}) > 20 and max(abs(t.advantage) for t in tokens) > 0.5


def test_ppo_prepares_what_a_loop_over_tokens_does(ppo):
    compare(ppo, ppo.experience.values, "value")
    compare(ppo, ppo.experience.returns, "target")
    compare(ppo, ppo.experience.advantages, "advantage", atol=1e-3)
    compare(ppo, ppo.experience.importance, "importance")
    assert ppo.experience.ref_logprobs is None  # its KL is in the reward, and must not count twice
    tokens = [token for row in ppo.rows for token in row]
    assert ppo.experience.metrics["kl"] == pytest.approx(fmean(t.trainer - t.reference for t in tokens), abs=1e-4)
    assert ppo.experience.metrics["value_mean"] == pytest.approx(fmean(t.value for t in tokens), abs=1e-4)
    rest = stdev(t.target - t.value for t in tokens) / stdev(t.target for t in tokens)
    assert ppo.experience.metrics["explained_variance"] == pytest.approx(1 - rest**2, abs=1e-3)
    assert stdev(t.value for t in tokens) > 0.02


@contextmanager
def other_options(run: Run, **settings) -> Iterator[None]:
    """Inside, the run and its optimizer have other options; weights stay."""
    before, run.config = run.config, with_options(run.config, **settings)
    run.optimizer.config = run.config.optimization
    try:
        yield
    finally:
        run.config, run.optimizer.config = before, before.optimization


def weight_of(case: Case, tokens: list[Token]) -> float:
    """What one token of this row counts in the loss."""
    n_rows, n_tokens = len(case.rows), sum(map(len, case.rows))
    how = case.run.config.objective.loss_aggregation
    return {"token": 1 / n_tokens, "sequence": 1 / n_rows / len(tokens), "constant": 1 / n_rows / 40}[how]


def policy_loss(case: Case) -> tuple[Tensor, dict[str, float]]:
    """The step's loss as one sum over tokens, and what the log should tell of it."""
    config, loss = case.run.config, torch.zeros(())
    told = dict.fromkeys(("policy_loss", "approx_kl", "entropy", "clip_fraction"), 0.0)
    bounds = 1 - config.objective.clip_eps, 1 + config.objective.clip_eps_high
    ratios, changes, share = [], [], 0.0
    for tokens, trajectory in zip(case.rows, case.trajectories, strict=True):
        now, entropies = logprobs_of(case.run, trajectory)
        changes += [now[t.at].item() - t.sampler for t in tokens]
        mean_change = sum(now[t.at] - t.trainer for t in tokens) / len(tokens)
        fell_as_a_whole = sum(t.trainer - now[t.at].item() for t in tokens) > 0
        for token in tokens:
            weight, change = weight_of(case, tokens), now[token.at] - token.trainer
            ratio = (change if config.variant.ratio == "token" else mean_change).exp()
            free, clipped = ratio * token.advantage, ratio.clamp(*bounds) * token.advantage
            surrogate = -torch.minimum(free, clipped) * token.importance
            loss = loss + weight * (surrogate - config.objective.entropy_coef * entropies[token.at])
            if not case.run.critic:
                d = token.reference - now[token.at]
                loss = loss + weight * config.objective.kl_coef * (d.exp() - d - 1)
                if token.advantage >= 0 and fell_as_a_whole:
                    loss = loss + weight * config.objective.llds_coef * torch.relu(-change)
            told["policy_loss"] += weight * surrogate.item()
            share += weight
            told["approx_kl"] += weight * (change.exp() - change - 1).item()
            told["entropy"] += weight * entropies[token.at].item()
            told["clip_fraction"] += weight * (clipped < free).item()
            ratios.append(ratio.item())
    told |= {name: told[name] / share for name in ("approx_kl", "entropy", "clip_fraction")}  # means per token
    told |= {"ratio_max": max(ratios), "loss": loss.item()}
    return loss, told | {"logprob_diff_max": max(map(abs, changes)), "logprob_diff_mean": fmean(map(abs, changes))}


def gradients_of(loss: Tensor, parameters: list) -> list[Tensor]:
    return [g if g is not None else torch.zeros(()) for g in torch.autograd.grad(loss, parameters, allow_unused=True)]


def optimizer_step(case: Case, losses: Losses, is_first: bool = True) -> dict[str, float]:
    """What an optimizer step on all of it logs; `is_first`: of its step of the run."""
    optimizer = case.run.optimizer
    optimizer.begin(1, n_updates=1)
    optimizer.logs = [] if is_first else [{}]
    optimizer.step(weighted(case.experience, case.run.config, configured_variant(case.run.config)), losses)
    return optimizer.logs[-1]


def step_of(case: Case, monkeypatch) -> tuple[dict[str, float], list[list[Tensor]]]:
    """What an optimizer step logs, and the gradient that it would apply, by the optimizer's groups."""
    optimizer, losses, found = case.run.optimizer, losses_of(case.run, monkeypatch), []

    def keep(loss):
        found.extend([weight.grad.clone() for weight in group["params"]] for group in optimizer.adamw.param_groups)
        optimizer.zero_grad()
        return {}

    monkeypatch.setattr(optimizer, "apply_gradients", keep)
    return optimizer_step(case, losses), found


def assert_same_gradients(found: list[Tensor], wanted: list[Tensor]) -> None:
    scale = max(gradient.abs().max() for gradient in wanted)
    assert scale > 1e-4
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two.expand_as(one), rtol=0, atol=2e-3 * scale.item())


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_aggregation": "token"},
        {"loss_aggregation": "constant"},
        {"loss_aggregation": "sequence", "ratio": "sequence", "clip_eps": 0.01, "clip_eps_high": 0.03},
    ],
    ids=lambda settings: settings["loss_aggregation"],
)
def test_the_gradient_of_grpo_is_that_of_a_loop_over_tokens(grpo, settings, monkeypatch):
    with other_options(grpo.run, **settings):
        logged, (found,) = step_of(grpo, monkeypatch)
        loss, told = policy_loss(grpo)
    assert told["clip_fraction"] > 0
    assert {name: logged[name] for name in told} == pytest.approx(told, rel=2e-3, abs=1e-4)
    assert_same_gradients(found, gradients_of(loss, grpo.run.policy.trainable()))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_rows_without_an_advantage_are_not_computed(grpo, aggregation, monkeypatch):
    """They count in the weights of the others, as in the loop; with a KL or an entropy they have a gradient too."""
    flat = range(0, len(grpo.rows), 3)
    monkeypatch.setattr(grpo.experience, "advantages", grpo.experience.advantages.clone())
    grpo.experience.advantages[flat] = 0.0
    for token in (token for row in flat for token in grpo.rows[row]):
        monkeypatch.setattr(token, "advantage", 0.0)
    bare = {"kl_coef": 0.0, "entropy_coef": 0.0, "llds_coef": 0.0, "loss_aggregation": aggregation}
    bare["weight_decay"] = 0.1  # for which the loop makes an update in any case
    with other_options(grpo.run, **bare):
        variant = configured_variant(grpo.run.config)
        assert len(weighted(grpo.experience, grpo.run.config, variant).batch.rewards) == len(grpo.rows) - len(flat)
        for term in ("kl_coef", "entropy_coef", "llds_coef"):
            with other_options(grpo.run, **bare | {term: 0.1}):
                all_rows = weighted(grpo.experience, grpo.run.config, configured_variant(grpo.run.config))
                assert len(all_rows.batch.rewards) == len(grpo.rows), term
        logged, (found,) = step_of(grpo, monkeypatch)
        loss, told = policy_loss(grpo)
    assert logged["policy_loss"] == pytest.approx(told["policy_loss"], rel=2e-3, abs=1e-4)
    assert_same_gradients(found, gradients_of(loss, grpo.run.policy.trainable()))


def test_the_gradients_of_ppo_are_those_of_a_loop_over_tokens(ppo, monkeypatch):
    logged, (of_policy, of_critic) = step_of(ppo, monkeypatch)
    loss, told = policy_loss(ppo)
    assert {name: logged[name] for name in told} == pytest.approx(told, rel=2e-3, abs=1e-4)
    assert_same_gradients(of_policy, gradients_of(loss, ppo.run.policy.trainable()))
    total, n_tokens, n_clipped = torch.zeros(()), sum(map(len, ppo.rows)), 0
    for tokens, trajectory in zip(ppo.rows, ppo.trajectories, strict=True):
        values = values_of(ppo.run, trajectory)
        for token in tokens:
            free = (values[token.at] - token.target) ** 2
            near = token.value + (values[token.at] - token.value).clamp(-PPO["value_clip"], PPO["value_clip"])
            clipped = (near - token.target) ** 2
            total = total + torch.maximum(free, clipped) / 2 / n_tokens
            n_clipped += (clipped > free).item()
    wanted = gradients_of(total, ppo.run.critic.parameters())
    ppo.run.policy.activate("policy")
    assert 0 < n_clipped < n_tokens
    assert logged["value_loss"] == pytest.approx(total.item(), rel=1e-3)
    assert_same_gradients(of_critic, wanted)


def test_later_updates_tell_what_became_of_right_trajectories(grpo, monkeypatch):
    losses = losses_of(grpo.run, monkeypatch)
    monkeypatch.setattr(grpo.run.optimizer, "apply_gradients", lambda loss: grpo.run.optimizer.zero_grad() or {})
    logged = optimizer_step(grpo, losses, is_first=False)
    changes = []
    with torch.no_grad():
        for tokens, trajectory, reward in zip(grpo.rows, grpo.trajectories, grpo.rewards, strict=True):
            now, _ = logprobs_of(grpo.run, trajectory)
            changes += [now[t.at].item() - t.trainer for t in tokens if reward > 0.5]
    assert logged["correct_loglik_change"] == pytest.approx(fmean(changes), abs=1e-4)
    assert "logprob_diff_max" not in logged and len(changes) < sum(map(len, grpo.rows))


def test_unmasked_observations_get_log_probs_of_a_forward_pass(grpo):
    """Nobody sampled them; what was sampled keeps the sampler's."""
    run, row = grpo.run, next(row for row, t in enumerate(grpo.trajectories) if t.retrieved)
    batch = build_batch(grpo.trajectories[row : row + 1], [1.0], [0], run.policy.tokenizer.pad_token_id, False)
    assert batch.old_logprobs.isnan().any()
    with other_options(run, importance_cap=None, mask_observations=False):
        experience = prepare(run, batch)
    with torch.no_grad():
        now, _ = logprobs_of(run, grpo.trajectories[row])
    kinds = [(s.kind, p) for s in grpo.trajectories[row].segments for p in s.logprobs or [None] * len(s.token_ids)]
    wanted = [{"prompt": 0.0, "policy": p, "observation": now[at]}[kind] for at, (kind, p) in enumerate(kinds)][1:]
    assert experience.batch.old_logprobs[0].tolist() == pytest.approx([float(p) for p in wanted], abs=1e-4)
    assert experience.importance is None
    assert experience.advantages[0].tolist() == [float(kind != "prompt") for kind, _ in kinds][1:]


def test_every_pass_takes_all_groups_in_mini_batches_of_its_own(grpo, monkeypatch):
    optimizer, seen = grpo.run.optimizer, []

    def one(experience, losses):
        is_first = optimizer.is_first_update
        seen.append((experience.batch.group_ids.tolist(), is_first))
        optimizer.updates += 1
        told = {"entropy": float(len(seen)), "learning_rate": 10.0 * len(seen)}
        optimizer.logs.append(told if is_first else told | {"correct_loglik_change": float(len(seen))})

    monkeypatch.setattr(optimizer, "step", one)
    splits = set()
    with other_options(grpo.run, epochs=2, mini_batches=2):
        for _ in range(3):
            seen.clear()
            logged = train_step(grpo.run, 1)
            assert [is_first for _, is_first in seen] == [True, False, False, False]
            for first, second in (seen[:2], seen[2:]):
                assert sorted(first[0] + second[0]) == sorted([0, 1, 2, 3] * 4) and len(first[0]) == 8
                assert not set(first[0]) & set(second[0])
                splits.add(tuple(first[0]))
            told = {"entropy": 2.5, "learning_rate": 40.0, "correct_loglik_change": 3.0}
            assert optimizer.metrics() == told and {name: logged[name] for name in told} == told
    assert len(splits) > 1


@contextmanager
def optimizer_that_waits(run: Run) -> Iterator[list[list[list[Tensor]]]]:
    """Inside, no step is taken; collects the gradients that would have been, by the optimizer's groups."""
    seen, groups = [], run.optimizer.adamw.param_groups
    with pytest.MonkeyPatch.context() as patch:
        note = lambda *_: seen.append([[p.grad.clone() for p in group["params"]] for group in groups])  # noqa: E731
        patch.setattr(run.optimizer.adamw, "step", note)
        yield seen


def norm(gradients: list[Tensor]) -> float:
    return math.sqrt(sum(gradient.square().sum().item() for gradient in gradients))


def set_gradients(run: Run, norms: tuple[float, ...]) -> None:
    for group, length in zip(run.optimizer.adamw.param_groups, norms, strict=True):
        n = sum(parameter.numel() for parameter in group["params"])
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, length / math.sqrt(n))


def test_policy_and_critic_are_clipped_each_by_its_own_norm(ppo):
    run = ppo.run
    before = run.optimizer.updates
    set_gradients(run, (10.0, 0.25))
    with optimizer_that_waits(run) as applied:
        told = run.optimizer.apply_gradients(0.5)
    assert (told["grad_norm"], told["critic_grad_norm"]) == pytest.approx((10, 0.25), rel=1e-4)
    assert [norm(group) for group in applied[0]] == pytest.approx([run.config.optimization.grad_clip, 0.25], rel=1e-4)
    assert run.config.optimization.grad_clip == 1.0 and run.optimizer.updates == before + 1
    assert all(parameter.grad is None for group in run.optimizer.adamw.param_groups for parameter in group["params"])


def test_non_finite_updates_are_skipped_and_counted(ppo):
    """The count starts again at the next sound update."""
    run = ppo.run
    run.optimizer.skipped_in_a_row = 0
    with optimizer_that_waits(run) as applied:
        for loss, norms in ((0.5, (math.nan, 1.0)), (0.5, (1.0, math.inf)), (math.nan, (1.0, 1.0))):
            set_gradients(run, norms)
            assert run.optimizer.apply_gradients(loss)["skipped_updates"] == 1.0
        assert (run.optimizer.skipped_in_a_row, applied) == (3, [])
        set_gradients(run, (1.0, 1.0))
        assert run.optimizer.apply_gradients(0.5)["skipped_updates"] == 0.0
        assert run.optimizer.skipped_in_a_row == 0 and len(applied) == 1


def test_a_scaled_loss_has_the_gradient_of_one_that_is_not(ppo, monkeypatch):
    """As with float16: scaled before the backward pass, of policy and critic alike, and back before the clip."""
    run, found = ppo.run, []
    losses, plain = losses_of(run, monkeypatch), run.optimizer.scaler
    with other_options(run, grad_clip=1e9), optimizer_that_waits(run) as applied:
        for scaler in (plain, torch.amp.GradScaler("cpu", init_scale=256.0)):
            run.optimizer.scaler = scaler
            found.append(optimizer_step(ppo, losses))
        run.optimizer.scaler = plain
    for name in ("loss", "value_loss", "grad_norm", "critic_grad_norm"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3), name
    for one, two in zip(*applied, strict=True):
        assert_same_gradients(one, two)


def test_weight_decay_and_the_critics_rate_reach_the_optimizer(tmp_path):
    run = session_of(tmp_path / "run", **PPO | {"weight_decay": 0.1, "critic_learning_rate": 1e-5})
    policy, critic = run.optimizer.adamw.param_groups
    assert policy["weight_decay"] == critic["weight_decay"] == 0.1
    assert (policy["lr"], critic["lr"]) == (3e-3, 1e-5)
    assert {id(p) for p in critic["params"]} == {id(p) for p in run.critic.parameters()}
    assert {id(p) for p in policy["params"]} == {id(p) for p in run.policy.trainable()}
