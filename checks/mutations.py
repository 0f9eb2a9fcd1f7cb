"""Puts a deliberate bug into the package, one after the other, and sees whether the tests tell.

    python checks/mutations.py                # all, two at a time
    python checks/mutations.py -n 1 std clip  # some, by name, one at a time

Each bug is put into a copy of the repository; the tests named beside it are run there until one fails. A bug that they
all let through is named, and the exit code is 1. Processes are forked off one that has the heavy libraries in memory
already (Linux and macOS).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PATIENCE = 600  # seconds, after which a test that a bug keeps from ending is broken off, and so fails
HEAVY = ("torch", "transformers", "peft", "datasets", "hypothesis", "pytest")


class Bug(NamedTuple):
    """Text of a module, what stands in its place, and the test files (or `file::test`) that should tell.

    A module whose name is not the only one is named with its folder.
    """

    name: str
    module: str
    old: str
    new: str
    tests: str


BUGS = [
    # masks
    Bug("mask not shifted", "batch", "loss_mask=loss_mask[:, 1:]", "loss_mask=loss_mask[:, :-1]", "batch"),
    Bug("log-probs not shifted", "batch", "old_logprobs=old_logprobs[:, 1:]",
        "old_logprobs=old_logprobs[:, :-1]", "batch"),
    Bug("observations trained on", "batch", 'elif segment.kind == "observation" and not mask_observations:',
        'elif segment.kind == "observation":', "batch"),
    Bug("prompt trained on", "batch", 'if segment.kind == "policy":\n                loss_mask[row, span] = True\n',
        'loss_mask[row, span] = True\n            if segment.kind == "policy":\n', "batch"),
    Bug("mask from pad ids", "batch", "loss_mask=loss_mask[:, 1:]",
        "loss_mask=loss_mask[:, 1:] & (input_ids[:, 1:] != pad_token_id)", "batch"),
    Bug("cut to the shortest row", "batch", "width = int(self.lengths[rows].max())",
        "width = int(self.lengths[rows].min())", "batch"),
    # advantages
    Bug("biased std", "algorithms", "(r.std() + eps", "(r.std(unbiased=False) + eps", "algorithms references"),
    Bug("mean of the batch", "algorithms", "(r - r.mean())", "(r - rewards.mean())", "algorithms references"),
    Bug("leave-one-out divides by n", "algorithms", "(r.sum() - r) / (n - 1)", "(r.sum() - r) / n",
        "algorithms references"),
    Bug("groups interleaved", "core/training", "first + index // group_size",
        "first + index % (len(examples) // group_size)", "invariants"),
    Bug("GAE sees observations", "algorithms", "next_value = torch.where(is_policy, values[:, t], next_value)",
        "next_value = values[:, t]", "algorithms references"),
    Bug("equal rewards teach", "algorithms", "if (r == r[0]).all():", "if False:", "algorithms"),
    # losses
    Bug("clip the wrong way", "algorithms", "torch.maximum(plain, clipped), clipped > plain",
        "torch.minimum(plain, clipped), clipped > plain", "algorithms references"),
    Bug("k3 reversed", "algorithms", "d = ref_logprobs - logprobs", "d = logprobs - ref_logprobs",
        "algorithms references"),
    Bug("mean over padding", "algorithms", "return mask / mask.sum().clamp(min=1)", "return mask / mask.numel()",
        "algorithms references"),
    Bug("log-probs without temperature", "logprobs", "lm_head(chunk).float() / temperature", "lm_head(chunk).float()",
        "logprobs"),
    Bug("each micro-batch a mean of its own", "core/training", "part.advantages, part.weights,\n",
        "part.advantages, loss_weights(part.batch.loss_mask, objective.loss_aggregation),\n", "accumulation"),
    Bug("gradients kept when memory ran out", "micro_batches", "            undo()\n", "", "accumulation"),
    Bug("value clip unbounded", "algorithms", "clipped = old + (v - old).clamp(-value_clip, value_clip)", "clipped = v",
        "algorithms references"),
    Bug("a weight with a gradient", "variants/ratios", "(trainer_logprobs - sampler_logprobs).detach()",
        "(trainer_logprobs - sampler_logprobs)", "ratios"),
    Bug("a masked weight of any smallness", "variants/ratios", "(rho >= 1 / cap) & (rho <= cap)", "rho <= cap",
        "ratios::test_importance_weights_are_a_loop_over_tokens"),
    Bug("CISPO's weight with a gradient", "variants/losses", "log_ratios.detach().clamp", "log_ratios.clamp",
        "losses"),
    Bug("SAPO on worse rollouts too", "variants/losses", "(advantages > 0) &", "(advantages == advantages) &",
        "losses"),
    Bug("turns of other states compared", "variants/turns", "keys += [(group, state) for state in turns]",
        "keys += [(group, len(state)) for state in turns]", "turns"),
    Bug("returns discounted from the front", "variants/turns", "gamma ** (len(turns) - 1 - t)", "gamma**t", "turns"),
    Bug("a branch that forgets what its stem found", "variants/tree", "retrieved=before.retrieved + after.retrieved",
        "retrieved=after.retrieved", "tree"),
    Bug("leaves of other trees compared", "variants/tree", "torch.arange(len(rollouts.trajectories)) // leaves",
        "torch.arange(len(rollouts.trajectories)) % leaves",
        "tree::test_the_advantages_of_trees_are_those_of_a_loop"),
    Bug("REINFORCE++ within its groups", "variants/baselines", "torch.zeros_like(group_ids), normalize",
        "group_ids, normalize", "baselines"),
    Bug("a ratio without a bound", "algorithms", "log_ratios.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()",
        "log_ratios.exp()", "algorithms"),
    Bug("LLDS not at 0", "variants/losses", "(advantages >= 0)", "(advantages > 0)", "losses"),
    # the numbers of an update
    Bug("PPO's advantages not whitened", "experience", "Experience(batch, whiten(advantages, mask), sampled",
        "Experience(batch, advantages, sampled", "update"),
    Bug("PPO's KL the wrong way round", "experience", "kl_penalty(old, reference, objective.kl_estimator)",
        "kl_penalty(reference, old, objective.kl_estimator)", "update"),
    Bug("an update at temperature 1", "core/training", "policy_logprobs(policy, part.batch, temperature,",
        "policy_logprobs(policy, part.batch, 1.0,", "update"),
    Bug("importance weights counted twice", "experience",
        "batch.old_logprobs = own if is_rounded or objective.importance_cap else sampled",
        "batch.old_logprobs = sampled", "update"),
    Bug("the sampler's log-probs for old ones in 16 bits", "experience", "= own if is_rounded or", "= own if",
        "sixteen_bits"),
    Bug("noise measured against the update's own forward", "optimizer", "before, wanted = part.sampled_logprobs",
        "before, wanted = part.batch.old_logprobs", "sixteen_bits"),
    Bug("a sum over the wrong constant", "core/training",
        "objective.loss_aggregation, settings.rollout.max_new_tokens)",
        "objective.loss_aggregation, settings.rollout.max_total_tokens)", "update"),
    Bug("the critic warmed up as the policy", "optimizer",
        "self.ppo.critic_learning_rate, self.ppo.critic_warmup_steps",
        "self.ppo.critic_learning_rate, config.warmup_steps", "training"),
    Bug("warm-up in updates", "optimizer", "max(warmup * a_step, 1)", "max(warmup, 1)", "training"),
    Bug("the schedule counts the updates that were made", "core/training",
        "optimizer.begin(step, sum(map(len, passes)))",
        "optimizer.begin(step, settings.optimization.epochs * settings.optimization.mini_batches)", "schedule"),
    Bug("the reference with its adapter", "experience", "    with policy.reference():\n", "    if True:\n",
        "update"),
    Bug("one norm for policy and critic", "optimizer",
        'groups = [group["params"] for group in self.adamw.param_groups]',
        'groups = [[p for group in self.adamw.param_groups for p in group["params"]]]', "update"),
    Bug("gradients not zeroed", "optimizer", "        self.zero_grad()\n        self.updates",
        "        self.updates", "update"),
    Bug("what nobody sampled has log-prob 0", "experience", "torch.where(sampled.isnan(), own, sampled)",
        "torch.where(sampled.isnan(), 0.0, sampled)", "update"),
    Bug("the value of the next state", "critic", "position_ids=position_ids)[:, :-1]",
        "position_ids=position_ids)[:, 1:]", "update"),
    Bug("no pull from far below the reference", "algorithms", "d.clamp(max=LARGEST_LOG_RATIO)",
        "d.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)", "algorithms"),
    # a step's questions, samples and rewards
    Bug("a bonus for what is malformed", "run/rewards", ' and (kind != "format" or is_well_formed(trajectory))', "",
        "rewards"),
    Bug("no penalty for never searching", "run/rewards", "(not trajectory.queries) + (trajectory.answer is None)",
        "trajectory.answer is None", "rewards::test_the_action_penalty_is_a_loop_over_what_was_left_undone"),
    Bug("the same order every epoch", "questions", 'random.Random(f"{seed}/{epoch}"', 'random.Random(f"{seed}"',
        "question_order"),
    Bug("the same samples every step", "core/training", "seed=config.seed * 1_000_003 + step + round_ * 500_009",
        "seed=config.seed * 1_000_003 + round_ * 500_009", "training"),
    Bug("surplus groups kept", "core/training",
        "set(rollouts.groups_with_signal()[: settings.optimization.questions_per_step])",
        "set(rollouts.groups_with_signal())", "training"),
    Bug("out of turns dropped as overlong", "core/training", '== "drop" and trajectory.finish_reason == "length"',
        '== "drop" and trajectory.finish_reason == "turns"', "training"),
    Bug("overlong by policy tokens", "run/rewards", "torch.tensor(len(trajectory.token_ids))",
        "torch.tensor(trajectory.n_policy_tokens)", "training"),
    Bug("right is what contains the gold", "imitation", "if exact_match(trajectory.answer, e.golden_answers)]",
        "if e.golden_answers[0] in (trajectory.answer or str())]", "sft::test_only_an_exact_answer_is_imitated"),
    Bug("advantages of other rows", "core/training", "rollouts.token_advantages[rollouts.kept], *how",
        "rollouts.token_advantages[: len(rollouts.kept)], *how", "training"),
    Bug("groups of two rounds are one", "core/training", "first + index // group_size", "index // group_size",
        "training"),
    Bug("evaluated on what it learns from", "evaluations", "evaluate(run.held_out.examples, run.make_method",
        "evaluate(run.train.examples[:2], run.make_method",
        "training::test_a_run_is_measured_greedily_on_held_out_questions"),
    Bug("a sampled evaluation", "scores", "temperature: float = 0.0,\n    seed",
        "temperature: float = 1.0,\n    seed",
        "training::test_a_run_is_measured_greedily_on_held_out_questions"),
    # options, and what others are told of them
    Bug("LLDS beside dynamic sampling", "options/checks", "objective.llds_coef > 0,", "False,",
        "resolve::test_what_an_older_version_took_together_goes_on"),
    Bug("homes in a row", "options/changes", "spelled(name, public(value))", "spelled(name, value)",
        "changes::test_a_home_is_not_among_the_words"),
    Bug("another base has a place", "classroom_faults", "if run.model != DEFAULT.run.model:", "if False:",
        "classroom::test_what_cannot_be_compared_is_named_with_its_reason"),
    Bug("two runs of one name", "report_data", "== len(set(parts))", ">= 1",
        "report::test_runs_are_named_by_as_many_folders_as_it_takes"),
    Bug("a std that is read is refused", "needs", '("turn_coef", "tree_branches")}', '("turn_coef",)}',
        "resolve::test_advantages_beside_rloo_may_leave_out_the_std"),
    # stops and sampling
    Bug("the last of two stops", "stops", "return min(ends) if ends else None", "return max(ends) if ends else None",
        "rollout::test_a_turn_ends_at_the_first_of_two_stops_in_one_token"),
    Bug("no room for a word after an observation", "rollout", "self.decoder.length(key) - 1\n",
        "self.decoder.length(key)\n",
        "rollout::test_an_observation_leaves_room_for_a_word_about_it"),
    Bug("stop only within one token", "stops", "start = max(0, len(self.seen) - self.keep)",
        "start = len(self.seen)", "generation"),
    Bug("EOS goes on", "decoder", "if id_ in self.eos_ids:", "if id_ == -1:", "generation rollout"),
    Bug("sampled without temperature", "decoder", "logits.float() / (temperature or 1.0)", "logits.float()",
        "generation"),
    Bug("a rollout keeps a graph", "decoder", "@torch.no_grad()\n    def start",
        "@torch.enable_grad()\n    def start", "rollout_weights"),
    Bug("a position too far", "decoder", "positions[indices, 0] = torch.tensor([row.length for row in rows])",
        "positions[indices, 0] = torch.tensor([row.length + 1 for row in rows])", "generation"),
    # protocol and rewards
    Bug("the last action decides", "prompts", "end, kind = min(ends)", "end, kind = max(ends)", "prompts"),
    Bug("tags of passages stay", "prompts", '[f"({inside})" for inside', '[f"<{inside}>" for inside', "prompts"),
    Bug("an answer that contains the gold", "core/rewards",
        "float(compared(answer) in {compared(gold) for gold in golden_answers})",
        "float(any(compared(gold) in compared(answer) for gold in golden_answers))", "rewards"),
    Bug("articles count", "core/rewards", '_ARTICLES.sub(" ", ', '(lambda _, t: t)(" ", ', "rewards"),
    Bug("the worst passage first", "rollout", "passages = [hit.passage for hit in hits]",
        "passages = [hit.passage for hit in hits][::-1]",
        "rollout::test_passages_are_read_in_order_and_kept_as_they_were_read"),
    Bug("an aside stays in the context", "rollout", "            self.decoder.rewind(key, conversation.mark)\n", "",
        "rollout::test_a_note_is_no_invalid_action_and_an_aside_is_forgotten"),
    Bug("the last turn is always valid", "rollout", "conversation.trajectory.invalid_actions += is_invalid", "pass",
        "rollout::test_turns_that_are_no_action_are_counted_once_each"),
    Bug("topk is 3", "core/methods", "yield Search(action.content, topk)", "yield Search(action.content, 3)",
        "methods"),
    Bug("tags in capitals stay", "prompts", 'answer)\\s*)>", re.IGNORECASE)', 'answer)\\s*)>")', "prompts"),
    Bug("an empty thought is one", "run/rewards", "is_bare and thought and content", "is_bare and content", "rewards"),
    Bug("a no in a passage is found", "scores", "    if is_closed(golden_answers):", "    if False:",
        "rewards evaluation"),
    Bug("a script writes control tokens", "scripts", "text = break_added_tokens(text, tokenizer)", "text = str(text)",
        "forged_scripts"),
    Bug("a quotation keeps its tags", "scripts", 'return neutralize_tags(" ".join(words))', 'return " ".join(words)',
        "forged_scripts"),
    Bug("half of a comparison is read", "scripts", "(len(hops) == len(titles) or not compares)", "True", "scripts"),
    Bug("a worked example says what it did not read", "shots",
        " and has_found(read, example.golden_answers, example.supporting)", "", "shots"),
    Bug("a worked example leaves out a search", "shots",
        "example.question) for hop in hops)]", "example.question) for hop in hops[:-1])]", "shots"),
    Bug("a worked example shows whole passages", "shots", "limits.max_observation_tokens, limits.form)",
        "10**6, limits.form)", "shots"),
    Bug("an answer is given in a spelling that was not read", "scripts", "return next(said, example.golden_answers[0])",
        "return example.golden_answers[0]", "scripts::test_the_answer_is_the_spelling_that_was_read"),
    Bug("a title that comes into reach is not searched for", "scripts", "is_named(title, read)][:1]",
        "is_named(title, question)][:1]", "scripts::test_a_chain_is_followed_in_whatever_order_it_is_listed"),
    Bug("a corpus without the support gives no script", "scripts", "compares or is_supported(example, find)", "True",
        "scripts::test_a_corpus_without_the_support_is_asked_for_the_answer"),
    Bug("a sentence with a no is quoted", "scripts", "not is_closed([part]) and not", "not",
        "scripts::test_what_is_quoted_is_what_leads_on"),
    Bug("underscores make another title", "core/rewards", 'title.replace("_", " ").strip()', "title.strip()",
        "squad::test_a_title_with_underscores_is_the_one_with_blanks"),
    Bug("an article in both splits", "datasets", "return examples, [article or _paragraph(example) for",
        "return examples, [example.id for", "squad::test_questions_without_paragraphs_are_held_out_by_article"),
    Bug("a file brings passages under one name", "datasets", "    elif not data_path:\n",
        '    elif not data_path or dataset != "jsonl":\n',
        "contexts::test_a_file_brings_its_passages_under_its_own_name"),
    Bug("the best checkpoint reported on what chose it", "cells",
        'chosen_by(run_folders(config)) if config.checkpoint == "best" else []', "[]", "held_out"),
    Bug("all that is held out of a file chooses", "datasets", "-(-len(examples) // 2)", "len(examples)", "held_out"),
    # resume
    Bug("moments forgotten", "optimizer", 'self.adamw.load_state_dict(state["optimizer"])', "pass", "checkpoint"),
    Bug("schedule by the updates of this process", "optimizer", "self.at_step, self.n_updates, self.logs = step,",
        "self.at_step, self.n_updates, self.logs = self.at_step + 1,", "schedule"),
    Bug("every checkpoint is whole", "checkpoint",
        "return bool(manifest) and all(_checksum(path / name) == expected for name, expected in manifest.items())",
        "return bool(manifest)", "checkpoint"),
    Bug("mini-batches shuffled from the start", "optimizer",
        'self.updates, self.skipped_in_a_row = state["updates"], state["skipped_in_a_row"]',
        'self.skipped_in_a_row = state["skipped_in_a_row"]', "interrupt"),
    Bug("a step that was thrown away stays in the log", "run",
        'truncate_metrics(self.folder / "metrics.jsonl", self.whole_step)',
        'truncate_metrics(self.folder / "metrics.jsonl", self.whole_step + 1)', "schedule"),
    Bug("updates thrown away are forgotten", "optimizer",
        'self.updates, self.skipped_in_a_row = state["updates"], state["skipped_in_a_row"]',
        'self.updates = state["updates"]', "checkpoint::test_a_resumed_run_knows_all_that_it_knew"),
    Bug("the first questions again after a resume", "run", "            yield step\n",
        "            yield step - self.first_step + 1\n", "interrupt"),
    Bug("a commit that a run is resumed at is forgotten", "storage/commit",
        "    if commit not in known:\n", "    if False:\n",
        "checkpoint::test_every_commit_that_a_run_is_resumed_at_is_kept"),
    # presets
    Bug("an evaluation samples as its preset does", "option_files",
        '"rollout_batch_size", "dtype")', '"rollout_batch_size", "dtype", "temperature")', "presets"),
    Bug("a preset's data set is not evaluated", "option_files", ' | {"dataset": "datasets"}', "", "presets"),
    Bug("a preset's model beside a run", "option_files", '    if values["run"]:\n', "    if False:\n", "presets"),
    Bug("a preset's data set beside passages of one's own", "option_files", 'if is_served or values["corpus"] or',
        "if", "presets"),
    Bug("idle options of a preset refused", "plan", "is not None and name not in unasked]", "is not None]", "presets"),
    Bug("a preset's cold start that cannot be played", "resolve", '        config = without(config, ["cold_start"])\n',
        "        pass\n", "presets"),
    Bug("a preset's decay is longer than the run", "resolve", "min(step.decay_steps, -(-step.steps // 2))",
        "step.decay_steps", "presets"),
    Bug("a resumed run loses its cold start", "resolve", "    if config.run.resume:\n        return config\n", "",
        "presets"),
    # options, and parts of one's own
    Bug("a choice from Python is taken as it is", "needs", "if fault := fault_of(option, hints[name], value):",
        "if fault := fault_in_range(option, value):",
        "options::test_python_may_give_what_a_flag_may_and_no_more"),
    Bug("a lost connection is a full disk", "run", "or is_of_the_disk(reason):", "or isinstance(reason, OSError):",
        "own_parts::test_a_reward_that_breaks_costs_no_finished_step"),
    Bug("a cold start goes on in its own folder", "run", "folder = self.config.run.output_dir",
        "folder = str(self.folder)", "cold_start::test_a_cold_start_that_breaks_off_tells_how_to_go_on"),
    Bug("an edited part runs as it was", "own_files", "contents_of(file, FOLDERS[package]) != contents", "False",
        "own_parts::test_a_file_imports_its_neighbor_which_is_hashed_too"),
    Bug("imports inside functions are not read", "own_files", "list(ast.walk(ast.parse(source)))",
        "ast.parse(source).body", "own_parts::test_a_file_imports_its_neighbor_which_is_hashed_too"),
    Bug("a method is given what it cannot take", "own_parts",
        "return [name for name in METHOD_SETTINGS if name not in read]",
        "return []", "own_parts::test_a_flag_that_a_method_has_no_parameter_for_is_refused"),
    # places for results
    Bug("a folder that takes no file is not tried", "paths", '    try_file(there, f"{flag} {path}")\n', "",
        "paths::test_where_no_file_can_be_made_nothing_is_begun"),
    Bug("no room is a full disk, whatever the error says", "checkpoint", "return error.errno in FULL_DISK",
        "return error.errno in FULL_DISK or shutil.disk_usage(folder).free < 1 << 20",
        "checkpoint::test_an_errors_own_number_tells_whether_the_disk_is_full"),
    # what runs are compared by
    Bug("rounding is an interval", "findings", "SAME = 1e-9", "SAME = -1.0",
        "ablate::test_a_difference_that_all_seeds_share_cannot_be_told"),
    Bug("a run of two commits is taken over", "ablate", "if is_same and trained_at(path.parent) == [commit] and",
        "if is_same and", "ablate::test_a_run_that_went_on_at_another_commit_is_not_taken_over"),
    Bug("a run of another machine is taken over", "alike", 'ours = computed_on(config) | {"threads": threads}',
        "ours = {}", "ablate::test_a_run_is_taken_over_from_the_same_machine_alone"),
    Bug("a run of another base is taken over", "alike", "ours = base_identity(",
        "ours = {} and base_identity(", "ablate::test_a_run_is_taken_over_from_the_same_base_alone"),
    Bug("the last figures of a run that fell", "findings", 'row["step"] > n_steps - LAST_STEPS and row.get(key)',
        "row.get(key)", "ablate::test_figures_of_a_collapsed_run_are_not_those_of_before"),
    Bug("a run of fewer steps is an arm", "ablate", "if name not in UNTOLD}", "if name not in (*UNTOLD, 'steps')}",
        "ablate::test_a_run_of_other_options_is_no_arm_of_the_study"),
    Bug("a run that is left over gets every core", "side_by_side", "return given or began or max(",
        "return given or max(", "ablate::test_runs_have_as_many_threads_at_every_start"),
    Bug("a race of two rewards counts", "races", "if len(of_seeds) > 1]", "if len(of_seeds) > 2]",
        "race::test_seeds_of_two_rewards_do_not_count"),
    Bug("a seed that guesses has a time", "races", "getattr(finish, name) if finish.counts else math.inf",
        "math.inf if getattr(finish, name) is None else getattr(finish, name)",
        "race::test_a_seed_that_does_not_count_is_one_that_never_got_there"),
    Bug("a copy in other bytes is another run", "classroom_data", "json.dumps(times or rows, sort_keys=True)",
        "log.read_text()", "classroom::test_a_copied_run_is_named_on_both_lines"),
    Bug("the log is not compared with the summary", "classroom_faults", "if not measured or abs(",
        "if measured or abs(",
        "classroom::test_a_summary_that_the_log_contradicts_is_named"),
    # models, and what is said of them
    Bug("a prefill of long observations alone", "memory", "tokens = min(n_rows * fed, CHUNK_TOKENS)",
        "n_rows = min(n_rows, max(CHUNK_TOKENS // fed, 1))\n    tokens = n_rows * fed", "memory"),
    Bug("an evaluation unpacks what its run did not", "run/preflight",
        ' or config.weights.rollout_weights == "base":\n        return False', ":\n        return False", "probe"),
    Bug("half an adapter in rollouts", "probe", "ADAPTER_LIMIT, LEAST_EFFECT = 0.2, 0.1",
        "ADAPTER_LIMIT, LEAST_EFFECT = 2.0, 0.1", "probe"),
    Bug("weak adapters refused", "probe", "ADAPTER_LIMIT, LEAST_EFFECT = 0.2, 0.1",
        "ADAPTER_LIMIT, LEAST_EFFECT = 0.2, 0.0", "probe"),
    Bug("as few shapes as torch compiles", "stacked", "limits.recompile_limit = limits.", "limits.",
        "stacked::test_a_step_is_compiled_once_for_each_of_many_shapes"),
    Bug("a step's ids in two pieces", "stacked", "buffer[: 2 * size].view(2, size)", "buffer.view(2, -1)[:, :size]",
        "stacked::test_a_steps_ids_are_sent_in_one_piece"),
    Bug("a probe without a replay", "probe", "N_REPLAYED = 1, 4", "N_REPLAYED = 1, 2",
        "probe::test_where_steps_are_captured_the_probe_replays_them"),
    Bug("a failed capture ends the run", "stacked", "if is_out_of_memory(RuntimeError(first)):", "if True:",
        "stacked::test_a_step_that_cannot_be_captured_is_told_once"),
    Bug("a critic as wide as the layers", "critic", "policy.causal_lm.get_output_embeddings().weight.shape[1]",
        "policy.config.hidden_size", "critic"),
    Bug("an adapter of another hub id", "identity", "        refuse_other_hub_id(weights, source)\n        return\n",
        "        return\n", "identity"),
    Bug("an export is asked what it learned", "evaluation/cells", ", *folders_of(config.adapter, config.model)", "",
        "held_out"),
    Bug("cut turns are formless", "diagnosis", "is_cut = 2 * n_cut > turns", "is_cut = False", "diagnosis"),
    Bug("a diagnosis holds whatever it was of", "diagnosis",
        'after["valid_actions"] < FEW_VALID if told.startswith(FORMLESS) else after["em"] == 0',
        'after["valid_actions"] < FEW_VALID or after["em"] == 0', "diagnosis"),
    Bug("remedies that the run refuses", "diagnosis", "    except UserError:\n        return False\n",
        "    except UserError:\n        return True\n", "diagnosis"),
    Bug("room for the weights alone", "gguf_base",
        "sum(sizes) + 2 * max(sizes, default=0) + TOKEN_BYTES * n_tokens", "sum(sizes)", "gguf"),
]  # fmt: skip


def put(bug: Bug, root: Path) -> None:
    """Puts a bug into the copy of the repository under `root`; ends if its place is not there exactly once."""
    (path,) = (root / "searchr1_mini").rglob(f"{bug.module}.py")
    text = path.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        sys.exit(f"{bug.name}: {bug.old!r} stands {text.count(bug.old)} times in {path.name}; fix the list")
    path.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def copied(scratch: Path) -> Path:
    """A copy of the repository in this folder."""
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__")
    return Path(shutil.copytree(ROOT, scratch / "copy", ignore=ignored))


class Failures:
    """A plugin of pytest that remembers which tests failed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        self.names += [report.nodeid] if report.failed else []

    pytest_collectreport = pytest_runtest_logreport


def path_of(name: str) -> str:
    """`sft::test_x` -> tests/run/test_sft.py::test_x, for pytest."""
    file, *rest = name.split("::")
    (path,) = ROOT.glob(f"tests/*/test_{file}.py")
    return "::".join([path.relative_to(ROOT).as_posix(), *rest])


def first_failure(names: list[str], root: Path) -> str | None:
    """Runs tests by their names, up to the first failure, with the package under `root`; in a process of its own.

    Its output goes to root/out.
    """
    import pytest

    def give_up(*_) -> None:
        raise TimeoutError(f"not done after {PATIENCE} s")

    with (root / "out").open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    sys.path.insert(0, str(root))
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    failures = Failures()
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *map(path_of, names)], [failures])
    return failures.names[0] if failures.names else "pytest itself" if code else None


def with_bug(bug: Bug | None, names: list[str]) -> tuple[str | None, float]:
    """The first test of these files that fails with the bug in, and the seconds that it took."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        root = copied(Path(scratch))
        if bug:
            put(bug, root)
        return first_failure(names, root), time.monotonic() - began


def try_bugs(bugs: list[Bug], n: int) -> list[str]:
    """Tries each bug, `n` at a time, and says what became of it; returns the names of those that escaped.

    Before that every file of tests is run without a bug: one that fails anyhow would catch all of them.
    """
    for name in HEAVY:
        __import__(name)
    escaped, files = [], list(dict.fromkeys(name for bug in bugs for name in bug.tests.split()))
    with multiprocessing.get_context("fork").Pool(n, maxtasksperchild=1) as pool:
        for name, (failed, _) in zip(files, pool.starmap(with_bug, [(None, [n]) for n in files], 1), strict=True):
            if failed:
                sys.exit(f"{path_of(name)} fails without a bug, at {failed}; fix it first")
        waiting = [(bug, pool.apply_async(with_bug, (bug, bug.tests.split()))) for bug in bugs]
        for number, (bug, result) in enumerate(waiting, start=1):
            failed, seconds = result.get()
            escaped += [] if failed else [bug.name]
            told = f"caught  {bug.name}: {failed}" if failed else f"ESCAPED {bug.name}"
            print(f"{number:3d} {told} ({seconds:.0f} s)", flush=True)
    return escaped


def main() -> None:
    """Tries the bugs that were named, or all; one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only bugs with one of these words in their names")
    parser.add_argument("-n", type=int, default=2, help="bugs at a time [default: 2]")
    asked = parser.parse_args()
    bugs = [bug for bug in BUGS if not asked.words or any(word in bug.name for word in asked.words)]
    escaped = try_bugs(bugs, asked.n)
    print(f"{len(bugs) - len(escaped)} of {len(bugs)} bugs are caught")
    sys.exit(bool(escaped))


if __name__ == "__main__":
    main()
