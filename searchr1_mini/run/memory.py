"""Peak memory of each phase of a run, predicted from the model's shape alone.

A phase is a sum of named terms, in bytes; each term has its formula here and nowhere else. The prediction is for
conversations that fill `--max-total-tokens`: shorter ones take less.
"""

from __future__ import annotations

from dataclasses import dataclass

from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.nested import with_options
from searchr1_mini.options.own_parts import is_own, unread_settings
from searchr1_mini.run.shape import Shape

GB = 1e9
FLOAT32 = 4
# a 4-bit code a weight, an 8-bit scale for 64 weights, a float32 scale for 256 of those (QLoRA, arXiv 2305.14314)
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)
LOGITS_BYTES, LOGITS_TOKENS = 2**26, 1024  # most that a chunk of logits takes, as in logprobs.py
LOGITS_COPIES = 5  # logits, scaled, softmax, their product, gradient
KERNELS = 0.2 * GB  # of oneDNN for 16-bit products on a CPU, as many as loading.py lets it keep; measured
CHUNK_TOKENS = 8192  # of a prefill, as in core/decoder.py
TEMPLATE_TOKENS = {"paper": 200, "short": 16}  # and a chat template
BYTES_A_TOKEN = 4  # of English text
Terms = dict[str, float]


@dataclass(frozen=True)
class Preflight:
    """Predicted terms of each phase, in bytes. `held` is what the process had before the model, for a CPU."""

    phases: dict[str, Terms]
    held: float = 0.0

    def total(self, phase: str) -> float:
        """Returns the bytes of a phase at its peak."""
        return self.held + sum(self.phases[phase].values())

    @property
    def peak(self) -> float:
        """Bytes of the phase that takes most."""
        return max(map(self.total, self.phases))

    def line(self) -> str:
        """Renders `weights 0.1, rollout 0.5, update 0.9 GB`."""
        return ", ".join(f"{phase} {self.total(phase) / GB:.1f}" for phase in self.phases) + " GB"

    def table(self) -> str:
        """Renders a line per phase, with its terms in GB."""
        lines = []
        for phase, terms in self.phases.items():
            parts = {"held before": self.held} | terms
            shown = ", ".join(f"{name} {size / GB:.2f}" for name, size in parts.items() if size >= 0.005 * GB)
            lines.append(f"{phase:>10} {self.total(phase) / GB:6.2f} GB: {shown}")
        return "\n".join(lines)


def predict(
    config: TrainConfig, shape: Shape, width: int, on_gpu: bool, question_bytes: int = 200, held: float = 0.0
) -> Preflight:
    """Predicts the peak of each phase of a step, once the optimizer has its moments.

    Args:
        config: resolved.
        question_bytes: of the longest question.
        width: bytes of the dtype that matrices are multiplied in.
        on_gpu: decides a few copies that only one of CPU and GPU makes.
        held: bytes that the process has already.
    """
    prompt = TEMPLATE_TOKENS[config.data.template] + question_bytes // BYTES_A_TOKEN
    config = with_options(config, max_total_tokens=longest_context(config, prompt))
    kept = kept_terms(config, shape, width)
    phases = {"weights": {name: size for name, size in kept.items() if name != "AdamW moments"}}
    phases["rollout"] = kept | rollout_terms(config, shape, width, prompt)
    if has_logprobs(config, width):
        phases["log-probs"] = kept | logprob_terms(config, shape, width)
    phases["update"] = kept | update_terms(config, shape, width, on_gpu)
    if width < FLOAT32 and not on_gpu:
        beside = {"rollout": KERNELS, "log-probs": KERNELS, "update": KERNELS + 2 * chunk_bytes(shape)}
        for phase in phases.keys() & beside.keys():
            phases[phase] |= {"oneDNN": beside[phase]}  # kernels, and in an update 16-bit logits of a chunk and sums
    return Preflight(phases, held)


def has_logprobs(config: TrainConfig, width: int) -> bool:
    """Tells whether a step needs log-probs, or values, before its update: in 16 bits always, see `old_and_sampled`."""
    if config.run.algorithm in ("sft", "rejection-sampling"):
        return False
    return config.run.algorithm == "ppo" or config.objective.kl_coef > 0 or computes_old(config, width)


def computes_old(config: TrainConfig, width: int) -> bool:
    """Tells whether the old log-probs, or some of them, are a forward of the policy and not the sampler's."""
    return width < FLOAT32 or bool(config.objective.importance_cap) or not config.objective.mask_observations


def has_own_reference(config: TrainConfig) -> bool:
    """Tells whether the reference is not the base: an adapter's is then one more adapter."""
    return bool(config.run.init or config.imitation.cold_start)


def kept_terms(config: TrainConfig, shape: Shape, width: int) -> Terms:
    """Counts what stays in memory from step to step."""
    models = 2 if config.run.algorithm == "ppo" else 1
    trained = trained_numbers(config, shape)
    if config.weights.lora_rank == 0:
        terms = {"weights": FLOAT32 * trained, "reference": FLOAT32 * shape.all}
    else:
        linear = NF4 if config.weights.load_in_4bit else width
        terms = {"weights": linear * shape.linear + width * shape.other, f"adapter x {models}": FLOAT32 * trained}
        if has_own_reference(config):
            terms["reference"] = FLOAT32 * config.weights.lora_rank * shape.lora
    return terms | {"AdamW moments": 2 * FLOAT32 * trained}


def trained_numbers(config: TrainConfig, shape: Shape) -> int:
    """Counts the numbers that the optimizer updates: the adapter or the model, and as many for PPO's critic."""
    one = config.weights.lora_rank * shape.lora if config.weights.lora_rank else shape.all
    return one * (2 if config.run.algorithm == "ppo" else 1)


def rollout_terms(config: TrainConfig, shape: Shape, width: int, prompt: int) -> Terms:
    """Counts the KV cache of all rows, full; and the larger of a prefill and of sampling a token for every row."""
    at_a_time = max(config.optimization.questions_per_step * config.optimization.group_size, config.data.eval_questions)
    n_rows, span = min(config.rollout.rollout_batch_size, at_a_time), config.rollout.max_total_tokens
    a_token = 2 * shape.key_value * width  # keys and values, in one layer
    beside = rollout_weights(config, shape, width)
    is_adapted = config.weights.lora_rank > 0 and not beside
    n_prompts = (
        n_rows if config.optimization.group_size == 1 else min(n_rows, config.data.eval_questions)
    )  # a group's is fed by itself
    prefill = max(
        prefill_bytes(shape, width, is_adapted, n_fed, fed, span)
        for n_fed, fed in ((n_prompts, prompt), (n_rows, config.rollout.max_observation_tokens))
    )
    # logits and their concatenation; in float32 log-probs, probabilities, and these in blocks
    sampling = (2 * width + 3 * FLOAT32) * n_rows * shape.vocabulary
    return {
        "KV cache": shape.layers * a_token * n_rows * span,
        "cache while it grows": a_token * n_rows * span / 2,
        "shared prompt": shape.layers * a_token * prompt,
        "weights of rollouts": beside,
        "stacked weights": stacked_weights(config, shape, width),
        "autocast weights": autocast_weights(config, shape, width),
        "dequantized matrix": width * shape.largest if config.weights.load_in_4bit else 0,
        "prefill or sampling": max(prefill, sampling),
    }


def stacked_weights(config: TrainConfig, shape: Shape, width: int) -> float:
    """Counts what the stacked forward holds beside the base: B of the adapters as block-diagonal matrices; of trained
    weights a copy of q, k, v, gate and up."""
    inputs, rank = shape.query + 2 * shape.key_value, config.weights.lora_rank
    if rank == 0:
        return width * shape.layers * shape.hidden * (inputs + 2 * shape.intermediate)
    if width == FLOAT32:
        return 0.0  # merged
    return width * shape.layers * rank * (3 * inputs + 4 * shape.intermediate + 2 * shape.hidden)


def prefill_bytes(shape: Shape, width: int, is_adapted: bool, n_rows: int, fed: int, span: int) -> float:
    """Returns a layer's peak while `n_rows` rows get at most `fed` tokens each: in its attention or its MLP.

    Attention: the residual stream, norm, queries and output; the mask as numbers; keys and values of these rows,
    gathered, and repeated for every head. These are of whole rows, so the forward that takes most has all of the rows,
    each with a share of the tokens of one forward: shorter observations take more than the longest.
    """
    fed, n_rows = min(fed, span, CHUNK_TOKENS), min(n_rows, CHUNK_TOKENS // 2)  # a single token is no prefill
    tokens = min(n_rows * fed, CHUNK_TOKENS)
    gathered = 2 * width * shape.key_value * n_rows * span
    repeated = 2 * width * shape.query * n_rows * span
    attention = 4 * FLOAT32 * shape.hidden * tokens + width * tokens * span + gathered + repeated
    return tokens * span + max(attention, forward_peak(shape, width, is_adapted) * tokens)


def rollout_weights(config: TrainConfig, shape: Shape, width: int) -> float:
    """Copies of the matrices for the time of a rollout: a 4-bit base unpacked, an adapter merged into a float32 one."""
    is_unpacked = config.weights.load_in_4bit and config.weights.rollout_weights == "dequantized"
    is_merged = config.weights.lora_rank > 0 and width == FLOAT32 and (is_unpacked or not config.weights.load_in_4bit)
    return (width * is_unpacked + FLOAT32 * is_merged) * shape.linear


def logprob_terms(config: TrainConfig, shape: Shape, width: int) -> Terms:
    """Counts a forward without gradients of a micro-batch, or the logits of one chunk."""
    rows = config.optimization.questions_per_step * config.optimization.group_size
    tokens = micro_batch_tokens(config, rows)
    is_reference = config.run.algorithm == "grpo" and not computes_old(config, width)
    is_plain = is_reference and not has_own_reference(config)
    is_adapted = config.weights.lora_rank > 0 and not is_plain
    layer = forward_peak(shape, width, is_adapted) * tokens
    return {
        "batch": batch_bytes(config),
        "dequantized matrix": width * shape.largest if config.weights.load_in_4bit else 0,
        "autocast weights": 0 if is_plain else autocast_weights(config, shape, width),
        "layer or logits": max(layer, logits_bytes(shape) + 2 * width * shape.hidden * tokens),
    }


def update_terms(config: TrainConfig, shape: Shape, width: int, on_gpu: bool) -> Terms:
    """Counts forward and backward of a micro-batch: saved activations, then the larger of logits and a layer's."""
    rows = (
        -(-config.optimization.questions_per_step // config.optimization.mini_batches) * config.optimization.group_size
    )
    tokens = micro_batch_tokens(config, rows)
    trained, is_full = trained_numbers(config, shape), config.weights.lora_rank == 0
    layer = saved_by_layer(config, shape, width, on_gpu) * tokens
    backward = width * (2 * shape.intermediate + shape.hidden) * tokens
    logits = logits_bytes(shape)
    if config.weights.gradient_checkpointing:
        stream = FLOAT32 if is_full else width
        saved, working = shape.layers * stream * shape.hidden * tokens, max(logits, layer + backward)
    else:
        saved, working = shape.layers * layer, max(logits, backward)
    return {
        "batch": batch_bytes(config),
        "gradients": FLOAT32 * trained,
        "saved activations": saved,
        "last hidden states": 3 * FLOAT32 * shape.hidden * tokens,
        "layer or logits": working,
        "AdamW's copies": max(FLOAT32 * trained - saved - working, 0) if on_gpu else 0,  # once activations are gone
        "gradient of the embeddings": 2 * FLOAT32 * shape.vocabulary * shape.hidden if is_full else 0,
        "dequantized matrix": width * shape.largest if config.weights.load_in_4bit else 0,
        "autocast weights": autocast_weights(config, shape, width),
    }


def longest_context(config: TrainConfig, prompt: int) -> int:
    """Returns the tokens of the longest trajectory: the limit, unless the turns end before it."""
    if {"max_turns", "max_new_tokens"} & {*unread_settings(config.run.method)}:  # the user's method sets them itself
        return config.rollout.max_total_tokens
    turns = config.rollout.max_turns if config.run.method == "search-r1" or is_own(config.run.method) else 0
    written = (turns + 1) * config.rollout.max_new_tokens + turns * config.rollout.max_observation_tokens
    return min(config.rollout.max_total_tokens, prompt + written)


def logits_bytes(shape: Shape) -> float:
    """Copies of one chunk of logits, in float32."""
    return LOGITS_COPIES * chunk_bytes(shape)


def chunk_bytes(shape: Shape) -> float:
    """Returns the bytes of one chunk of logits in float32."""
    return min(LOGITS_BYTES, LOGITS_TOKENS * shape.vocabulary * FLOAT32)


def micro_batch_tokens(config: TrainConfig, rows: int) -> int:
    """Returns the tokens of the largest micro-batch: the budget, if rows fill it; a longer row stands alone."""
    longest = config.rollout.max_total_tokens
    return max(longest, min(config.optimization.tokens_per_micro_batch, rows * longest))


def batch_bytes(config: TrainConfig) -> float:
    """Counts a step's ids, masks, log-probs and advantages: about 32 bytes per token."""
    return (
        32 * config.optimization.questions_per_step * config.optimization.group_size * config.rollout.max_total_tokens
    )


def autocast_weights(config: TrainConfig, shape: Shape, width: int) -> float:
    """Counts 16-bit copies of the trained float32 weights, which autocast keeps to the end of a forward."""
    if width == FLOAT32:
        return 0
    return width * (config.weights.lora_rank * shape.lora if config.weights.lora_rank else shape.all)


def forward_peak(shape: Shape, width: int, is_adapted: bool) -> float:
    """Returns the bytes per token of a layer's forward without gradients, at its peak in the MLP.

    The residual stream, its norm and the norm's float32 copies; gate, up and their product, and with an adapter one
    more while its share is added.
    """
    return 4 * FLOAT32 * shape.hidden + width * (4 if is_adapted else 3) * shape.intermediate


def saved_by_layer(config: TrainConfig, shape: Shape, width: int, on_gpu: bool) -> float:
    """Returns the bytes per token that a layer saves for its backward.

    Norms (float32): input, and where their weights are trained the normed states. Attention: queries, keys, values,
    output, a logsumexp a head. MLP: gate, its activation, up, product. Inputs of the matrices: both normed states, or
    where autocast casts them anew for q, k, v, gate and up five copies. LoRA: the rank's states of all 7 matrices.
    """
    is_full = config.weights.lora_rank == 0
    is_cast_anew = width < FLOAT32 and (is_full or not on_gpu)
    norms = FLOAT32 * (4 if is_full else 2) * shape.hidden
    attention = width * 2 * (shape.query + shape.key_value) + FLOAT32 * shape.heads
    mlp = width * 4 * shape.intermediate
    inputs = width * (5 if is_cast_anew else 2) * shape.hidden
    return norms + attention + mlp + inputs + width * 7 * config.weights.lora_rank
