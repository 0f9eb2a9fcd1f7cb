# %% [markdown]
# # 6. GRPO by hand on one batch, then the loop
#
# A step of GRPO has four parts: a group of rollouts per question, a reward for each, an advantage computed from the group
# alone, and a clipped step away from the policy that sampled. Here each number of one batch is computed in plain Python
# and compared with the function that training calls.

# %%
import inspect
import math
import tempfile

import matplotlib.pyplot as plt
import torch
from exercises import check, check_code
from IPython.utils.capture import capture_output
from lesson import BLUE, GREEN, ORANGE, one_step

from searchr1_mini.core.algorithms import clipped_surrogate, group_advantages, kl_penalty, loss_weights, policy_loss
from searchr1_mini.core.batch import build_batch
from searchr1_mini.core.experience import all_logprobs, policy_logprobs, prepare_grpo, update_rows
from searchr1_mini.core.training import collect, micro_batch_loss, train_policy, weighted
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.evaluations import measured
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.training import configured_reward

# %% [markdown]
# ## One batch
#
# We use the easiest world, with one fact per passage and questions of one hop: eight questions with eight rollouts each,
# by the tiny base as it is shipped. `open_run` opens a run as `train.py` does; `collect` does the first part of a step,
# the rollouts and their rewards.

# %%
config = resolve(
    make(
        TrainConfig,
        world_difficulty="infobox", world_hops="1", steps=7, questions_per_step=8, group_size=8, mini_batches=1,
        warmup_steps=1, decay_steps=0, eval_questions=40, dtype="float32", tensorboard=False,
        output_dir=f"{tempfile.mkdtemp()}/run",
    )
)  # fmt: skip
with capture_output():
    run = open_run(config)
    before, _ = measured(run)
rollouts = collect(run.policy, run.environment, config, step=1, reward=configured_reward(config))
rewards, group_ids = torch.tensor(rollouts.rewards), torch.tensor(rollouts.group_ids)
print(f"{len(rewards)} rollouts, {int(rewards.sum())} right")

# %% [markdown]
# Each row of the picture is a question, and each cell is one of its rollouts. Rows of one color teach GRPO nothing:
# nothing in them is better or worse than the rest.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
advantages = group_advantages(rewards, group_ids)
left.imshow(rewards.view(8, 8), cmap="cividis", vmin=0, vmax=1)
left.set(title="reward (yellow: right)", xlabel="rollout of the group", ylabel="question")
shown = right.imshow(advantages.view(8, 8), cmap="PuOr", vmin=-2.5, vmax=2.5)
right.set(title="advantage", xlabel="rollout of the group")
_ = fig.colorbar(shown, ax=right, shrink=0.9)
# %% [markdown]
# ## The advantage
#
# $$A_i = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r) + \varepsilon}$$
#
# GRPO, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300), section 4.1.2; `core/algorithms.py:group_advantages`. Mean
# and standard deviation are those of the question's own rollouts: the group is the baseline, and no critic is needed.

# %%
mixed = next(g for g in range(8) if 0 < rewards[group_ids == g].sum() < 8)
r = rewards[group_ids == mixed].tolist()
mean = sum(r) / len(r)
std = math.sqrt(sum((x - mean) ** 2 for x in r) / (len(r) - 1))
by_hand = [(x - mean) / (std + 1e-6) for x in r]
print("rewards   ", r)
print("advantages", [round(a, 3) for a in by_hand])
assert torch.allclose(torch.tensor(by_hand), advantages[group_ids == mixed], atol=1e-4)

# %% [markdown]
# ## The ratio
#
# $$\rho_t = \frac{\pi(y_t)}{\pi_{\mathrm{old}}(y_t)} = \exp\bigl(\log \pi(y_t) - \log \pi_{\mathrm{old}}(y_t)\bigr)$$
#
# $\pi_{\mathrm{old}}$ is the policy that sampled; its log-probs were recorded token by token. Before the first update
# $\pi$ is the same policy, so every ratio is 1, except for rounding. `prepare_grpo` computes what must stay fixed while
# the weights move: the advantage of each token, $\pi_{\mathrm{old}}$, and the log-probs of the reference. It needs the
# options of the loss, the temperature, how a batch is split into micro-batches, and which rows each optimizer step learns
# from; here there is one step, from all rows.

# %%
batch = build_batch(rollouts.trajectories, rollouts.rewards, rollouts.group_ids, run.policy.tokenizer.pad_token_id)
objective, how = config.objective, (config.rollout.temperature, run.optimizer.micro_batches)
passes = update_rows(batch.group_ids.tolist(), config.optimization, run.optimizer.updates)
of_tokens = advantages[:, None] * batch.loss_mask  # the same number at every policy token of a rollout
experience = prepare_grpo(run.policy, batch, of_tokens, objective, *how, passes, needs_old=True)
batch, mask = experience.batch, experience.batch.loss_mask
old, ref = batch.old_logprobs, experience.ref_logprobs
ratio_before = (all_logprobs(run.policy, batch, *how) - old)[mask].exp()
print(f"largest |ratio - 1|: {(ratio_before - 1).abs().max():.1e}")
assert (ratio_before - 1).abs().max() < 1e-3

# %% [markdown]
# Now we take the step. `core/optimizer.py:Optimizer.step` asks for the loss of each micro-batch and back-propagates it;
# `core/training.py:micro_batch_loss` computes that loss, whose parts come below. A second forward shows how far each token
# moved.


# %%
def loss_of(part):
    logprobs, entropy = policy_logprobs(run.policy, part.batch, config.rollout.temperature)
    yield micro_batch_loss(logprobs, entropy, part, objective)


((rows,),) = passes  # one pass, one optimizer step
run.optimizer.begin(1, n_updates=1)
run.optimizer.step(weighted(experience.select(rows), config), loss_of)
metrics = run.optimizer.metrics()
new = all_logprobs(run.policy, batch, *how)
ratio_after = (new - old)[mask].exp()
print(f"largest |ratio - 1|: {(ratio_after - 1).abs().max():.2f}")

# %%
sign = (experience.advantages[mask]).cpu()
fig, axis = plt.subplots(figsize=(6, 3), layout="constrained")
bins = torch.linspace(0.5, 1.5, 41).tolist()
for chosen, color, name in ((sign > 0, BLUE, "A > 0"), (sign < 0, ORANGE, "A < 0")):
    axis.hist(ratio_after.cpu()[chosen].clamp(0.5, 1.5).tolist(), bins, color=color, alpha=0.6, label=name)
for edge in (1 - config.objective.clip_eps, 1 + config.objective.clip_eps):
    axis.axvline(edge, color="black", linestyle=":")
axis.set(xlabel="ratio after one optimizer step (dotted: the clip)", ylabel="tokens", yscale="log")
_ = axis.legend()
# %% [markdown]
# Most tokens of right rollouts became more likely and most tokens of wrong ones less likely; most moved little, because
# they were nearly certain. Some tokens of wrong rollouts rose as well: the same weights write the same words in right
# ones.
#
# ## The clip
#
# $$-\min\bigl(\rho_t A,\ \mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon)\, A\bigr)$$
#
# PPO, [arXiv 1707.06347](https://arxiv.org/abs/1707.06347), equation 7; Search-R1, equations 2 and 3;
# `core/algorithms.py:clipped_surrogate`. Once a token has moved by more than $\epsilon$ in the direction that its
# advantage asks for, its gradient is gone. In the other direction nothing is clipped: a mistake can always be undone.

# %%
log_ratios = torch.linspace(-0.5, 0.5, 201, requires_grad=True)
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True, layout="constrained")
for advantage, color in ((1.0, BLUE), (-1.0, ORANGE)):
    loss, _ = clipped_surrogate(
        log_ratios, torch.tensor(advantage), config.objective.clip_eps, config.objective.clip_eps_high
    )
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratios)
    for axis, values in zip(axes, (loss, gradient), strict=True):
        axis.plot(log_ratios.detach().exp(), values.detach(), color=color, label=f"A = {advantage:+.0f}")
axes[0].set(title="loss of a token", xlabel="ratio", ylabel="loss")
axes[1].set(title="its gradient by log pi", xlabel="ratio", ylabel="d loss / d log pi")
_ = axes[0].legend()
# %% [markdown]
# ## The KL to the reference
#
# $$\mathrm{k3}_t = e^{d_t} - d_t - 1, \qquad d_t = \log \pi_{\mathrm{ref}}(y_t) - \log \pi(y_t)$$
#
# GRPO, equation 4, after Schulman, "Approximating KL divergence" (2020); `core/algorithms.py:kl_penalty`. The reference
# is the base with the adapter switched off. k3 is never negative, and its mean over samples of $\pi$ is the KL.

# %%
d = (ref - new)[mask].tolist()
k3 = [math.exp(x) - x - 1 for x in d]
ours = kl_penalty(new[mask], ref[mask], "k3")
print(f"mean k3 by hand {sum(k3) / len(k3):.6f}, kl_penalty {ours.mean():.6f} nats per token")
assert abs(sum(k3) / len(k3) - ours.mean()) < 1e-4

# %% [markdown]
# ## The loss
#
# $$L = -\frac{1}{\sum_t I(y_t)} \sum_t I(y_t) \Bigl[\min(\rho_t A, \mathrm{clip}(\rho_t) A) - \beta\, \mathrm{k3}_t\Bigr]$$
#
# This is Search-R1's equation 3, except for the mean: there each rollout has its own (`--loss-aggregation sequence`),
# while here it runs over all policy tokens of the optimizer step. `core/algorithms.py:policy_loss`, `loss_weights`.
# $I(y_t)$ is 1 if the policy wrote the token (notebook 4). Here it is as a loop over plain numbers:

# %%
eps, beta, n_tokens = config.objective.clip_eps, config.objective.kl_coef, int(mask.sum())
total = 0.0
for i, t in mask.nonzero().tolist():
    rho, a = math.exp(new[i, t] - old[i, t]), float(advantages[i])
    surrogate = min(rho * a, min(max(rho, 1 - eps), 1 + eps) * a)
    d = float(ref[i, t] - new[i, t])
    total -= (surrogate - beta * (math.exp(d) - d - 1)) / n_tokens

weights = loss_weights(mask, "token")
logprobs = new.clone().requires_grad_()
loss, stats = policy_loss(
    logprobs, old, experience.advantages, weights, clip_eps=eps, clip_eps_high=eps, ref_logprobs=ref, kl_coef=beta
)
print(f"by hand {total:.6f}, policy_loss {loss.item():.6f}; {stats['clip_fraction']:.1%} of the tokens are clipped")
assert abs(total - loss.item()) < 1e-4

# %% [markdown]
# ## The gradient
#
# The gradient with respect to the log-prob of a token that is not clipped is $-\rho_t A / n + \beta (1 - e^{d_t}) / n$,
# with n tokens in all; for a clipped token only the second part is left. Tokens that the engine wrote get exactly 0.

# %%
loss.backward()
rho, d = (new - old).exp(), ref - new
adv = experience.advantages
is_clipped = ((rho > 1 + eps) & (adv > 0)) | ((rho < 1 - eps) & (adv < 0))
by_hand = (-rho * adv * ~is_clipped + beta * (1 - d.exp())) * weights
assert torch.allclose(by_hand, logprobs.grad, atol=1e-6)
assert logprobs.grad[~mask].abs().max() == 0

fig, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for chosen, color, name in ((adv > 0, BLUE, "A > 0"), (adv < 0, ORANGE, "A < 0")):
    points = mask & chosen
    axis.scatter(rho[points].cpu(), logprobs.grad[points].cpu() * n_tokens, s=8, color=color, alpha=0.5, label=name)
axis.set(xlabel="ratio", ylabel="n x gradient by log pi", xlim=(0.5, 1.5))
_ = axis.legend()
# %% [markdown]
# From here the chain rule carries the gradient through the log-softmax and the network into the adapter:
# `core/optimizer.py:Optimizer.step`, which also splits the batch into micro-batches.
#
# ## The loop
#
# The first step is done. `core/training.py:train_policy` does what we did by hand, step after step. The object that keeps
# the run (`run`) gives it the steps, checks the rollouts before an update (`check`), and records what a step did (`log`):

# %%
print(inspect.getsource(train_policy))

# %%
log = [
    {"reward": rewards.mean().item(), "searches": sum(len(t.queries) for t in rollouts.trajectories) / 64, **metrics}
]
log += [one_step(run, step) for step in range(2, config.optimization.steps + 1)]
(after, _), (emptied, _) = measured(run), measured(run, is_empty=True)

# %%
steps = range(1, len(log) + 1)
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(steps, [m["reward"] for m in log], color=BLUE, marker="o", label="reward")
left.plot(steps, [m["searches"] for m in log], color=ORANGE, marker="s", label="searches")
left.set(xlabel="step", ylabel="mean over 64 rollouts", ylim=(0, 1.1))
_ = left.legend()
right.plot(steps, [m.get("entropy", math.nan) for m in log], color=GREEN, marker="o", label="entropy")
right.plot(steps, [m.get("kl", math.nan) for m in log], color=BLUE, marker="s", label="KL to the base")
right.set(xlabel="step", ylabel="nats per token")
_ = right.legend()
# %%
print("greedy, 40 held-out questions whose entities never occurred in training")
for name, result in (("base", before), ("trained", after), ("trained, retriever emptied", emptied)):
    print(f"{name:27} exact match {result['em']:.3f}   searches {result['searches']:.2f}")
assert after["em"] > before["em"] and after["searches"] > 0.5

# %% [markdown]
# The reward said only "right" or "wrong"; searching was never demonstrated. `python train.py` does the same in the
# hardest world with 40 steps; `python -m searchr1_mini.ablate algorithm` compares GRPO with its relatives
# ([Ablations](../docs/ablations.md)), which are flags of the same loop
# ([Equations](../docs/algorithms.md#grpo-and-its-family)).

# %% [markdown]
# ## Exercises
#
# **6.1** One rollout in a group of eight is right. What is its advantage?

# %%
answer = ...  # a number
check("6.1", answer, "f041db58f2eb", hint="the mean is 1/8, and the standard deviation divides by 7")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = group_advantages(torch.tensor([1.0] + [0.0] * 7), torch.zeros(8)).tolist()[0]
# ```
#
# A lone success weighs more than one of several: with four right out of eight the advantage is 0.94.
#
# </details>
#
# **6.2** A token of a wrong rollout (A = -1) has fallen to a ratio of 0.7, with $\epsilon$ = 0.2. What is the gradient of
# its loss with respect to its log-prob, without the KL?

# %%
answer = ...  # a number
check("6.2", answer, "0f53b970763f", hint="which of the two terms is the larger loss, and does it depend on the ratio?")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 0  # the loss is max(0.7, 0.8) = 0.8, the clipped one, and a constant has no gradient
# ```
#
# </details>
#
# **6.3** Write k3 as a function of the log-probs of the policy and of the reference, two tensors of the same shape.

# %%
answer = ...  # a function of (logprobs, ref_logprobs)
cases = [(torch.tensor([-0.1, -2.0, -1.0]), torch.tensor([-0.3, -1.0, -1.0])), (new[mask], ref[mask])]
check_code("6.3", answer, lambda pi, pi_ref: kl_penalty(pi, pi_ref, "k3"), cases, hint="d is reference less policy")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def answer(logprobs, ref_logprobs):
#     d = ref_logprobs - logprobs
#     return d.exp() - d - 1
# ```
#
# </details>
