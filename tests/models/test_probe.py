"""The load probe: what computes alike is let through and left as it was, all else is one sentence."""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch
from helpers.families import save_family
from helpers.graphs import Graph, Refused, capture_on_cpu
from helpers.models import CPU
from helpers.sessions import session_of, step_of
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from searchr1_mini.core.critic import Critic
from searchr1_mini.core.errors import UserError
from searchr1_mini.core.logprobs import token_logprobs
from searchr1_mini.core.policy import Policy
from searchr1_mini.core.questions import Example
from searchr1_mini.core.rollout import RolloutLimits, rollout
from searchr1_mini.evaluation import cells
from searchr1_mini.models import loading, probe, stacked
from searchr1_mini.models.loading import load_policy
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve, resolve_model
from searchr1_mini.retrievers.probes import EmptyRetriever
from searchr1_mini.run import invariants, preflight
from searchr1_mini.run.methods import make_method

LIMITS = RolloutLimits(n_rows=4, max_total_tokens=400, max_observation_tokens=120)
MAKE = make_method("direct", template="short", max_turns=1, max_new_tokens=12, topk=1)
RIGHT = {
    "gpt2": {"attn_pdrop": 0.1, "resid_pdrop": 0.1},
    "gpt_neox": {"attention_dropout": 0.1, "hidden_dropout": 0.1},
    "llama": {"attention_dropout": 0.1},
    "granite": {"attention_dropout": 0.1},
    "cohere": {},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "mixtral": {"router_jitter_noise": 0.2},
    "deepseek_v3": {"attention_dropout": 0.1},
    "falcon": {"hidden_dropout": 0.3},
    "opt": {"dropout": 0.2},
}


def load(folder, **settings) -> Policy:
    options = {"lora_rank": 4, "lora_alpha": 8, "load_in_4bit": False, "dtype": torch.float32, "device": CPU}
    return load_policy(str(folder), **options | settings)


def sampled(policy: Policy) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """Ids (1, T) of a rollout, what each policy token was sampled with, and where in log-probs of targets they are."""
    (trajectory,), _ = rollout(
        [Example("q", "Who is it?", ("x",), "s")], MAKE, policy, EmptyRetriever(), LIMITS, temperature=1, seed=0
    )
    (turn,) = trajectory.of_kind("policy")
    where = slice(len(trajectory.token_ids) - len(turn.token_ids) - 1, None)
    return torch.tensor([trajectory.token_ids]), torch.tensor(turn.logprobs), where


def own(model, ids: torch.Tensor, where: slice) -> torch.Tensor:
    """Log-probs of the sampled ids as anybody computes them."""
    with torch.no_grad():
        logprobs = model(ids).logits.float().log_softmax(-1)[0, :-1]
    return logprobs.gather(-1, ids[0, 1:, None])[where, 0]


def of_update(policy: Policy, ids: torch.Tensor, where: slice) -> torch.Tensor:
    mask = torch.ones_like(ids[:, 1:], dtype=torch.bool)
    policy.gradient_checkpointing = True
    with policy.training():
        hidden = policy.hidden(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None])[:, :-1]
        return token_logprobs(hidden, policy.lm_head, ids[:, 1:], mask, temperature=1.0)[0][0, where].detach()


@pytest.mark.parametrize("name", RIGHT)
def test_rollout_and_update_are_the_models_own_forward(name, tmp_path, tokenizer):
    folder = save_family(tmp_path, name, tokenizer, **RIGHT[name])
    policy = load(folder, gradient_checkpointing=True)
    ids, logprobs, where = sampled(policy)
    expected = own(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), ids, where)
    torch.testing.assert_close(logprobs, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(of_update(policy, ids, where), expected, atol=1e-3, rtol=0)
    assert policy.merges


def test_a_family_whose_logits_are_not_known_is_refused(tmp_path, tokenizer, monkeypatch):
    folder = save_family(tmp_path, "granite", tokenizer)
    monkeypatch.setattr("searchr1_mini.core.policy.final_logits", lambda logits, config: logits)
    with pytest.raises(UserError, match="family granite are not supported: reference and base differ"):
        load(folder)


def test_a_failed_probe_rollout_is_one_sentence_with_its_cause(tmp_path, tokenizer):
    folder = save_family(tmp_path, "phimoe", tokenizer)
    told = "^models of the family phimoe are not supported: a rollout does not run .*docs/models.md"
    with pytest.raises(UserError, match=told) as caught:
        load(folder)
    assert isinstance(caught.value.__cause__, probe.Failed)
    assert isinstance(caught.value.__cause__.__cause__, AttributeError)


def test_a_probe_leaves_no_trace(random_qwen2, monkeypatch):
    torch.manual_seed(7)
    policy = load(random_qwen2, gradient_checkpointing=True)
    state = torch.get_rng_state()
    monkeypatch.setattr("searchr1_mini.models.loading.Probe.check", lambda *_, **__: None)
    torch.manual_seed(7)
    unprobed = load(random_qwen2, gradient_checkpointing=True)
    assert torch.equal(state, torch.get_rng_state())
    pairs = zip(policy.model.named_parameters(), unprobed.model.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other) and one.grad is None and one.requires_grad == other.requires_grad, name
    assert not any(module.training for module in policy.model.modules())


ADAPTERS = {
    "all linear": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": "all-linear", "use_dora": True},
    "trained head": {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]},
    "head with LoRA": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "patterns": {
        "target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "down_proj": 8},
        "alpha_pattern": {"up_proj": 3}, "use_rslora": True, "lora_dropout": 0.3,
    },
    "one layer": {"target_modules": ["o_proj"], "layers_to_transform": [1], "lora_bias": True},
}  # fmt: skip


def save_adapter(folder, base, **settings) -> None:
    """An adapter as another program would have trained it: none of its numbers is 0."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, **settings))
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            with torch.no_grad():
                weight += 0.1 * torch.randn(weight.shape) * (1 if "lora" in name else max(weight.abs().mean(), 0.5))
    model.save_pretrained(folder)


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_of_any_form_is_computed_as_peft_computes_it(case, tmp_path, tokenizer):
    base = save_family(tmp_path / "base", "llama", tokenizer, tie_word_embeddings=case == "embeddings")
    save_adapter(tmp_path / "adapter", base, **ADAPTERS[case])
    policy = load(base, weights=tmp_path / "adapter", gradient_checkpointing=True)
    ids, logprobs, where = sampled(policy)
    theirs = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    of_base = own(theirs.eval(), ids, where)
    expected = own(PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval(), ids, where)
    assert (expected - of_base).abs().max() > 0.05
    torch.testing.assert_close(logprobs, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(of_update(policy, ids, where), expected, atol=1e-3, rtol=0)
    with policy.reference():
        torch.testing.assert_close(of_update(policy, ids, where), of_base, atol=1e-3, rtol=0)


def scaled(share: float):
    def change(up: torch.Tensor, bases) -> torch.Tensor:
        return up * share

    return change


def without_v(up: torch.Tensor, bases) -> torch.Tensor:
    starts = up.shape[1] - bases[-1].out_features if len(bases) == 3 else up.shape[1]
    return torch.cat([up[:, :starts], torch.zeros_like(up[:, starts:])], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("change", "is_right"), [(scaled(1), True), (scaled(0), False), (scaled(0.5), False), (without_v, False)]
)
def test_a_rollout_that_drops_some_of_an_adapter_is_told(change, is_right, dtype, monkeypatch, capsys):
    """In 16 bits the whole adapter may change log-probs by less than the noise that is allowed."""
    of_peft = stacked.stacked_adapters

    def with_fault(projections, bases):
        down, up = of_peft(projections, bases)
        return down, up if up is None else change(up, bases)

    monkeypatch.setattr(stacked, "stacked_adapters", with_fault)
    monkeypatch.setattr("searchr1_mini.models.rollout_weights.merged", lambda *_: nullcontext())
    policy = load(resolve_model("tiny"), lora_rank=16, lora_alpha=32, dtype=dtype)
    assert policy.stacks == is_right
    assert ("rollouts run transformers' own forward" in capsys.readouterr().out) != is_right


class Stale(Graph):
    """A graph whose replay leaves everything as it was."""

    def replay(self) -> None: ...


@pytest.mark.parametrize(("graph", "is_right"), [(Graph, True), (Stale, False)])
def test_where_steps_are_captured_the_probe_replays_them(graph, is_right, random_qwen2, monkeypatch, capsys):
    """Beside rows that rest, and before any question is spent."""
    graphs, resting, one_each = capture_on_cpu(monkeypatch, graph), [], stacked.StackedModel._one_each

    def seen(self, ids, positions, is_real, cache, span):
        resting.append(cache.n_rows - len(ids))
        return one_each(self, ids, positions, is_real, cache, span)

    monkeypatch.setattr(stacked.StackedModel, "_one_each", seen)
    policy = load(random_qwen2)
    assert graphs and min(resting) > 0
    assert policy.stacks == is_right
    assert ("rollouts run transformers' own forward" in capsys.readouterr().out) != is_right


def test_the_probe_tells_that_steps_cannot_be_captured(random_qwen2, monkeypatch, capsys):
    capture_on_cpu(monkeypatch, capture=Refused)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    assert load(random_qwen2).stacks
    assert capsys.readouterr().out.count("no step can be captured") == 1


def test_an_id_that_ends_turns_does_not_end_the_probe(random_qwen2, monkeypatch):
    """Else a decode step would go unseen where a model ends its turns at once."""
    monkeypatch.setattr(loading, "eos_ids", lambda *_: frozenset(range(10**6)))
    lengths, build_batch = [], probe.build_batch

    def seen(rows, *arguments):
        lengths.append([len(segment.token_ids) for row in rows for segment in row.segments if segment.kind == "policy"])
        return build_batch(rows, *arguments)

    monkeypatch.setattr(probe, "build_batch", seen)
    load(random_qwen2)
    assert [1, 1, 2] in lengths


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (16, 1), (4, 64)])
@pytest.mark.parametrize("name", ["tiny", "llama"])
def test_what_the_probe_adds_depends_on_no_width_rank_or_alpha(name, rank, alpha, tmp_path, tokenizer, monkeypatch):
    shares = []

    def see(rolled, update, base) -> None:
        shares.append(((update - base).norm() / update.norm()).item())

    monkeypatch.setattr(probe, "agree_on_adapter", see)
    wide = {"hidden_size": 512, "initializer_range": 0.1}
    base = resolve_model("tiny") if name == "tiny" else save_family(tmp_path, name, tokenizer, **wide)
    load(base, lora_rank=rank, lora_alpha=alpha)
    assert 0.1 < shares[0] < 1


def test_an_adapter_too_weak_for_16_bits_is_let_through(tmp_path, tokenizer):
    base = save_family(tmp_path / "base", "llama", tokenizer)
    save_adapter(tmp_path / "adapter", base, target_modules=["k_proj"], layers_to_transform=[1])
    assert load(base, weights=tmp_path / "adapter", dtype=torch.bfloat16).stacks


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_an_adapter_that_cannot_be_switched_off_is_refused(bias, tmp_path, tokenizer):
    """peft leaves the biases that it trained in the base, so that there would be no reference: told before loading."""
    base = save_family(tmp_path / "base", "qwen2", tokenizer)
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], bias=bias)
    with pytest.raises(UserError, match="bias"):
        load(base, weights=tmp_path / "adapter")


def test_critic_layers_without_a_policy_adapter_are_not_merged(tmp_path, tokenizer):
    base = save_family(tmp_path / "base", "llama", tokenizer)
    save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"])
    policy = load(base, weights=tmp_path / "adapter")
    Critic(policy, seed=0)
    ids, logprobs, where = sampled(policy)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(logprobs, own(theirs, ids, where), atol=1e-3, rtol=0)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_ids_without_a_token_have_no_probability(lora_rank, tmp_path, tokenizer):
    base = save_family(tmp_path, "qwen2", tokenizer, vocab_size=len(tokenizer) + 1000, tie_word_embeddings=False)
    policy = load(base, lora_rank=lora_rank)
    hidden = torch.randn(1, 7, 64)
    probabilities = policy.lm_head(hidden).softmax(-1)
    assert probabilities[..., len(tokenizer) :].max() == 0 < probabilities[..., : len(tokenizer)].min()
    examples = [Example(f"q{n}", f"Who is {n}?", ("x",), "s") for n in range(16)]
    trajectories, _ = rollout(examples, MAKE, policy, EmptyRetriever(), LIMITS, temperature=2, seed=0)
    ids = [id_ for t in trajectories for segment in t.of_kind("policy") for id_ in segment.token_ids]
    assert len(ids) > 100 and max(ids) < len(tokenizer)
    targets, mask = torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.bool)
    logprobs, entropy = token_logprobs(hidden, policy.lm_head, targets, mask, temperature=0.5)
    assert logprobs.isfinite().all() and entropy.isfinite().all()


class Casts(TorchDispatchMode):
    """Counts float32 tensors of two dimensions or more that become bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_weights_are_cast_to_16_bits_once_a_rollout(lora_rank, random_qwen2):
    policy = load(random_qwen2, lora_rank=lora_rank, dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        apart = policy.lm_head(policy.hidden(input_ids=ids))
        with policy.for_rollouts(), Casts() as casts:
            inside = policy.lm_head(policy.hidden(input_ids=ids))
    assert torch.equal(apart, inside)
    assert max(casts.sizes, default=0) <= 8 * 128  # states of 8 tokens, no matrix
    after = dict(policy.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_check_sees_what_is_random_in_the_updates_mode_only(tmp_path, monkeypatch):
    run = session_of(tmp_path / "run", check=True, gradient_checkpointing=True)
    _, experience = step_of(run)
    invariants.check_agreement(run, experience.batch)
    for module in run.policy.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.3
    with pytest.raises(UserError, match="rollout and update agree"):
        invariants.check_agreement(run, experience.batch)


@pytest.mark.parametrize(
    ("room", "chosen", "is_unpacked"),
    [
        (1e12, {}, True),
        (1e6, {}, False),
        (1e12, {"memory_limit": 1e-3}, False),
        (1e12, {"rollout_weights": "base"}, False),
        (1e6, {"rollout_weights": "dequantized"}, True),
    ],
)
def test_an_evaluation_unpacks_a_4_bit_base_where_it_may(room, chosen, is_unpacked, random_qwen2, monkeypatch):
    """As --rollout-weights says, or with auto where there is room, of a shared device no more than --memory-limit."""
    monkeypatch.setattr(preflight, "available_bytes", lambda device: room)
    what = {"model": str(random_qwen2), "max_total_tokens": 640, "date": "2026-01-01"}
    settings = resolve(make(TrainConfig, load_in_4bit=True, **what, **chosen))
    policy = cells.load(EvalConfig(device="cpu"), settings, str(random_qwen2), None)
    assert policy.dequantize == is_unpacked


def test_onednn_keeps_few_kernels_unless_the_user_says(random_qwen2, monkeypatch):
    """By itself it keeps 1,024: 20 MB for every new shape of a micro-batch of SmolLM2-135M in 16 bits."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    for asked, kept in ((None, str(loading.KERNELS_KEPT)), ("5", "5")):
        monkeypatch.delenv(name, raising=False)
        if asked:
            monkeypatch.setenv(name, asked)
        load(random_qwen2)
        assert os.environ[name] == kept
