"""What a step learns, from its rollouts to the gradient, against a loop over tokens and the model's own logits.

Nothing here is at its default: temperature, clips, coefficients and weights are such that a factor that is dropped, an
argument that is swapped or a mask that is off by one shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import pytest
import torch
from sessions import session_of
from torch import Tensor

from searchr1_mini import update
from searchr1_mini.algorithms import group_advantages
from searchr1_mini.batch import build_batch
from searchr1_mini.session import Session
from searchr1_mini.training import collect
from searchr1_mini.trajectory import Trajectory

CLIPS = {"clip_eps": 0.1, "clip_eps_high": 0.3}
COMMON = {"temperature": 0.8, "tokens_per_micro_batch": 700, "importance_cap": 1.1, "entropy_coef": 0.05, **CLIPS}
GRPO = COMMON | {"kl_coef": 0.3, "llds_coef": 0.2, "max_new_tokens": 40}
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
    """A run at its first step, its trajectories, what `prepare` makes of them, and all policy tokens row by row."""

    run: Session
    trajectories: list[Trajectory]
    rewards: list[float]
    experience: update.Experience
    metrics: dict[str, float]
    rows: list[list[Token]]


def shake(parameters, seed: int, std: float) -> None:
    """Moves weights as updates would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += std * torch.randn(parameter.shape, generator=generator)


def logprobs_of(run: Session, trajectory: Trajectory) -> tuple[list[Tensor], list[Tensor]]:
    """Log-prob and entropy at every position of a trajectory, by the model as transformers and peft have it."""
    ids = torch.tensor([trajectory.token_ids])
    logits = run.policy.model(input_ids=ids).logits[0, :-1].float() / run.config.temperature
    full = logits.log_softmax(-1)
    chosen = full[torch.arange(len(full)), ids[0, 1:]]
    return [None, *chosen], [None, *-(full.exp() * full).sum(-1)]


def values_of(run: Session, trajectory: Trajectory) -> list[Tensor]:
    """The critic's value of the state before every position."""
    run.policy.model.set_adapter("critic")
    hidden = run.policy.model.get_base_model().model(input_ids=torch.tensor([trajectory.token_ids])).last_hidden_state
    return [None, *run.critic.head(hidden[0, :-1])[:, 0]]


def case_of(folder, settings: dict) -> Case:
    """Rollouts of a policy that has moved from its reference, by a sampler whose log-probs are a little off."""
    run = session_of(folder, **settings)
    shake(run.policy.trainable(), 0, 0.1)
    if run.critic:
        shake(run.critic.parameters(), 1, 0.05)
        run.policy.activate("policy")
    rollouts = collect(run, 1)
    generator = torch.Generator().manual_seed(2)
    for trajectory in rollouts.trajectories:
        for segment in trajectory.of_kind("policy"):
            noise = 0.2 * torch.randn(len(segment.logprobs), generator=generator)
            segment.logprobs = [p + float(e) for p, e in zip(segment.logprobs, noise, strict=True)]
    rewards = [row * 7 % 5 / 5 for row in range(len(rollouts.trajectories))]  # of such a policy all would be alike
    batch = build_batch(rollouts.trajectories, rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
    advantages = None if run.critic else group_advantages(batch.rewards, batch.group_ids)
    experience, metrics = update.prepare(run, batch, advantages)
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
    return Case(run, rollouts.trajectories, rewards, experience, metrics, rows)


def add_group_advantages(case: Case) -> None:
    size = case.run.config.group_size
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
    assert fmean(abs(t.trainer - t.reference) for t in tokens) > 0.02  # or nothing would be compared
    assert len({round(t.importance, 3) for t in tokens}) > 20 and max(abs(t.advantage) for t in tokens) > 0.5


def test_ppo_prepares_what_a_loop_over_tokens_does(ppo):
    compare(ppo, ppo.experience.values, "value")
    compare(ppo, ppo.experience.returns, "target")
    compare(ppo, ppo.experience.advantages, "advantage", atol=1e-3)
    compare(ppo, ppo.experience.importance, "importance")
    assert ppo.experience.ref_logprobs is None  # its KL is in the reward, and must not count twice
    tokens = [token for row in ppo.rows for token in row]
    assert ppo.metrics["kl"] == pytest.approx(fmean(t.trainer - t.reference for t in tokens), abs=1e-4)
    assert ppo.metrics["value_mean"] == pytest.approx(fmean(t.value for t in tokens), abs=1e-4)
    rest = stdev(t.target - t.value for t in tokens) / stdev(t.target for t in tokens)
    assert ppo.metrics["explained_variance"] == pytest.approx(1 - rest**2, abs=1e-3)
    assert stdev(t.value for t in tokens) > 0.02


def weight_of(case: Case, tokens: list[Token]) -> float:
    """What one token of this row counts in the loss."""
    n_rows, n_tokens = len(case.rows), sum(map(len, case.rows))
    how = case.run.config.loss_aggregation
    return {"token": 1 / n_tokens, "sequence": 1 / n_rows / len(tokens), "constant": 1 / n_rows / 40}[how]


def policy_loss(case: Case) -> tuple[Tensor, dict[str, float]]:
    """The step's loss as one sum over tokens, and what the log should tell of it."""
    config, loss = case.run.config, torch.zeros(())
    told = dict.fromkeys(("policy_loss", "approx_kl", "entropy", "clip_fraction"), 0.0)
    ratios, changes = [], []
    for tokens, trajectory in zip(case.rows, case.trajectories, strict=True):
        now, entropies = logprobs_of(case.run, trajectory)
        changes += [now[t.at].item() - t.trainer for t in tokens]
        mean_change = sum(now[t.at] - t.trainer for t in tokens) / len(tokens)
        fell_as_a_whole = sum(t.trainer - now[t.at].item() for t in tokens) > 0
        for token in tokens:
            weight, change = weight_of(case, tokens), now[token.at] - token.trainer
            ratio = (change if config.ratio == "token" else mean_change).exp()
            free, clipped = ratio * token.advantage, ratio.clamp(0.9, 1.3) * token.advantage
            surrogate = -torch.minimum(free, clipped) * token.importance
            loss = loss + weight * (surrogate - config.entropy_coef * entropies[token.at])
            if not case.run.critic:
                d = token.reference - now[token.at]
                loss = loss + weight * config.kl_coef * (d.exp() - d - 1)
                if token.advantage >= 0 and fell_as_a_whole:
                    loss = loss + weight * config.llds_coef * torch.relu(-change)
            told["policy_loss"] += weight * surrogate.item()
            told["approx_kl"] += weight * (change.exp() - change - 1).item()
            told["entropy"] += weight * entropies[token.at].item()
            told["clip_fraction"] += weight * (clipped < free).item()
            ratios.append(ratio.item())
    told |= {"ratio_max": max(ratios), "loss": loss.item()}
    return loss, told | {"logprob_diff_max": max(map(abs, changes)), "logprob_diff_mean": fmean(map(abs, changes))}


def gradients_of(loss: Tensor, parameters: list) -> list[Tensor]:
    return [g if g is not None else torch.zeros(()) for g in torch.autograd.grad(loss, parameters, allow_unused=True)]


def step_of(case: Case, monkeypatch) -> tuple[dict[str, float], list[list[Tensor]]]:
    """What an optimiser step logs, and the gradient that it would apply, by the optimiser's groups."""
    found = []

    def keep(run, loss):
        found.extend([weight.grad.clone() for weight in group["params"]] for group in run.optimizer.param_groups)
        run.optimizer.zero_grad(set_to_none=True)
        return {}

    monkeypatch.setattr(update, "apply_gradients", keep)
    return update.optimiser_step(case.run, case.experience, is_first=True), found


def assert_same_gradients(found: list[Tensor], wanted: list[Tensor]) -> None:
    scale = max(gradient.abs().max() for gradient in wanted)
    assert scale > 1e-4
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two.expand_as(one), rtol=0, atol=2e-3 * scale.item())


@pytest.mark.parametrize(
    ("aggregation", "ratio"), [("token", "token"), ("sequence", "sequence"), ("constant", "token")]
)
def test_the_gradient_of_grpo_is_that_of_a_loop_over_tokens(grpo, aggregation, ratio, monkeypatch):
    object.__setattr__(grpo.run.config, "loss_aggregation", aggregation)
    object.__setattr__(grpo.run.config, "ratio", ratio)
    logged, (found,) = step_of(grpo, monkeypatch)
    loss, told = policy_loss(grpo)
    assert told["clip_fraction"] > 0
    assert {name: logged[name] for name in told} == pytest.approx(told, rel=2e-3, abs=1e-4)
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
