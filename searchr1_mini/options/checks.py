"""What does not fit together in a config is refused in one sentence, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

from searchr1_mini.core.errors import UserError, suggest
from searchr1_mini.data.names import BRING_PASSAGES, DATASETS
from searchr1_mini.data.world import make_world, world_examples
from searchr1_mini.models.chat_template import parse_day
from searchr1_mini.options.config import RetrievalConfig, TrainConfig
from searchr1_mini.options.defaults import HUNT_TURNS, REAL, WITHOUT_SEARCH
from searchr1_mini.options.eval_config import EvalConfig
from searchr1_mini.options.needs import shown
from searchr1_mini.options.nested import default_value, flag_name, get, options_of
from searchr1_mini.options.own_parts import is_from_python, is_own, own_part, short_name, unread_settings
from searchr1_mini.options.retrieval_config import MetricsConfig, ServerConfig
from searchr1_mini.retrievers.limits import MAX_TOPK
from searchr1_mini.retrievers.names import READ_BY
from searchr1_mini.storage.files import exists

LEAST_TEMPERATURE = 0.001  # below it logits overflow
MOST_ROLLOUTS = 10**6
COLLIDING_NEEDS_SOURCES = "--bug colliding-groups, which a --mystery may be, needs questions of two sources"


def world_hops_list(config: TrainConfig) -> list[int]:
    """Reads `1,2` as [1, 2].

    Raises:
        UserError: it is no list of numbers from 1 to 3.
    """
    try:
        hops = [int(part) for part in config.data.world_hops.split(",")]
    except ValueError:
        hops = []
    if not hops or len(set(hops)) < len(hops) or not all(1 <= hop <= 3 for hop in hops):
        raise UserError(f"--world-hops {config.data.world_hops}: give different numbers from 1 to 3, as in 1,2")
    return hops


def check_retriever(config: TrainConfig | ServerConfig | MetricsConfig, names: Sequence[str]) -> None:
    """Refuses an option that none of these retrievers reads, a missing address, a --topk that no server gives, and an
    engine of the user's own that does not fit.

    Raises:
        UserError: names the flag and the remedy.
    """
    refuse_unread(config, names)
    for name in names:
        if is_own(name) and not is_from_python(name):
            own_part("retriever", name)
    url, topk = get(config, "retriever_url"), get(config, "topk") if "topk" in options_of(type(config)) else ""
    remote = [name for name in names if name in READ_BY["retriever_url"]]
    if remote and not url:
        form = "http://host:port" if remote == ["http"] else "http://host:19530, or a path that ends in .db"
        raise UserError(f"--retriever {remote[0]} needs the address of a server; add --retriever-url {form}")
    wanted = str(topk).split(",")  # the server has none, the metrics several
    if "http" in names and any(k.strip().isdecimal() and int(k) > MAX_TOPK for k in wanted):
        raise UserError(f"--topk {topk}: a retrieval server gives at most {MAX_TOPK} passages per query")


def refuse_unread(config: TrainConfig | EvalConfig | ServerConfig | MetricsConfig, names: Sequence[str]) -> None:
    """Refuses an option that none of these retrievers reads, rather than letting it do nothing.

    Raises:
        UserError: names the flag and the remedy.
    """
    for option_, readers in READ_BY.items():
        is_given = get(config, option_) not in (None, default_value(TrainConfig, option_))
        if is_given and not set(names) & set(readers):
            told = f"{flag_name(option_)} does nothing with --retriever {', '.join(names) or 'none'}"
            raise UserError(f"{told}; it needs --retriever {' or '.join(readers)}")
    if get(config, "retriever_url") and set(READ_BY["retriever_url"]) <= set(names):
        raise UserError("--retriever-url is the address of one server, http or milvus; leave the other out")


def check_given(config: TrainConfig, unasked: Collection[str]) -> None:
    """Refuses what the user asked for together and cannot have, before open values are filled.

    Raises:
        UserError: names the flag and the remedy.
    """
    if config.data.date is not None:
        parse_day(config.data.date)
    name = config.data.dataset
    if name is not None and name not in DATASETS:
        raise UserError(f"unknown data set {name!r}{suggest(name, DATASETS)}; known: {', '.join(DATASETS)}")
    if config.run.resume and config.run.output_dir is None:
        raise UserError("--resume needs the run's folder; add --output-dir runs/NAME")
    check_retriever(config, [config.retrieval.retriever])
    has_search = config.run.method not in WITHOUT_SEARCH and config.run.algorithm != "sft"
    of_search = [*options_of(RetrievalConfig), "corpus"]
    asked = [name for name in of_search if name not in unasked]
    given = [flag_name(name) for name in asked if get(config, name) != default_value(TrainConfig, name)]
    if not has_search and given:
        name = "--algorithm sft" if config.run.algorithm == "sft" else f"--method {config.run.method}"
        raise UserError(f"{name} trains without a search engine; leave out {', '.join(given)}")
    check_questions_named(config.data.corpus, name, config.data.data_path)
    if config.run.method not in (None, "direct") and config.run.algorithm == "sft":
        raise UserError("--algorithm sft learns the gold answers without reasoning; leave out --method")
    if is_own(config.run.method) and config.data.template is not None and "template" not in unasked:
        raise UserError("--template is of the built-in methods; leave it out, and let your --method write its prompt")
    is_other = config.run.method not in (None, "search-r1") and not is_own(config.run.method)
    if is_other and config.run.algorithm == "rejection-sampling":
        raise UserError("--algorithm rejection-sampling learns from rollouts with search; leave out --method")


def check_demonstrations(path: str | None) -> None:
    """Refuses a file of demonstrations that is not there, before any work.

    Raises:
        UserError: it is not.
    """
    if path is not None and not Path(path).is_file():
        raise UserError(f"--demonstrations {path}: there is no such file; name a jsonl file")


def check_data_files(data_path: str | None, corpus: str | None) -> None:
    """Refuses files of questions or passages that are not there, before anything heavy is imported.

    Raises:
        UserError: one is not.
    """
    for path in (data_path, None if corpus in BRING_PASSAGES else corpus):
        if path is not None and not exists(path):
            raise UserError(f"there is no file {path}; check --data-path and --corpus")


def check_questions_named(corpus: str | None, *named: str | None, flag: str = "--dataset") -> None:
    """Refuses passages of the user's own beside which nothing names questions: those of HotpotQA are not about them.

    Args:
        named: what may name the questions.
        flag: that of the data set.

    Raises:
        UserError: nothing does.
    """
    if corpus not in (None, REAL["dataset"]) and not any(named):
        wanted = f'{flag} FILE.jsonl, each line with "question" and "answer" (docs/data.md)'
        raise UserError(f"--corpus {shown(corpus)} needs questions that its passages answer; name them: {wanted}")


def check_live(config: EvalConfig, flag: str | None) -> None:
    """Refuses what --ask, --chat or --web (`flag`) does not read, or what an evaluation (None) does not.

    Raises:
        UserError: names the flag and the remedy.
    """
    if flag is None:
        if config.host is not None or config.port is not None:
            raise UserError("--host and --port are about the --web page; add --web, or leave them out")
        if config.color != EvalConfig.color:
            raise UserError("--color is about trajectories in the terminal; add --ask or --chat, or leave it out")
        return
    of_others = [name for name in ("ask", "chat", "web") if getattr(config, name) and flag_name(name) != flag]
    of_tables = ("train", "shots", "limit", "compare", "against", "output_dir")
    unread = (*of_others, *of_tables, *(("color",) if config.web else ("host", "port")))
    for option_ in fields(config):
        if option_.name in unread and getattr(config, option_.name) != option_.default:
            raise UserError(f"{flag_name(option_.name)} does nothing with {flag}; leave it out")
    if config.host in ("0.0.0.0", "::", "*", ""):
        raise UserError(
            f"--host {config.host}: the page answers under one name only; give the address that browsers will use, or "
            "keep 127.0.0.1 and come through ssh -L"
        )


def check_world(config: TrainConfig) -> None:
    """Refuses more held-out questions than the synthetic world has, by making it.

    Raises:
        UserError: it has fewer.
    """
    data, seed = config.data, config.optimization.seed
    if data.dataset == "world":
        world = make_world(seed, "eval", data.world_difficulty, data.world_noise)
        world_examples(world, world_hops_list(config), data.eval_questions, seed)


def check_own_parts(given: TrainConfig, bare: TrainConfig, unasked: Collection[str]) -> None:
    """Imports the parts of the user's own that a config names.

    Args:
        given, bare, unasked: as `needs.refuse_idle` takes them; `bare` is without what methods are given, too.

    Raises:
        UserError: one is not there, or does not fit, or an option is about what it stands in for, or is none of its
            parameters.
    """
    named = {"reward": given.reward.reward, "retriever": given.retrieval.retriever, "method": given.run.method}
    for option_, value in named.items():
        if is_own(value) and not is_from_python(value):
            own_part(option_, value)
    for name in ("retrieval_bonus", "search_cost", "action_penalty") if is_own(given.reward.reward) else ():
        if get(given, name):
            raise UserError(f"{flag_name(name)} does nothing with a --reward of your own; leave one of them out")
    excused = [*unasked, *(("topk",) if given.imitation.cold_start else ())]  # whose scripts search, too
    excused += ["max_new_tokens"] if bare.rollout.max_new_tokens >= bare.rollout.max_total_tokens else []  # to fit
    for name in unread_settings(given.run.method):
        if name not in excused and get(given, name) not in (default_value(TrainConfig, name), get(bare, name)):
            told = f"{flag_name(name)} does nothing with --method {short_name(given.run.method)}"
            raise UserError(f"{told}, which has no parameter {name}; give it one, or leave the flag out")


def uses_equals(config: TrainConfig) -> str | None:
    """Tells what keeps, or learns from, groups whose rewards are all equal; None where nothing does."""
    objective = config.objective
    used = {
        "--turn-coef learns from them too": config.variant.turn_coef > 0,
        f"--baseline {config.variant.baseline} learns from them too": config.variant.baseline in ("batch", "none"),
        "--llds-coef acts on them too": objective.llds_coef > 0,
        "--no-drop-zero-variance keeps them": not objective.drop_zero_variance,
    }
    return next((told for told, is_used in used.items() if is_used), None)


def check_resolved(config: TrainConfig) -> None:
    """Refuses values that do not go with each other, once all are filled.

    Raises:
        UserError: names the flag, its value and the remedy.
    """
    data, rollout, step, objective = config.data, config.rollout, config.optimization, config.objective
    is_world, bug, overlong = data.dataset == "world", config.run.bug, config.reward.overlong
    may_collide = bug == "colliding-groups" or config.run.mystery is not None
    penalties = {"--llds-coef": objective.llds_coef, "--sapo-coef": config.variant.sapo_coef}
    of_rollouts = next((flag for flag, coef in penalties.items() if coef > 0), None)
    rules = [
        (is_world and data.data_path, "--data-path does not go with --dataset world; name the file's data set"),
        (
            is_world and data.corpus,
            "--corpus does not go with --dataset world, which brings its own passages; name questions on yours: "
            '--dataset FILE.jsonl, each line with "question" and "answer" (docs/data.md)',
        ),
        (is_world and config.retrieval.retriever == "http",
         "--retriever http cannot know the passages of --dataset world"),
        (not is_world and (data.world_difficulty or data.world_hops or data.world_noise),
         f"--world-difficulty, --world-hops and --world-noise need --dataset world, but it is {data.dataset}"),
        (config.weights.load_in_4bit and config.weights.lora_rank == 0,
         "--load-in-4bit needs an adapter; set --lora-rank above 0, or --no-load-in-4bit for full fine-tuning"),
        (rollout.max_new_tokens >= rollout.max_total_tokens,
         f"--max-new-tokens {rollout.max_new_tokens} must be below --max-total-tokens {rollout.max_total_tokens}"),
        (rollout.max_observation_tokens >= rollout.max_total_tokens,
         f"--max-observation-tokens {rollout.max_observation_tokens} must be below --max-total-tokens "
         f"{rollout.max_total_tokens}"),
        (config.logging.check and bug, "--check is for sound steps, not for those with a --bug; leave one out"),
        (bug == "colliding-groups" and config.run.algorithm != "grpo",
         "--bug colliding-groups does nothing with --algorithm ppo; set --algorithm grpo, or leave it out"),
        (bug in ("tool-tokens-in-length", "no-last-turn") and config.run.method in WITHOUT_SEARCH,
         f"--bug {bug} does nothing with --method {config.run.method}; set --method search-r1, or leave it out"),
        (may_collide and is_world and "," not in data.world_hops, f"{COLLIDING_NEEDS_SOURCES}; add --world-hops 1,2"),
        (may_collide and config.variant.baseline in ("batch", "none"),
         f"--bug colliding-groups, which a --mystery may be, does nothing with --baseline {config.variant.baseline}, "
         "which compares no groups; leave one out"),
        (bug == "no-last-turn" and is_own(config.run.method),
         f"--bug {bug} does nothing with a --method of your own; set --method search-r1, or leave it out"),
        (config.run.mystery is not None and is_own(config.run.method),
         "--mystery plants faults in --method search-r1; leave your own method out"),
        (config.run.mystery is not None and rollout.max_turns > HUNT_TURNS and not config.run.resume,
         f"--max-turns {rollout.max_turns}: with more than {HUNT_TURNS} a --mystery may not show; give at most "
         f"{HUNT_TURNS}, here and to the sound run beside it"),
        (step.mini_batches > step.questions_per_step,
         f"--mini-batches {step.mini_batches} is more than --questions-per-step {step.questions_per_step}"),
        (objective.clip_eps >= 1, f"--clip-eps {objective.clip_eps}: it must be below 1"),
        ((objective.clip_eps_high or objective.clip_eps) < objective.clip_eps,
         f"--clip-eps-high {objective.clip_eps_high} must not be below --clip-eps {objective.clip_eps}"),
        (objective.dynamic_sampling > 1 and step.group_size == 1,
         "--dynamic-sampling replaces groups whose rewards are all equal, and a group of 1 has one reward; raise "
         "--group-size"),
        (objective.dynamic_sampling > 1 and uses_equals(config) and not config.run.resume,
         f"--dynamic-sampling leaves out groups whose rewards are all equal, and {uses_equals(config)}; leave one out"),
        (config.variant.turn_coef > 0 and of_rollouts and not config.run.resume,
         f"--turn-coef gives each turn an advantage of its own, and {of_rollouts} judges a rollout by the one that "
         "it has; leave one out"),
        (rollout.temperature < LEAST_TEMPERATURE,
         f"--temperature {rollout.temperature}: it must be at least {LEAST_TEMPERATURE}"),
        (step.questions_per_step * step.group_size * objective.dynamic_sampling > MOST_ROLLOUTS,
         f"--questions-per-step {step.questions_per_step} times --group-size {step.group_size} (times "
         f"--dynamic-sampling) are more than {MOST_ROLLOUTS} rollouts per step; lower one of them"),
        (overlong == "penalize" and bug == "reward-from-whole-text",
         "--overlong penalize does nothing with --bug reward-from-whole-text; leave one out"),
        (overlong == "penalize" and config.reward.overlong_buffer >= rollout.max_total_tokens,
         f"--overlong-buffer {config.reward.overlong_buffer} must be below --max-total-tokens "
         f"{rollout.max_total_tokens}"),
        (config.variant.baseline == "leave-one-out" and step.group_size == 1 and config.run.algorithm == "grpo",
         "--baseline leave-one-out needs another rollout of the question; raise --group-size, or take --baseline none"),
        (config.variant.baseline == "group" and not config.variant.normalize_std and step.group_size == 1
         and config.run.algorithm == "grpo",
         "--no-normalize-std does nothing with --group-size 1, whose rollouts keep their rewards; leave one out"),
        (step.group_size % (1 + config.variant.tree_branches) != 0,
         f"--tree-branches {config.variant.tree_branches} makes trees of {1 + config.variant.tree_branches} rollouts, "
         f"of which --group-size {step.group_size} must be a multiple"),
    ]  # fmt: skip
    for is_broken, sentence in rules:
        if is_broken:
            raise UserError(sentence)
    if is_world:
        world_hops_list(config)
