"""What README and docs name exists: links and their anchors, paths, commands with their flags, make targets."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from helpers.paths import ROOT

from searchr1_mini import race
from searchr1_mini.core.errors import UserError
from searchr1_mini.options.cli import parse, parse_asked
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.nested import flag_name, options_of, with_options
from searchr1_mini.options.resolve import filled, resolve, resolve_model

PACKAGE = ROOT / "searchr1_mini"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("checks/*.md"), *ROOT.glob("notebooks/*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))

COMMAND = re.compile(r"\bpython3? (?:-m (searchr1_mini\.[\w.]+)|((?:\w+/)?\w+\.py))(?=\s|$)(.*)", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(
    r"(?<![\w/.-])((?:searchr1_mini|tests|docs|checks|benchmarks|notebooks)/[\w/.-]+\.\w+|(?:\w+/)*\w+\.(?:py|js))\b"
)
MODULE = r"`((?:\w+/)?\w+\.py)`"
NAMES = r"((?:`\w+`(?:, | and )?)+)"
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
TAKE_RUNS = (
    "searchr1_mini.export",
    "searchr1_mini.report",
    "searchr1_mini.mystery",
    "searchr1_mini.classroom",
)  # as words before the flags
SHELL = ("<", ">", "|", "&&")  # what comes after is not the command's
OF_ALL_COMMANDS = {"--preset", "--config", "--help", "--verbose", "--name", "--no-name"}  # the last two stand for any
OF_OTHERS = set(  # programs of other people: torchrun, vLLM, pip, jupytext
    "--nproc-per-node --shutdown-timeout --enable-lora --max-lora-rank --lora-modules --require-hashes --no-deps "
    "--sync".split()
)


def blocks(text: str) -> Iterator[tuple[bool, str]]:
    """(is code, text) of a page's blocks; code is fenced, or indented by four."""
    fenced = re.split(r"^```.*$", text, flags=re.MULTILINE)
    for number, part in enumerate(fenced):
        for block in re.split(r"\n\s*\n", part):
            lines = [line for line in block.splitlines() if line.strip()]
            yield number % 2 == 1 or all(line.startswith("    ") for line in lines), block


def snippets(text: str) -> list[str]:
    """Everything that is set as code: each line of a block, its continuations joined, and each inline span."""
    found = []
    for is_code, block in blocks(text):
        if is_code:
            found += re.sub(r"\\\n\s*", "", block).splitlines()
        else:
            found += [" ".join(span.split()) for _, span in re.findall(r"(`+)(.+?)\1", block, re.DOTALL)]
    return [snippet.strip() for snippet in found if snippet.strip()]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    return broken


def missing_paths(text: str) -> list[str]:
    """Paths in code that are no file of the repository or of the package; a bare module may stand anywhere in them."""
    named = {path for snippet in snippets(text) for path in PATH.findall(snippet) if not snippet.startswith("http")}
    return sorted(path for path in named if not re.search(r"NN_|^my_", path) and not _is_file(path))


@cache
def _is_file(name: str) -> bool:
    anywhere = ("*", "searchr1_mini/*", "tests/*") if "/" not in name else ()
    is_there = (ROOT / name).is_file() or (PACKAGE / name).is_file()
    return is_there or any(any(ROOT.glob(f"{folder}/{name}")) for folder in anywhere)


@cache
def parser_of(script: str) -> tuple[type | None, frozenset[str]]:
    """The config class that a script parses, and the flags that it gives to argparse, read off its source."""
    source = _source_of(script)
    config, flags = None, set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if name in ("parse", "parse_asked") and node.args and isinstance(node.args[0], ast.Name):
            config = _config_class(source, node.args[0].id)
        elif name == "add_argument":
            given = {word.value for word in node.args if isinstance(word, ast.Constant) and word.value[:2] == "--"}
            flags |= given | {flag.replace("--", "--no-") for flag in given}
    return config, frozenset(flags)


def _source_of(script: str) -> Path:
    script = {"train.py": "searchr1_mini.train", "eval.py": "searchr1_mini.evaluate"}.get(script, script)
    return ROOT / (script.replace(".", "/") + ".py" if script.startswith("searchr1_mini.") else script)


def _is_program(script: str) -> bool:
    source = ROOT / script if script in ("train.py", "eval.py") else _source_of(script)
    return "__main__" in source.read_text(encoding="utf-8")


def _config_class(source: Path, name: str) -> type:
    homes = [
        "searchr1_mini.options.config",
        "searchr1_mini.options.eval_config",
        "searchr1_mini.options.retrieval_config",
    ]
    homes += [f"searchr1_mini.{source.stem}"] * (source.parent.name == "searchr1_mini")
    return next(getattr(module, name) for module in map(importlib.import_module, homes) if hasattr(module, name))


def broken_commands(text: str) -> list[str]:
    """Commands that their program would refuse, each with the reason."""
    broken = []
    for snippet in snippets(text):
        found = COMMAND.search(snippet)
        if found:
            script = found[1] or found[2]
            try:
                words = shlex.split(found[3], comments=True)
                run_parser(script, list(takewhile(lambda word: word not in SHELL, words)))
            except (UserError, OSError, ValueError, SystemExit) as error:
                if "there is no such file; name one as my_" not in str(error):  # of the reader's own
                    broken.append(f"{snippet}: {error}")
    return broken


def run_parser(script: str, words: list[str]) -> None:
    """Parses the words as the script would; `...` and N stand for anything.

    Raises:
        UserError: the script would refuse them.
        OSError: there is no such script.
    """
    is_whole = not {"...", "…"} & set(words)
    stands_for = {"N": "1", "latest": "runs/NAME"}  # of which a fresh clone has none
    words = [stands_for.get(word, word) for word in words if word not in ("...", "…", "--help")]
    if not _is_program(script):
        raise UserError(f"{script} is a module, and does nothing by itself")
    config_class, flags = parser_of(script)
    given = {word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    if config_class is None or flags:
        known = flags | {"--help"} | (flags_of(config_class) if config_class else set())
        if not given <= known:
            raise UserError(f"unknown {given - known}")
        return
    if script == "searchr1_mini.ablate" and words and not words[0].startswith("--"):
        words = ["--study", *words]
    if script == "searchr1_mini.race":
        own, words = race.split(words)
        parse(race.RaceConfig, script, "", own)
        config_class = TrainConfig
    while script in TAKE_RUNS and words and not words[0].startswith("--"):
        words = words[1:]
    config, unasked = parse_asked(config_class, script, "", words)
    if config_class is TrainConfig and is_whole:
        config = resolve(with_options(config, init=None), unasked)  # a run that is not there
        if config.run.model.startswith("Qwen"):
            resolve_model(config.run.model)


def flags_of(config_class: type) -> set[str]:
    names = map(flag_name, options_of(config_class))
    return {form for name in names for form in (name, name.replace("--", "--no-", 1))} | OF_ALL_COMMANDS


@cache
def all_flags() -> frozenset[str]:
    """Every flag of every command of the repository."""
    scripts = [f"{path.name}" for path in ROOT.glob("*.py")] + [
        f"searchr1_mini.{path.stem}" for path in (ROOT / "searchr1_mini").glob("*.py") if "__main__" in path.read_text()
    ]
    scripts += [
        str(path.relative_to(ROOT))
        for folder in ("checks", "benchmarks", "notebooks")
        for path in (ROOT / folder).glob("*.py")
    ]
    known = set(OF_OTHERS)
    for config_class, flags in map(parser_of, scripts):
        known |= flags | (flags_of(config_class) if config_class else set())
    return frozenset(known)


def unknown_flags(text: str) -> list[str]:
    named = {flag.replace("_", "-") for snippet in snippets(text) for flag in FLAG.findall(snippet)}
    return sorted(named - all_flags())


def unknown_targets(text: str) -> list[str]:
    targets = set(re.findall(r"^([a-z]\w*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for snippet in snippets(text) for name in re.findall(r"^make ((?:[a-z]\w* ?)+)", snippet)}
    return sorted({word for names in named for word in names.split()} - targets)


def missing_names(text: str) -> list[str]:
    """What "`module.py`: `name`, `name`" or "`name` in `module.py`" names and the module does not define."""
    text = " ".join(text.split())
    told = re.findall(rf"{MODULE}: {NAMES}", text)
    told += [(module, names) for names, module in re.findall(rf"{NAMES} in {MODULE}", text)]
    missing = []
    for module, names in told:
        for path in PACKAGE.rglob(module):  # none is there of a test, whose path is checked
            source, named = path.read_text(encoding="utf-8"), re.findall(r"`(\w+)`", names)
            defined = r"^(?:def |class |    def )?"  # a name of the module, or a method
            missing += [name for name in named if not re.search(rf"{defined}{name}\b", source, re.MULTILINE)]
    return missing


@each_page
def test_every_name_of_a_module_is_defined_there(page):
    assert missing_names(page.read_text(encoding="utf-8")) == []
    assert missing_names("`core/batch.py`: `build_batch`, `no_such`") == ["no_such"]
    assert missing_names("`build_batch` and `no_such` in `batch.py`") == ["no_such"]


@each_page
def test_every_link_leads_somewhere(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


@each_page
def test_every_path_and_make_target_exists(page):
    text = page.read_text(encoding="utf-8")
    assert missing_paths(text) == [] and unknown_targets(text) == []


@each_page
def test_every_command_parses_and_every_flag_exists(page):
    text = page.read_text(encoding="utf-8")
    assert broken_commands(text) == [] and unknown_flags(text) == []


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (lambda text: broken_links(PAGES[0], text), "[a](README.md#try-it)", "[a](README.md#walk-it)"),
        (lambda text: broken_links(PAGES[0], text), "![a](docs/curves.svg)", "![a](docs/curve.svg)"),
        (missing_paths, "see `tests/project/test_docs.py`, `config.py`", "see `tests/test_dogs.py`"),
        (missing_paths, "`searchr1_mini/options/cli.py`, `options/cli.py`", "`option/cli.py`"),
        (missing_paths, "`cli.py`", "`clii.py`"),
        (unknown_targets, "    make lint test", "    make tests"),
        (broken_commands, "`python train.py --seed N --steps\n3 ...`", "`python train.py --steps three`"),
        (broken_commands, "    python eval.py --run runs/NAME  # greedy", "    python eval.py --runs runs/NAME"),
        (broken_commands, "    python train.py --algorithm ppo \\\n      --gamma 1", "    python train.py --gamma 0.9"),
        (broken_commands, "`python train.py --model Qwen2.5-3B`", "`python train.py --model Qwen2.5-4B`"),
        (broken_commands, "`python checks/kill.py --kind ppo`", "`python checks/kill.py --kinds ppo`"),
        (broken_commands, "`python -m searchr1_mini.ablate mask`", "`python -m searchr1_mini.ablation mask`"),
        (broken_commands, "`python -m searchr1_mini.preflight`", "`python -m searchr1_mini.run.preflight`"),
        (unknown_flags, "`--no-mask-observations`", "`--mask-observation`"),
    ],
)
def test_what_is_wrong_is_found(check, good, bad):
    assert check(good) == [] and check(bad) != []


WISHES = {  # what a reader wants, and what tells how
    "own documents": "--chat --corpus notes",
    "training on own questions": "--dataset questions.jsonl --corpus notes",
    "chat": "--chat ",
    "resume": "--resume --output-dir runs/NAME",
    "PPO": "--algorithm ppo",
    "another reward": "--reward my_rewards.py:brevity",
    "a T4": "--preset t4",
    "compare two runs": "--run runs/A,runs/B",
    "export": "-m searchr1_mini.export runs/NAME",
    "a server": "-m searchr1_mini.server --corpus",
    "the course": "# A course in seven sessions",
}


def linked_from(page: Path) -> set[Path]:
    targets = re.findall(r"\]\(([^)#:]+\.md)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets}


@pytest.mark.parametrize("wish", WISHES)
def test_an_everyday_wish_is_answered_one_link_from_the_readme(wish):
    readme = ROOT / "README.md"
    assert any(WISHES[wish] in page.read_text(encoding="utf-8") for page in {readme, *linked_from(readme)})


def test_the_readme_is_short_and_the_index_has_every_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 70
    pages = {page.resolve() for page in (ROOT / "docs").glob("*.md")}
    assert pages <= linked_from(ROOT / "docs" / "README.md") | {(ROOT / "docs" / "README.md").resolve()}


def test_the_chinese_readme_has_the_same_commands_and_figures():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    for pattern in (r"^    .*$", r"\]\(([^)]+)\)", r"\d\.\d{3}", r"`[^`]*`"):
        found, wanted = (re.findall(pattern, text, re.M) for text in (chinese, english))
        ours = {"README.md", "README.zh-CN.md"}
        assert [part for part in found if part not in ours] == [part for part in wanted if part not in ours], pattern


def test_the_papers_page_tells_which_groups_are_left_out():
    """A default that differs from the paper's, and decides over what the mean of the loss is."""
    told = {False: "count in the mean", True: "left out (`--drop-zero-variance`)"}
    configs = [parse_asked(TrainConfig, "train.py", "", words.split())[0] for words in ("--model Qwen2.5-3B", "")]
    defaults = [told[filled(config).objective.drop_zero_variance] for config in configs]
    row = f"| groups whose rewards agree, GRPO | {told[False]} | {' | '.join(defaults)} |"
    departures = (ROOT / "docs" / "paper.md").read_text().partition("## Deliberate departures")
    assert row in departures[0] and "groups whose rewards agree" in departures[2]


def test_the_ladder_tells_todays_laptop_preset():
    """Its column is of an earlier one."""
    preset = PRESETS["laptop-llm"]
    n_rollouts = preset["questions_per_step"] * preset["group_size"]
    rate = f"{preset['learning_rate']:.1e}".replace("e-0", "e-")
    told = f"Today's preset takes {preset['steps']} steps of {n_rollouts} rollouts at {rate}, which falls over "
    page = " ".join((ROOT / "docs" / "ablations.md").read_text(encoding="utf-8").split())
    assert f"{told}the last {preset['decay_steps']}." in page
