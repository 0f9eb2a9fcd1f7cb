"""Names of files and folders that nobody expects: each works, or is refused in one sentence before any work."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from helpers import report_runs

from searchr1_mini import classroom, export
from searchr1_mini import report as report_command
from searchr1_mini.core.errors import UserError
from searchr1_mini.evaluation.plan import run_folders
from searchr1_mini.options.cli import parse
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.nested import flat
from searchr1_mini.options.outcome import run_command
from searchr1_mini.options.paths import check_folder
from searchr1_mini.options.resolve import resolve, resolve_model, saved_config
from searchr1_mini.pages import report
from searchr1_mini.run.training import train
from searchr1_mini.storage.cache import cache_dir
from searchr1_mini.storage.files import listed_paths, write_json_atomic

SMALL = (
    "--steps 1 --questions-per-step 1 --group-size 2 --mini-batches 1 --eval-questions 1 --max-new-tokens 3 "
    "--max-turns 1 --no-tensorboard --no-memory-check"
).split()
LONG = "\u4e2d" * 85  # 255 bytes


def run_at(name: str) -> Path:
    return train(resolve(parse(TrainConfig, "train.py", "", [*SMALL, f"--output-dir={name}"])))


@pytest.mark.parametrize(
    "name",
    [
        "a,b",
        "new\nline",
        "100%s {x} %(y)s",
        "../up/./there/",
        " blank ",
        "\U0001f600 emoji",
        "-first",
        "--steps",
        LONG,
        "'q\"$(x)`",
    ],
    ids=["comma", "newline", "format", "dots", "blanks", "emoji", "dash", "flag", "long", "quotes"],
)
def test_a_run_of_any_name_is_trained_resumed_and_shown(tmp_path, monkeypatch, capsys, name):
    (tmp_path / "in" / "side").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "side")
    folder = run_at(name)
    assert folder.resolve() == Path(name).resolve() and (folder / "checkpoints" / "step-000001").is_dir()
    assert run_folders(EvalConfig(run=name)) == [Path(name)]
    assert "\ntrained 1 step in " in capsys.readouterr().out
    report_command.main([f"--runs={name}", f"--output={tmp_path / 'page.html'}"])
    assert (tmp_path / "page.html").is_file() and saved_config(folder)["output_dir"] == name


TOO_LONG, UNWRITABLE = "at most 255 bytes", "cannot be written"
REFUSED = {
    "\udcff": "text in UTF-8", "x" * 300: TOO_LONG, LONG + "x": TOO_LONG, "a/" + "y" * 256 + "/b": TOO_LONG,
    "file": UNWRITABLE, "file/below": UNWRITABLE, "loop/x": UNWRITABLE, "dangling": UNWRITABLE,
    "readonly/x": UNWRITABLE, "full": "is not empty",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: ascii(name)[:20])
def test_a_folder_that_cannot_be_is_refused_in_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    os.symlink("loop", "loop")
    os.symlink("nowhere/at/all", "dangling")
    Path("full").mkdir()
    (Path("full") / "x").touch()
    if name.startswith("readonly"):
        make = Path.mkdir

        def refuse(path, *arguments, **options):
            if "readonly" in path.parts:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            make(path, *arguments, **options)

        monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    with pytest.raises(UserError, match=REFUSED[name]) as told:
        run_at(name)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


@pytest.mark.parametrize("flag", ["--model", "--data-path", "--corpus", "--output-dir", "--dataset"])
@pytest.mark.parametrize("value", ["x" * 300, "/" + "x" * 300 + "/y", "~nobody-of-that-name/x", "\udcfe"])
def test_every_path_is_read_or_told(flag, value):
    words = [f"{flag}={value}"] + (["--model=Qwen2.5-3B"] if flag in ("--data-path", "--corpus") else [])
    try:
        resolve_model(resolve(parse(TrainConfig, "train.py", "", words)).run.model)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


@pytest.mark.parametrize(
    "number", [errno.ENAMETOOLONG, errno.ELOOP, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.EACCES]
)
def test_what_the_system_says_of_a_path_is_one_sentence(capsys, number):
    def fail() -> None:
        raise OSError(number, os.strerror(number), "a\nb" * 3)

    with pytest.raises(SystemExit) as left:
        run_command(fail)
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.count("\n") == 1 and os.strerror(number) in told


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc, in which no file can be made")
@pytest.mark.parametrize(
    ("command", "flag"),
    [(classroom, "--output=/proc/x.html"), (report_command, "--output=/proc/x.html"), (export, "--output-dir=/proc/x")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_where_no_file_can_be_made_nothing_is_begun(tmp_path, command, flag):
    report_runs.fill_run(tmp_path / "run")
    write_json_atomic(tmp_path / "run" / "config.json", flat(resolve(TrainConfig())))
    before = sorted(tmp_path.rglob("*"))
    told = rf"^{flag.replace('=', ' ')} cannot be written: no file can be made in /proc \(No such file.*\); name"
    with pytest.raises(UserError, match=told):
        command.main([str(tmp_path / "run"), flag])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_tried_is_left_as_it_was(tmp_path):
    check_folder(tmp_path / "new" / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_paths_knows_names_with_commas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,b", "x,y,z", "y"):
        Path(name).mkdir()
    assert listed_paths("a,b") == ["a,b"] and listed_paths("a, y") == ["a", "y"]
    assert listed_paths("a,x,y,z,y,a") == ["a", "x,y,z", "y", "a"]
    assert listed_paths("nq,hotpotqa") == ["nq", "hotpotqa"] and listed_paths(None) == listed_paths(" , ") == []
    assert listed_paths("q" * 300 + ",y") == ["q" * 300, "y"]


def test_reports_of_many_long_names_fit_into_a_name(tmp_path):
    runs = []
    for number in range(3):
        runs.append(tmp_path / f"{number}{LONG[:80]}")
        report_runs.fill_run(runs[-1])
    page = report.write_report(*runs)
    assert page.parent == runs[0] and page.name.endswith(".html")


def test_a_cache_needs_no_home(monkeypatch, tmp_path):
    monkeypatch.delenv("SEARCHR1_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is without $HOME and an entry for the user
    assert str(os.getuid()) in cache_dir().name and cache_dir().parent.is_dir()
    monkeypatch.setenv("SEARCHR1_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    shutil.rmtree(tmp_path)
