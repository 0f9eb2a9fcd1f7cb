"""The pre-training of the tiny base: its tokenizer, its model, batches from fresh worlds, two stages.

First traces that are right and many reading lessons, then traces with the habits of a base model, whose likeliest
behavior is to answer at once (traces.py). Reinforcement learning has to do the rest.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import random
import time
from collections.abc import Sequence
from multiprocessing import Process, get_context
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from searchr1_mini.core import progress
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.prompts import INVALID_ACTION, SEARCH_TEMPLATE
from searchr1_mini.data.world import Difficulty, make_questions, make_world
from searchr1_mini.models.loading import pick_dtype
from searchr1_mini.retrievers.engines import Engine, build_retriever
from searchr1_mini.tiny import traces
from searchr1_mini.tiny.curriculum import DIFFICULTY_MIX, STAGES, WARM_START, Stage, draw_traces
from searchr1_mini.tiny.pretrain_config import PretrainConfig

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EOS = "<|endoftext|>"
SECONDS_BETWEEN_LOOKS = 1.0  # at whether the workers still live


def train_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with Qwen2's splitting rule, so that `>` and `>\\n\\n` are different tokens here too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    stream = itertools.islice(draw_traces(STAGES[0], seed=0), 12_000)
    texts = ["".join(text for _, text in trace) for trace in stream] + 20 * [INVALID_ACTION, SEARCH_TEMPLATE]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=sorted(alphabet))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, model_max_length=2048)


def new_model(vocab_size: int, hidden: int, layers: int) -> Qwen2ForCausalLM:
    """Builds a Qwen2 of about a million parameters with tied embeddings."""
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config)


def tokenize(tokenizer: PreTrainedTokenizerFast, trace: traces.Trace) -> tuple[list[int], list[int]]:
    """Returns ids and targets; prompt and observation tokens are not targets, and the trace ends in EOS."""
    ids: list[int] = []
    targets: list[int] = []
    for kind, text in trace:
        segment = tokenizer(text)["input_ids"]
        ids += segment
        targets += segment if kind == "policy" else [-100] * len(segment)
    return [*ids, tokenizer.eos_token_id], [*targets, tokenizer.eos_token_id]


def write_batches(tokenizer_folder: str, stage: Stage, seed: int, tokens: int, max_length: int, batches) -> None:
    """Puts padded (ids, targets) batches of about `tokens` tokens, rows of similar length together, as a worker."""
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    stream = draw_traces(stage, seed)
    rng = random.Random(seed)
    while True:
        rows = [
            row for trace in itertools.islice(stream, 1024) if len((row := tokenize(tokenizer, trace))[0]) <= max_length
        ]
        rows.sort(key=lambda row: len(row[0]))
        groups, first = [], 0
        while first < len(rows):
            last = first + 1
            while last < len(rows) and len(rows[last][0]) * (last + 1 - first) <= tokens:
                last += 1
            groups.append(rows[first:last])
            first = last
        rng.shuffle(groups)
        for group in groups:
            batches.put(pad(group))


def pad(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pads ids and targets, (B, T)."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.full((len(rows), length), -100)
    for index, (row_ids, row_targets) in enumerate(rows):
        ids[index, : len(row_ids)] = torch.tensor(row_ids)
        targets[index, : len(row_targets)] = torch.tensor(row_targets)
    return ids, targets


@torch.no_grad()
def reading_accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list) -> float:
    """Returns the share of last turns (fact, answer) whose every token is the likeliest after a right prefix."""
    right = 0
    for trace in rows:
        last = len(tokenizer(trace[-1][1])["input_ids"]) + 1
        ids = torch.tensor([tokenize(tokenizer, trace)[0]])
        guess = model(input_ids=ids.to(model.device)).logits[0, -last - 1 : -1].argmax(-1).cpu()
        right += int(torch.equal(guess, ids[0, -last:]))
    return right / len(rows)


def probe_rows(difficulty: Difficulty, n: int) -> list[traces.Trace]:
    """Returns right 2-hop episodes in a world of the evaluation split."""
    world = make_world(999, "eval", difficulty)
    retriever = build_retriever(Engine("bm25"), world.passages)
    rng = random.Random(0)
    return [traces.agent_trace(world, retriever, q, traces.RIGHT, rng) for q in make_questions(world, 2, n, seed=0)]


def learning_rate(progress: float) -> float:
    """Returns the factor on both rates: a short warm-up, constant for a fifth of the way, then linear to zero."""
    return min(1.0, progress / 0.01 + 0.01, (1.0 - progress) / 0.8)


def optimizers(model: Qwen2ForCausalLM, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Returns Muon on the matrices of the layers, AdamW on embeddings, norms and biases."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0),
        torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def step_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Computes the mean cross-entropy over the targets; ids and targets (B, T). Products are computed in `dtype`."""
    device = next(model.parameters()).device
    ids, targets = ids.to(device), targets[:, 1:].flatten().to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1].flatten(0, 1)
        logits = model.lm_head(hidden[targets >= 0])
    return torch.nn.functional.cross_entropy(logits.float(), targets[targets >= 0])


def pretrain(config: PretrainConfig, device: torch.device) -> None:
    """Runs both stages on a device and writes the base in float16 with its tokenizer."""
    torch.manual_seed(config.seed)
    output = Path(config.output)
    if config.init:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(config.init)
        model = Qwen2ForCausalLM.from_pretrained(config.init, dtype=torch.float32, use_safetensors=True).to(device)
    else:
        tokenizer = train_tokenizer(config.vocab_size)
        model = new_model(len(tokenizer), config.hidden, config.layers).to(device)
    tokenizer.save_pretrained(output)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    opts = optimizers(model, config.muon_lr, config.adam_lr)
    base_lrs = [opt.param_groups[0]["lr"] for opt in opts]
    loss_of = torch.compile(step_loss, dynamic=True) if config.compile else step_loss
    probes = {difficulty: probe_rows(difficulty, 60) for difficulty in DIFFICULTY_MIX}
    has_bfloat16 = pick_dtype("fast", device) == torch.bfloat16  # a CPU without it takes minutes for a step
    dtype = torch.bfloat16 if has_bfloat16 else torch.float32
    seen, start, next_report = 0, time.time(), 0.0
    stages = (WARM_START,) if config.warm_start else STAGES[config.first_stage :]
    for number, stage in enumerate(stages):
        until = config.tokens * sum(s.share_of_tokens for s in stages[: number + 1])
        until /= sum(s.share_of_tokens for s in stages)
        batches, workers = start_workers(config, output, stage, 10 * number + 1)
        while seen < until:
            ids, targets = next_batch(batches, workers)
            for opt, lr in zip(opts, base_lrs, strict=True):
                opt.param_groups[0]["lr"] = lr * learning_rate(seen / config.tokens)
            loss = loss_of(model, ids, targets, dtype)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            seen += ids.numel()
            progress.tell("tokens", seen, int(config.tokens))
            if seen >= next_report:
                reading = {name: reading_accuracy(model, tokenizer, rows) for name, rows in probes.items()}
                row = {"stage": number, "tokens": seen, "seconds": time.time() - start, "loss": loss.item(), **reading}
                print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
                next_report += config.report_every
                save(model, output)
        for worker in workers:
            worker.terminate()
    save(model, output)


def start_workers(config: PretrainConfig, tokenizer_folder: Path, stage: Stage, seed: int):
    """Starts a bounded queue and the processes that fill it."""
    context = get_context("spawn")
    batches = context.Queue(maxsize=64)
    workers = []
    for index in range(config.workers):
        arguments = (
            str(tokenizer_folder),
            stage,
            config.seed * 100 + seed + index,
            config.batch_tokens,
            config.max_length,
            batches,
        )
        workers.append(context.Process(target=write_batches, args=arguments, daemon=True))
        workers[-1].start()
    return batches, workers


def next_batch(batches, workers: Sequence[Process]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the next (ids, targets) of the queue.

    Raises:
        UserError: a worker has ended, which none does by itself.
    """
    while True:
        ended = next((worker for worker in workers if not worker.is_alive()), None)
        if ended is not None:
            raise UserError(
                f"a process that writes demonstrations ended with exit code {ended.exitcode} (a negative one is the "
                "signal that killed it); free some memory, or see above what it said, and run the command again"
            )
        with contextlib.suppress(queue.Empty):
            return batches.get(timeout=SECONDS_BETWEEN_LOOKS)


def save(model: Qwen2ForCausalLM, output: Path) -> None:
    """Writes a float16 copy, so that the shipped file is two bytes a parameter."""
    state = {name: tensor.to(torch.float16) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    half = Qwen2ForCausalLM(model.config).half()
    half.load_state_dict(state, strict=False)
    half.save_pretrained(output)
