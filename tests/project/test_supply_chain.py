"""Nothing that is loaded runs code, and nothing is reported: the source, booby-trapped weights, a guard on sockets."""

from __future__ import annotations

import ast
import json
import os
import pickle
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.encoders import save_bert, save_word_vectors
from helpers.guards import Trap
from helpers.models import CPU, save_random_qwen2
from helpers.paths import ROOT
from helpers.serving import ROWS, start

from searchr1_mini.core.critic import Critic
from searchr1_mini.core.errors import UserError
from searchr1_mini.models.loading import load_policy
from searchr1_mini.models.saving import save_critic, save_policy
from searchr1_mini.retrievers.dense import load_model
from searchr1_mini.storage.checkpoint import latest_checkpoint, save_checkpoint

SOURCES = [ROOT / "train.py", ROOT / "eval.py"]
SOURCES += [path for folder in ("searchr1_mini", "checks") for path in (ROOT / folder).rglob("*.py")]
ONE_STEP = "--questions-per-step 2 --group-size 2 --eval-questions 2 --save-every 1".split()
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def faults(source: str) -> list[str]:
    """What in a module could run code that it reads: unpicklers, and calls that allow it or do not forbid it."""
    found = []
    for node in ast.walk(ast.parse(source)):
        is_error_alone = isinstance(node, ast.ImportFrom) and [n.name for n in node.names] == ["UnpicklingError"]
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not is_error_alone:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if given.get("trust_remote_code", "False") != "False" or given.get("allow_pickle", "False") != "False":
            found.append(ast.unparse(node))
        if called == "torch.load" and given.get("weights_only") != "True":
            found.append(ast.unparse(node))
        if called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system"):
            found.append(ast.unparse(node))
        if called.endswith("from_pretrained") and called != "auto_class.from_pretrained":
            loaded = ast.unparse(node.args[0]) if called == "from_pretrained" else called.partition(".")[0]
            has_weights = not loaded.endswith(("Tokenizer", "TokenizerFast", "Config", "PeftModel"))
            if has_weights and given.get("use_safetensors") != "True":
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_reads_what_could_run_code(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from pickle import loads",
        "import joblib as j",
        "AutoModel.from_pretrained(name)",
        "from_pretrained(AutoModelForCausalLM, name)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
    ],
)
def test_the_search_for_such_code_finds_it(line):
    assert len(faults(line)) == 1


def pickled_weights(folder: Path, sign: Path) -> Path:
    """Replaces every safetensors file of a model by a trap in the older form."""
    for path in [*folder.rglob("*.safetensors")]:
        name = "adapter_model.bin" if path.name.startswith("adapter") else "pytorch_model.bin"
        path.with_name(name).write_bytes(pickle.dumps(Trap(sign)))
        path.unlink()
    return folder


def refusal(script: str, *flags: object, monkeypatch, capfd) -> str:
    """What a script says when it ends with exit code 2; the streams and signals that it takes are given back."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
    for name in ("stdin", "stdout", "stderr", "excepthook"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    told = capfd.readouterr().err
    assert left.value.code == 2 and "Traceback" not in told
    return told.splitlines()[-1]


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "sign")))
    assert (tmp_path / "sign").exists()


def test_pickled_weights_of_a_model_are_refused(tmp_path, tokenizer, monkeypatch, capfd):
    sign = tmp_path / "sign"
    folder = pickled_weights(save_random_qwen2(tmp_path / "model", tokenizer), sign)
    tools = {"monkeypatch": monkeypatch, "capfd": capfd}
    flags = ["--model", folder, "--dataset", "world", "--no-memory-check", "--output-dir"]
    for rank in (4, 0):
        told = refusal("train.py", *flags, tmp_path / str(rank), "--lora-rank", rank, **tools)
        assert "pytorch_model.bin is not opened, since a pickle can run code" in told
    flags = ["--model", folder, "--datasets", "world", "--methods", "direct", "--output-dir"]
    assert "pytorch_model.bin is not opened" in refusal("eval.py", *flags, tmp_path / "e", **tools)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model.old")  # of a hub id, transformers sees that much
    with pytest.raises(UserError, match=r"no file named model\.safetensors"):
        load_policy(str(folder), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU)
    assert not sign.exists()


def test_code_of_a_model_is_never_run(tmp_path, tokenizer, monkeypatch, capfd):
    folder = save_random_qwen2(tmp_path / "model", tokenizer)
    sign = tmp_path / "sign"
    (folder / "own.py").write_text(f"open({str(sign)!r}, 'w')\nclass C: ...\n")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.C"}
    (folder / "config.json").write_text(json.dumps(config))
    flags = ["--model", folder, "--dataset", "world", "--output-dir", tmp_path / "out"]
    told = refusal("train.py", *flags, monkeypatch=monkeypatch, capfd=capfd)
    assert "brings code of its own, which is never run" in told and not sign.exists()


@pytest.mark.parametrize(("kind", "flag"), [("SentenceTransformer", "--dense-model"), ("CrossEncoder", "--reranker")])
def test_pickled_weights_and_code_of_an_encoder_are_refused(tmp_path, kind, flag):
    sign = tmp_path / "sign"
    folder = Path(save_bert(tmp_path / "bert", ["a b"], labels=int(kind == "CrossEncoder")))
    load_model(kind, str(folder), flag)
    with pytest.raises(UserError, match=r"--\w+.*pytorch_model\.bin is not opened"):
        load_model(kind, str(pickled_weights(folder, sign)), flag)
    layers = Path(save_word_vectors(tmp_path / "layers", ["a b"], {}))
    (layers / "own.py").write_text(f"open({str(sign)!r}, 'w')\nclass C: ...\n")
    modules = json.loads((layers / "modules.json").read_text())
    (layers / "modules.json").write_text(json.dumps([{**module, "type": "own.C"} for module in modules]))
    with pytest.raises(UserError, match=r"own\.C"):
        load_model("SentenceTransformer", str(layers), flag)
    with pytest.raises(UserError, match=r"pytorch_model\.bin is not opened"):
        load_model("SentenceTransformer", str(pickled_weights(layers, sign)), flag)
    assert not sign.exists()


GUARD = """
import os, sys
def guard(event, args):
    if event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else "localhost"  # a path is a socket of this machine
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "::1", "0.0.0.0") and not host.startswith("127."):
        with open(os.environ["GUARD_LOG"], "a") as file:
            print(event, host, file=file)
        raise OSError(f"the guard allows no {event} to {host}")
sys.addaudithook(guard)
"""
COMMANDS = """
import json, os, runpy, sys
for sys.argv in json.loads(os.environ["COMMANDS"]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
SWITCHES = """
import searchr1_mini, datasets.config, huggingface_hub.constants as hub
assert hub.HF_HUB_DISABLE_TELEMETRY and not datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
import socket
socket.create_connection(("192.0.2.1", 80))
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory) -> tuple[dict[str, str], Path]:
    """An environment in which Python reports a connection to another machine, and where to."""
    folder = tmp_path_factory.mktemp("guard")
    (folder / "sitecustomize.py").write_text(GUARD)
    switches = ("OFFLINE", "TELEMETRY", "DO_NOT_TRACK", "DOWNLOAD_COUNTS", "CONVERSION")
    kept = {name: value for name, value in os.environ.items() if not any(word in name for word in switches)}
    return kept | {"PYTHONPATH": f"{folder}:{ROOT}", "GUARD_LOG": str(folder / "log")}, folder / "log"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, guarded) -> Path:
    """A run of one step, then evaluated through a server: both in one process, all under the guard."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = folder / "c.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    process, port = start(corpus, env=guarded[0])
    run, out, url = str(folder / "one"), str(folder / "eval"), f"http://127.0.0.1:{port}"
    trained = ["train.py", *ONE_STEP, "--steps", "1", "--output-dir", run]
    evaluated = ["eval.py", "--run", run, "--limit", "2", "--output-dir", out, "--retriever", "http"]
    env = guarded[0] | {"COMMANDS": json.dumps([trained, [*evaluated, "--retriever-url", url]])}
    done = subprocess.run([sys.executable, "-c", COMMANDS], cwd=ROOT, env=env, capture_output=True, text=True)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ""
    assert done.returncode == 0, done.stderr
    return folder / "one"


def test_the_guard_sees_a_connection_and_the_switches_are_off(guarded):
    done = subprocess.run([sys.executable, "-c", SWITCHES], cwd=ROOT, env=guarded[0], capture_output=True, text=True)
    assert "the guard allows no socket" in done.stderr and "192.0.2.1" in guarded[1].read_text()
    guarded[1].unlink()


def test_training_evaluation_and_server_connect_only_locally(run_folder, guarded):
    assert (run_folder.parent / "eval" / "results.json").exists()
    assert not guarded[1].exists(), guarded[1].read_text()


def test_a_pickled_adapter_of_a_checkpoint_is_refused(run_folder, tmp_path, monkeypatch, capfd):
    folder = Path(shutil.copytree(run_folder, tmp_path / "run"))
    whole, sign = latest_checkpoint(folder), tmp_path / "sign"
    aside = pickled_weights(Path(shutil.move(whole, tmp_path / "aside")), sign)
    (aside / "manifest.json").unlink()
    shutil.rmtree(folder / "checkpoints")
    save_checkpoint(folder, 1, lambda new: shutil.copytree(aside, new, dirs_exist_ok=True))
    assert latest_checkpoint(folder), "the checksums are those of the trap"
    tools = {"monkeypatch": monkeypatch, "capfd": capfd}
    assert "adapter of another form is not opened" in refusal("eval.py", "--run", folder, "--limit", 2, **tools)
    flags = ["--resume", "--output-dir", folder, *ONE_STEP, "--steps", 2]
    assert "has no adapter_model.safetensors" in refusal("train.py", *flags, **tools)
    assert not sign.exists()


def test_saving_adapters_asks_nobody(random_qwen2, tmp_path, monkeypatch):
    """peft would ask the hub of a base with a hub id, at every checkpoint, whether its embeddings were resized."""

    def asked(*_):
        raise AssertionError("the hub was asked")

    policy = load_policy(
        str(random_qwen2), lora_rank=4, lora_alpha=8, load_in_4bit=False, dtype=torch.float32, device=CPU
    )
    critic = Critic(policy, seed=0)
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", asked)
    for config in policy.model.peft_config.values():
        config.base_model_name_or_path = "Qwen/Qwen2.5-3B"
    save_policy(policy, tmp_path / "policy")
    save_critic(critic, tmp_path / "critic")
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 2
