"""`--init`: a run that starts from what another learned, which is its reference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.faults import config_of, sentence_of
from helpers.models import save_random_qwen2
from safetensors.torch import load_file

from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluate import evaluate_command
from searchr1_mini.export import main as export
from searchr1_mini.models.initial import check_init
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import make, with_options
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.report import write_report
from searchr1_mini.run import memory
from searchr1_mini.run.opening import open_run
from searchr1_mini.run.shape import Shape
from searchr1_mini.run.training import train
from searchr1_mini.storage import checkpoint
from searchr1_mini.storage.files import read_metrics

IDS = torch.arange(1, 20)[None]
LORA = {"lora_rank": 4, "lora_alpha": 12}


def imitation(folder: Path, **options) -> TrainConfig:
    """Two steps that sample nothing."""
    few = {"demonstration_questions": 8, "questions_per_step": 4, "mini_batches": 1, "max_new_tokens": 16, "seed": 1}
    saved = {"steps": 2, "save_every": 1, "eval_every": 1, "eval_questions": 2, "tensorboard": False}
    return resolve(make(TrainConfig, algorithm="sft", **few | saved | options, output_dir=str(folder)))


def weights_of(run: Path, step: int, part: str = "policy") -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{step:06d}" / "model" / part
    (path,) = folder.glob("*.safetensors")
    return {name.replace("lm_head", "model.embed_tokens"): tensor for name, tensor in load_file(path).items()}  # tied


def same(some: dict, others: dict) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Path:
    """A run of two steps, of which the first has the better exact match."""
    folder = tmp_path_factory.mktemp("warm") / "warm"
    train(imitation(folder, **LORA))
    rows = read_metrics(folder / "metrics.jsonl")
    rows[0]["eval/em"], rows[1]["eval/em"] = 0.5, 0.25
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def warm_full(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("warm") / "warm"
    train(imitation(folder, lora_rank=0))
    return folder


@pytest.fixture(scope="module")
def going_on(warm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("on") / "on"
    train(config_of(folder, init=str(warm), kl_coef=0.1, entropy_coef=0.1, mini_batches=1))
    return folder


def test_init_starts_from_another_runs_best_checkpoint(warm, going_on):
    """That checkpoint stays the reference of the run."""
    config = json.loads((going_on / "config.json").read_text())
    assert (config["lora_rank"], config["lora_alpha"], config["started_from"]) == (4, 12, "warm, step 1")
    first, second = (weights_of(going_on, step) for step in (1, 2))
    learned = weights_of(warm, 1)
    assert not same(learned, weights_of(warm, 2)) and not same(first, learned) and not same(first, second)
    for step in (1, 2):
        assert same(weights_of(going_on, step, "reference"), learned)
    kl = [row["kl"] for row in read_metrics(going_on / "metrics.jsonl")]
    assert abs(kl[0]) < 1e-6 < kl[1]


@pytest.mark.parametrize("settings", [{}, {"algorithm": "ppo", "baseline": "group", "normalize_std": True}])
def test_it_is_resumed_to_the_bit_when_the_other_run_is_gone(warm, tmp_path, settings):
    settings = settings | {"kl_coef": 0.1, "entropy_coef": 0.1, "mini_batches": 1}
    other = shutil.copytree(warm, tmp_path / "other")
    whole = train(config_of(tmp_path / "whole", init=str(other), **settings))
    broken = config_of(tmp_path / "broken", init=str(other), **settings)
    open_run(broken).tracker.__exit__()  # left before its first step
    shutil.rmtree(other)
    for steps in (1, 2):
        train(config_of(tmp_path / "broken", init=str(other), **settings, resume=True, steps=steps))
    for part in ("policy", "reference"):
        assert same(weights_of(whole, 2, part), weights_of(tmp_path / "broken", 2, part))
    assert same(weights_of(whole, 2, "reference"), weights_of(warm, 1))


def test_whole_weights_are_gone_on_with_too(warm_full, tmp_path):
    settings = {"kl_coef": 0.1, "entropy_coef": 0.1, "learning_rate": 1e-3}
    other = shutil.copytree(warm_full, tmp_path / "other")
    whole = train(config_of(tmp_path / "whole", init=str(other), **settings))
    assert json.loads((whole / "config.json").read_text())["lora_rank"] == 0
    train(config_of(tmp_path / "broken", init=str(other), **settings, steps=1))
    shutil.rmtree(other)
    broken = train(config_of(tmp_path / "broken", init=str(other), **settings, resume=True))
    for part in ("", "reference"):
        assert same(weights_of(whole, 2, part), weights_of(broken, 2, part))
    learned = weights_of(warm_full, 2, "")
    assert same(weights_of(whole, 2, "reference"), learned) and not same(weights_of(whole, 2, ""), learned)


def test_every_form_of_what_was_learned_is_taken(warm, warm_full, tmp_path):
    """A checkpoint, its model, the adapter alone, an export, its parts; whole weights: each starts as it was."""
    export([str(warm), "--what", "adapter", "--output-dir", str(tmp_path / "lora")])
    export([str(warm_full), "--what", "merged", "--dtype", "float32", "--output-dir", str(tmp_path / "full")])
    last, last_full = (run / "checkpoints" / "step-000002" for run in (warm, warm_full))
    forms = [last, last / "model", last / "model" / "policy", tmp_path / "lora", tmp_path / "lora" / "adapter"]
    full = [last_full, last_full / "model", tmp_path / "full", tmp_path / "full" / "merged"]
    states = {}
    for number, form in enumerate([*forms, *full]):
        run = open_run(config_of(tmp_path / str(number), init=str(form)))
        run.tracker.__exit__()
        with torch.no_grad():
            states[form] = run.policy.hidden(input_ids=IDS)
            with run.policy.reference():
                assert torch.equal(run.policy.hidden(input_ids=IDS), states[form])
    assert all(torch.equal(states[form], states[forms[0]]) for form in forms)
    assert all(torch.equal(states[form], states[full[0]]) for form in full)
    assert not torch.equal(states[forms[0]], states[full[0]])
    told = [json.loads((tmp_path / str(n) / "config.json").read_text())["started_from"] for n in (0, 2, 4)]
    assert told == ["warm, step 2", "policy", "adapter"]


def test_an_adapter_of_peft_loses_its_dropout(warm, tmp_path):
    """Which would make the update's distribution another than the rollout's."""
    folder = shutil.copytree(warm / "checkpoints" / "step-000002" / "model" / "policy", tmp_path / "adapter")
    edit(folder, lora_dropout=0.5)
    run = open_run(config_of(tmp_path / "run", init=str(folder)))
    run.tracker.__exit__()
    inside = run.policy.hidden(input_ids=IDS)
    run.policy.gradient_checkpointing = True
    with run.policy.training():
        torch.testing.assert_close(run.policy.hidden(input_ids=IDS), inside)


def test_it_is_evaluated_exported_and_told_of(going_on, warm, tmp_path, capsys):
    evaluate_command(EvalConfig(run=str(going_on), limit=2, output_dir=str(tmp_path / "eval")))
    export([str(going_on), "--what", "adapter", "--output-dir", str(tmp_path / "out")])
    assert same(load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors"), weights_of(going_on, 2))
    assert {path.name for path in (tmp_path / "out" / "adapter").iterdir()} >= {"base.json"}
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "| started from | warm, step 1 |" in card and "| exact match before training |" in card
    assert str(warm) not in card and "exact match of the base" not in card
    assert "started from warm, step 1" in write_report(going_on).read_text()
    assert "reference" not in {path.name for path in (tmp_path / "out" / "adapter").rglob("*")}


def edit(adapter: Path, **changes) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_unusable_init_is_refused_before_there_is_a_run(warm, warm_full, tmp_path, tokenizer, capsys):
    model = warm / "checkpoints" / "step-000002" / "model"
    (tmp_path / "empty").mkdir()
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(warm / "config.json", young)
    torn = shutil.copytree(warm / "checkpoints" / "step-000002", tmp_path / "step-000002")
    (torn / "progress.json").write_text("{}")
    dora = shutil.copytree(model / "policy", tmp_path / "dora")
    edit(dora, use_dora=True)
    pickled = shutil.copytree(model / "policy", tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    other = save_random_qwen2(tmp_path / "other", tokenizer, hidden=32)
    of_other = tmp_path / "of-other"
    export([str(warm), "--what", "adapter", "--output-dir", str(of_other)])
    told = [
        ("there is no such folder", {"init": str(tmp_path / "nowhere")}),
        ("there are no weights in it", {"init": str(tmp_path / "empty")}),
        ("has no whole checkpoint yet", {"init": str(young)}),
        ("is damaged", {"init": str(torn)}),
        ("use_dora", {"init": str(dora)}),
        ("is not opened", {"init": str(pickled)}),
        ("--lora-rank 8: --init", {"init": str(warm), "lora_rank": 8}),
        ("--lora-alpha 4: --init", {"init": str(warm), "lora_alpha": 4}),
        ("--lora-rank 8: --init", {"init": str(warm_full), "lora_rank": 8}),
        ("has hidden_size 32, not", {"init": str(warm), "model": str(other), "dataset": "world"}),
        ("has hidden_size 32, not", {"init": str(of_other), "model": str(other), "dataset": "world"}),
        ("has hidden_size 32, not", {"init": str(warm_full), "model": str(other), "dataset": "world"}),
    ]
    run = tmp_path / "run"
    for sentence, options in told:
        assert sentence in sentence_of(capsys, lambda options=options: train(config_of(run, **options))), options
        assert not run.exists()


def test_whole_weights_of_unknown_origin_must_fit_the_base(tmp_path, tokenizer, capsys):
    other = save_random_qwen2(tmp_path / "other", tokenizer, hidden=32)
    told = sentence_of(capsys, lambda: train(config_of(tmp_path / "run", init=str(other))))
    assert "has hidden_size 32, but" in told and not (tmp_path / "run").exists()


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def fine_tuned(random_qwen2, tmp_path) -> Path:
    """Whole weights of `random_qwen2`, without a word about where they come from."""
    return shutil.copytree(random_qwen2, tmp_path / "fine-tuned")


@pytest.mark.parametrize(
    "name, value",
    [
        ("rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}),
        ("rms_norm_eps", 1e-3),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", False),
    ],
)
def test_whole_weights_compute_as_their_reference_does(random_qwen2, fine_tuned, name, value):
    """The frozen reference has the base's config: with another its KL would not begin at 0."""
    edit_json(fine_tuned / "config.json", **{name: value})
    with pytest.raises(UserError, match=f"has {name} .*that folder itself, as --model"):
        check_init(fine_tuned, str(random_qwen2))


def test_settings_that_nothing_is_computed_with_may_differ(random_qwen2, fine_tuned):
    edit_json(fine_tuned / "config.json", use_cache=False, attention_dropout=0.1, eos_token_id=3, dtype="bfloat16")
    check_init(fine_tuned, str(random_qwen2))


def test_whole_weights_with_other_token_ids_are_refused(random_qwen2, fine_tuned):
    saved = json.loads((fine_tuned / "tokenizer.json").read_text())
    ids = saved["model"]["vocab"]
    words = [word for word in ids if len(word) > 4]
    ids.update(zip(words, [ids[word] for word in (*words[1:], words[0])], strict=True))
    (fine_tuned / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match="a tokenizer with other token ids"):
        check_init(fine_tuned, str(random_qwen2))


def test_another_chat_template_of_whole_weights_is_told(random_qwen2, fine_tuned, capsys):
    check_init(fine_tuned, str(random_qwen2))
    assert not capsys.readouterr().out
    edit_json(fine_tuned / "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    check_init(fine_tuned, str(random_qwen2))
    assert "has another chat template" in capsys.readouterr().out


def test_the_model_of_the_run_is_asked_for(warm, tmp_path, capsys):
    other = shutil.copytree(warm, tmp_path / "other")
    saved = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(saved | {"model": "Qwen2.5-3B"}))
    for name in (other, other / "checkpoints" / "step-000002"):
        told = sentence_of(capsys, lambda name=name: config_of(tmp_path / "run", init=str(name)))
        assert told.endswith("not on tiny; add --model Qwen2.5-3B")


def test_a_run_with_another_start_is_not_gone_on_with(going_on, warm_full, capsys):
    told = sentence_of(
        capsys, lambda: train(config_of(going_on, resume=True, kl_coef=0.1, entropy_coef=0.1, mini_batches=1))
    )
    assert "lora_rank 4" in told or "has init" in told


def test_memory_knows_the_second_adapter():
    plain = resolve(make(TrainConfig, model="Qwen2.5-3B"))
    shape = Shape(36, 2048, 11008, 16, 2048, 256, 151_936, 2_774_532_096, 22_544_384, 311_000_000, 1_870_848)
    before, after = (
        memory.predict(config, shape, 2, on_gpu=True) for config in (plain, with_options(plain, init="runs/warm"))
    )
    for phase in before.phases:
        assert after.total(phase) >= before.total(phase) + 4 * plain.weights.lora_rank * shape.lora


def test_a_copy_that_was_broken_off_is_made_anew(warm, tmp_path):
    config = config_of(tmp_path / "run", init=str(warm))
    open_run(config).tracker.__exit__()
    shutil.rmtree(tmp_path / "run" / "init")
    (tmp_path / "run" / ".init").mkdir()
    run = train(with_options(config, resume=True, steps=1))
    assert same(weights_of(run, 1, "reference"), weights_of(warm, 1))
    assert checkpoint.latest_checkpoint(run)


def test_an_adapters_alpha_is_whole_however_it_is_spelled(warm, tmp_path, capsys):
    """peft writes 16.0 too; a run keeps it as its own flag would set it."""
    adapter = shutil.copytree(weights_folder(warm), tmp_path / "adapter")
    saved = json.loads((adapter / "adapter_config.json").read_text())
    for alpha in (12.0, 12.5):
        (adapter / "adapter_config.json").write_text(json.dumps(saved | {"lora_alpha": alpha}))
        config = make(TrainConfig, init=str(adapter))
        if alpha == 12.0:
            assert resolve(config).weights.lora_alpha == 12 and isinstance(resolve(config).weights.lora_alpha, int)
        else:
            assert "lora_alpha is 12.5" in sentence_of(capsys, resolve, config)


def test_a_preset_gives_way_to_the_rank_of_init(warm):
    config = make(TrainConfig, init=str(warm), lora_rank=16, lora_alpha=32)
    assert resolve(config, {"lora_rank", "lora_alpha"}).weights.lora_rank == LORA["lora_rank"]
    with pytest.raises(UserError, match="--lora-rank 16: --init"):
        resolve(config)


def weights_folder(run: Path) -> Path:
    return checkpoint.latest_checkpoint(run) / "model" / "policy"
