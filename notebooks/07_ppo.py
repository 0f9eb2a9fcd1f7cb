# %% [markdown]
# # 7. PPO, the critic and GAE
#
# GRPO asks a question several times and compares the answers. PPO asks it once and compares with a *critic*: a value
# $V(s_t)$ of what is to be expected from here on. That gives every token an advantage of its own. With search there is a
# difficulty in the middle of a trajectory: tokens that the engine wrote, which are not steps of the policy at all.

# %%
import tempfile

import matplotlib.pyplot as plt
import torch
from exercises import check, check_code
from IPython.utils.capture import capture_output
from lesson import BLUE, GREEN, ORANGE, one_step

from searchr1_mini.core.algorithms import explained_variance, gae, token_rewards, value_loss
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.experience import all_values, prepare_ppo, update_rows
from searchr1_mini.core.training import collect
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.evaluations import measured
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.training import configured_reward

# %% [markdown]
# ## A trajectory with an observation in its middle
#
# Our trajectory has twelve tokens: five of the policy (a thought and a search), four of the engine, and three of the
# policy (the answer). There is a value at every position, since a forward gives them for all; those at the engine's
# tokens mean nothing. The reward comes with the last token, as in Search-R1 (equation 2;
# `core/algorithms.py:token_rewards`).

# %%
mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1]], dtype=torch.bool)
values = torch.tensor([[0.30, 0.32, 0.35, 0.33, 0.40, 9.0, -9.0, 9.0, 5.0, 0.70, 0.80, 0.85]])
rewards = token_rewards(torch.tensor([1.0]), mask, None, 0.0)
print(rewards[0].tolist())

# %% [markdown]
# ## GAE by hand
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma \lambda A_{t+1}$$
#
# GAE, [arXiv 1506.02438](https://arxiv.org/abs/1506.02438), equation 16; `core/algorithms.py:gae`. Here t counts only
# tokens of the policy: the step after the fifth token is the tenth. By hand, we take out the engine's tokens, run the
# recursion over the eight that are left, and put the results back in place. (Search-R1 sets $\gamma = \lambda = 1$;
# smaller numbers show more.)

# %%
gamma, lam = 0.95, 0.9
places = mask[0].nonzero()[:, 0].tolist()
by_hand, next_value, next_advantage = torch.zeros(12), 0.0, 0.0
for t in reversed(places):
    delta = float(rewards[0, t]) + gamma * next_value - float(values[0, t])
    next_advantage = delta + gamma * lam * next_advantage
    next_value = float(values[0, t])
    by_hand[t] = next_advantage
advantages, returns = gae(rewards, values, mask, gamma, lam)
print([round(a, 3) for a in by_hand.tolist()])
assert torch.allclose(by_hand, advantages[0], atol=1e-6)

# %% [markdown]
# A GAE that counts every token as a step reads the engine's values, discounts four more times, and passes the noise on to
# the tokens before the observation. The picture shows both.

# %%
naive, _ = gae(rewards, values, torch.ones_like(mask), gamma, lam)
fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.axvspan(4.5, 8.5, color="0.9", label="observation")
axis.plot(places, advantages[0, places], "o-", color=BLUE, label="over policy tokens")
axis.plot(places, naive[0, places], "s--", color=ORANGE, label="over all tokens")
axis.set(xlabel="token", ylabel="advantage", title="the observation is a jump, not a step")
_ = axis.legend()
# %% [markdown]
# ## What lambda trades
#
# With $\lambda = 1$ the advantage is the return minus the value: unbiased, and as noisy as the reward. With $\lambda = 0$
# it is how much the value rose in one step: with little noise, but only as right as the critic. This critic's value jumps
# at the search, so $\lambda = 0$ gives the largest share of the credit there.

# %%
fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.axvspan(4.5, 8.5, color="0.9")
for lam_, color, mark in ((0.0, ORANGE, "s"), (0.5, GREEN, "^"), (1.0, BLUE, "o")):
    advantages, _ = gae(rewards, values, mask, 1.0, lam_)
    axis.plot(places, advantages[0, places], color=color, marker=mark, label=f"lambda = {lam_:g}")
axis.set(xlabel="token", ylabel="advantage, gamma = 1")
_ = axis.legend()
# %% [markdown]
# ## The value loss
#
# $$\tfrac12 \max\bigl((V - R)^2,\ (\mathrm{clip}(V, V_{\mathrm{old}} - c, V_{\mathrm{old}} + c) - R)^2\bigr)$$
#
# As in PPO's public code; `core/algorithms.py:value_loss`. Once a value has moved by c towards its return, its gradient
# is 0: one step's batch cannot carry the critic away.

# %%
v = torch.linspace(-0.5, 1.5, 201, requires_grad=True)
old, target, c = 0.2, 1.0, 0.5
losses = [value_loss(x[None], torch.tensor([old]), torch.tensor([target]), torch.ones(1), c) for x in v]
(gradient,) = torch.autograd.grad(sum(losses), v)
fig, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(v.detach(), torch.stack(losses).detach(), color=BLUE, label="loss")
axis.plot(v.detach(), gradient, color=ORANGE, linestyle="--", label="gradient")
axis.axvline(old, color="0.5", linestyle=":")
axis.set(xlabel=f"V, from {old} (dotted) towards R = {target:g}", ylabel="loss, gradient")
_ = axis.legend()

x = 0.9
by_hand = max((x - target) ** 2, (min(max(x, old - c), old + c) - target) ** 2) / 2
one = value_loss(torch.tensor([x]), torch.tensor([old]), torch.tensor([target]), torch.ones(1), c)
print(f"at V = {x}: by hand {by_hand:.4f}, value_loss {one:.4f}")
assert abs(by_hand - one) < 1e-6

# %% [markdown]
# ## Is the critic any good?
#
# $$1 - \frac{\mathrm{Var}(R - V)}{\mathrm{Var}(R)}$$
#
# `core/algorithms.py:explained_variance`: 1 for a perfect critic, 0 for one that knows no more than the mean, below 0
# for one that adds noise.

# %%
generator = torch.Generator().manual_seed(0)
targets = torch.randint(0, 2, (1, 200), generator=generator).float()
noise = torch.randn(1, 200, generator=generator)
everywhere = torch.ones(1, 200, dtype=torch.bool)
for name, guess in (
    ("the return itself", targets),
    ("the mean", targets.mean() + torch.zeros(1, 200)),
    ("half way to the return", targets / 2),
    ("noise", noise),
):
    print(f"{name:24} {explained_variance(guess, targets, everywhere):6.2f}")

# %% [markdown]
# ## The critic on the policy's base
#
# The critic is a second LoRA adapter and a value head on the same frozen base (`core/critic.py`), so there is one base in
# memory. The head starts at 0, so every value is 0 before the first update.

# %%
config = resolve(
    make(
        TrainConfig,
        algorithm="ppo", world_difficulty="infobox", world_hops="1", steps=6, questions_per_step=48, mini_batches=2,
        warmup_steps=1, critic_warmup_steps=1, decay_steps=0, eval_questions=40, tensorboard=False,
        output_dir=f"{tempfile.mkdtemp()}/run",
    )
)  # fmt: skip
with capture_output():
    run = open_run(config)
    before, _ = measured(run)
rollouts = collect(run.policy, run.environment, config, step=1, reward=configured_reward(config))
pad = run.policy.tokenizer.pad_token_id
first = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, pad)
how = config.rollout.temperature, run.optimizer.micro_batches
passes = update_rows(first.group_ids.tolist(), config.optimization, run.optimizer.updates)
experience = prepare_ppo(run.policy, run.critic, first, config.ppo, config.objective, *how, passes)
assert experience.values.abs().max() == 0
n_policy, n_critic = (sum(p.numel() for p in part) for part in (run.policy.trainable(), run.critic.parameters()))
print(f"{n_policy:,} trained numbers in the policy's adapter, {n_critic:,} in the critic's and its head")

# %% [markdown]
# With values of 0 and $\gamma = \lambda = 1$ every token's advantage is the reward to come, which is then whitened (mean
# 0, standard deviation 1 over the step's policy tokens). So PPO begins as REINFORCE with the batch's mean as its
# baseline.
#
# ## The loop
#
# `core/training.py:train_policy` is the loop of notebook 6. With a critic, `prepare_ppo` takes the place of
# `prepare_grpo`, and each micro-batch has a second loss, the critic's.

# %%
log = [one_step(run, step) for step in range(1, config.optimization.steps + 1)]
after, _ = measured(run)
steps = range(1, len(log) + 1)
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(steps, [m["reward"] for m in log], color=BLUE, marker="o", label="reward")
left.plot(steps, [m["value_mean"] for m in log], color=GREEN, marker="^", label="mean value")
left.plot(steps, [m["searches"] for m in log], color=ORANGE, marker="s", label="searches")
left.set(xlabel="step", ylabel="mean over 48 rollouts", ylim=(-0.1, 1.1))
_ = left.legend()
right.plot(steps, [m["value_loss"] for m in log], color=BLUE, marker="o", label="value loss")
right.plot(steps, [m["explained_variance"] for m in log], color=ORANGE, marker="s", label="explained variance")
right.axhline(0, color="0.6", linewidth=0.8)
right.set(xlabel="step")
_ = right.legend()
# %%
print(f"held-out exact match: {before['em']:.3f} before, {after['em']:.3f} after")
assert log[-1]["reward"] > log[0]["reward"]

# %% [markdown]
# The mean value follows the mean reward one step behind, so in a run as short as this one explained variance stays at or
# below 0. In long runs it is hardly higher: in this world there is little to predict. [PPO in the
# docs](../docs/algorithms.md#ppo) has three seeds, and what an oracle could reach.
#
# ## Values on a real trajectory
#
# This is a rollout of one more step, with its tokens from left to right: where the engine wrote, there is no value to
# learn from.

# %%
rollouts = collect(run.policy, run.environment, config, config.optimization.steps + 1, configured_reward(config))
batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, pad).to(run.policy.device)
values = all_values(run.critic, batch, run.optimizer.micro_batches).cpu()
row = next(i for i, t in enumerate(rollouts.trajectories) if t.queries and rollouts.rewards[i] > 0)
wrong = next((i for i, t in enumerate(rollouts.trajectories) if rollouts.rewards[i] == 0), row)
fig, axis = plt.subplots(figsize=(8, 3), layout="constrained")
for i, color, name in ((row, BLUE, "right"), (wrong, ORANGE, "wrong")):
    at = batch.loss_mask[i].cpu().nonzero()[:, 0]
    axis.plot(at, values[i, at], ".", color=color, label=f"{name} (reward {rollouts.rewards[i]:g})")
axis.set(xlabel="token of the trajectory", ylabel="V, policy tokens only")
_ = axis.legend()
# %% [markdown]
# `python train.py --algorithm ppo` is the whole run; `python train.py --algorithm ppo --gae-lambda 0.95 --gamma 0.99`
# adds discounting. On real models the critic is a second adapter on the 4-bit base: one base in memory, as here.

# %% [markdown]
# ## Exercises
#
# **7.1** $\gamma = \lambda = 1$, the reward is 1 at the last token, and the critic says 0.4 everywhere. What is the advantage
# of the first token?

# %%
answer = ...  # a number
check("7.1", answer, "c6eb9c8c8a1b", hint="with lambda = 1 the sum of the deltas telescopes")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 1 - 0.4  # the return less the value
# ```
#
# </details>
#
# **7.2** With the same critic and reward, five tokens and $\gamma = 1$, but $\lambda = 0$, what is the advantage of the
# first token?

# %%
answer = ...  # a number
check("7.2", answer, "183e6a42d313", hint="only one step is looked at, and the value does not change in it")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 0  # delta = 0 + 0.4 - 0.4: all of the credit, 0.6, goes to the last token
# ```
#
# </details>
#
# **7.3** Write the advantages for $\gamma = \lambda = 1$ as a function of rewards, values and mask, all (N, T), without a
# loop over tokens. Masked tokens get 0.

# %%
answer = ...  # a function of (rewards, values, mask)
values = torch.tensor([[0.1, 0.4, 7.0, 0.2], [0.3, 0.6, 0.5, 0.0]])
mask = torch.tensor([[True, True, False, True], [True, True, True, False]])
rewards = token_rewards(torch.tensor([1.0, 0.0]), mask, torch.full((2, 4), 0.2), 0.1)
hint = "what is still to come of the rewards, less the value"
check_code("7.3", answer, lambda r, v, m: gae(r, v, m)[0], [(rewards, values, mask)], hint=hint)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(rewards, values, mask):
#     to_come = (rewards * mask).flip(1).cumsum(1).flip(1)
#     return torch.where(mask, to_come - values, 0.0)
# ```
#
# </details>
