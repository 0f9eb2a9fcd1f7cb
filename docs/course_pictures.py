"""The pictures of the course, a picture a session: `python docs/course_pictures.py` writes docs/course_*.svg.

Curves are computed by the package's own functions; lengths of turns and passages are an example's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config

from searchr1_mini.core.algorithms import clipped_surrogate, gae, group_advantages
from searchr1_mini.options.config import TrainConfig
from searchr1_mini.options.defaults import PRESETS
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.pages.charts import COLORS, html_text, line_chart, svg
from searchr1_mini.run.memory import GB, predict
from searchr1_mini.run.shape import model_shape

STYLE = (
    "text{fill:#1f2430;font-size:12px}.grid{stroke:#dfe3e8}.name{font-weight:600}.title{font-weight:600;font-size:14px}"
)
WRITERS = {"prompt": "#dddddd", "policy": "#9ccbe8", "observation": "#f5ce7e"}
EXAMPLE = [("prompt", 40), ("policy", 20), ("observation", 90), ("policy", 20), ("observation", 90), ("policy", 25)]
# Qwen2.5-3B, as its config.json has it
QWEN_3B = Qwen2Config(
    hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2, intermediate_size=11008,
    vocab_size=151936, tie_word_embeddings=True,
)  # fmt: skip


def card(parts: list[str], width: int, height: int, title: str) -> str:
    """A whole SVG on a white card, with a title."""
    back = f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
    return svg("\n".join([back, *parts]), width, height, title, STYLE) + "\n"


def text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    """A line of text at its anchor."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{html_text(words)}</text>'


def box(x: float, y: float, width: float, height: float, color: str, words: str = "") -> str:
    """A box with words in its middle."""
    rectangle = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}" stroke="#fff"/>'
    )
    return rectangle + (text(x + width / 2, y + height / 2 + 4, words) if words else "")


def arrow(x1: float, x2: float, y: float, words: str) -> str:
    """A level arrow from x1 to x2 with words above it."""
    head = 8 if x2 > x1 else -8
    line = f'<path d="M{x1} {y}H{x2 - head}" stroke="#1f2430"/><path d="M{x2} {y}l{-head} -4v8z" fill="#1f2430"/>'
    return line + text((x1 + x2) / 2, y - 6, words, "middle", "name")


def loop() -> str:
    """Session 1: the policy asks, the engine answers, and one number comes back."""
    parts = [
        box(20, 60, 110, 60, WRITERS["prompt"], "question"),
        box(220, 40, 150, 100, WRITERS["policy"], "policy"),
        box(600, 40, 140, 100, WRITERS["observation"], "search engine"),
        arrow(130, 220, 90, "prompt"),
        arrow(370, 600, 70, "<search> query </search>"),
        arrow(600, 370, 120, "<information> .. </information>"),
        box(220, 200, 150, 50, WRITERS["policy"], "<answer> .. </answer>"),
        box(600, 200, 140, 50, WRITERS["prompt"], "EM: 1 or 0"),
        arrow(370, 600, 225, "right?"),
        upright(295, 140, 200),
        text(303, 175, "up to 4 actions", "start"),
        '<path d="M670 250V285H175V120" stroke="#1f2430" fill="none"/>',
        arrow(175, 220, 120, ""),
        text(422, 279, "reward: what was paid becomes likelier", "middle", "name"),
    ]
    return card(parts, 760, 305, "A question, a policy that may search, and one reward that comes back to the policy")


def rollout() -> str:
    """Session 2: what is fed at each turn, with the whole context and with a KV cache."""
    parts, y = [], 46
    for title, is_cached in (("the whole context at every turn", False), ("with a KV cache: what is new", True)):
        parts.append(text(20, y - 8, title, "start", "title"))
        fed, total = 0, 0
        for index, (kind, _) in enumerate(EXAMPLE):
            if kind != "policy":
                continue
            x, start = 60.0, fed if is_cached else 0
            parts.append(text(20, y + 15, f"turn {(index + 1) // 2}", "start"))
            for position, (writer, n) in enumerate(EXAMPLE[: index + 1]):
                if position >= start:
                    parts.append(box(x, y, 2 * n, 22, WRITERS[writer], writer if n > 30 else ""))
                    total += n
                x += 2 * n
            fed, y = index + 1, y + 28
        parts.append(text(660, y - 34, f"{total} tokens", "start", "name"))
        y += 34
    return card(parts, 760, y - 30, "Tokens fed in an answer of three turns")


def mask() -> str:
    """Session 3, first half: who wrote which token, and which of them are in the loss."""
    tokens = [("prompt", word) for word in "Question : Where does Ada work ?".split()]
    tokens += [("policy", word) for word in "<search> Ada Brook </search>".split()]
    tokens += [("observation", word) for word in "<information> Ada works for Opal Bank </information>".split()]
    tokens += [("policy", word) for word in "<answer> Opal Bank </answer>".split()]
    parts, x, y = [text(20, 28, "I(y) = 1 where the policy wrote the token", "start", "title")], 20.0, 44
    for writer, word in tokens:
        width = 7.2 * len(word) + 12
        if x + width > 740:
            x, y = 20.0, y + 62
        parts += [
            box(x, y, width, 24, WRITERS[writer], word),
            text(x + width / 2, y + 40, str(int(writer == "policy"))),
        ]
        x += width
    for place, (writer, color) in enumerate(WRITERS.items()):
        parts.append(box(20 + 130 * place, y + 62, 110, 20, color, writer))
    return card(parts, 760, y + 96, "The loss mask on the tokens of a trajectory")


def advantages() -> str:
    """Session 3, second half: GRPO's advantage by how many of a group of eight are right."""
    lines = {}
    for name, normalize in (("GRPO", True), ("Dr. GRPO", False)):
        both = []
        for n_right in range(1, 8):
            rewards = torch.tensor([1.0] * n_right + [0.0] * (8 - n_right))
            both.append((n_right, group_advantages(rewards, torch.zeros(8), "group", normalize)))
        lines[f"{name}, right"] = [(n, a[0].item()) for n, a in both]
        lines[f"{name}, wrong"] = [(n, a[-1].item()) for n, a in both]
    chart = line_chart(lines, "Advantage in a group of 8", "right rollouts", "advantage", width=560, height=320)
    return card([chart], 600, 320, "Advantages of right and wrong rollouts by how many of the group are right")


def clip() -> str:
    """Session 4: the clipped objective of one token, by its ratio."""
    ratios = torch.linspace(0.5, 1.6, 56)
    lines = {}
    for name, advantage in (("right:", 1.0), ("wrong:", -1.0)):
        loss, _ = clipped_surrogate(ratios.log()[None], torch.full((1, 1), advantage), 0.2, 0.2)
        lines[name] = list(zip(ratios.tolist(), (-loss[0]).tolist(), strict=True))
    chart = line_chart(
        lines, "min(rho A, clip(rho, 0.8, 1.2) A), A = ±1", "ratio rho", "objective", width=560, height=320
    )
    return card([chart], 600, 320, "The clipped objective of PPO and GRPO")


def credit() -> str:
    """Session 5: GAE over policy tokens, with an observation between two turns."""
    loss_mask = torch.tensor([[True] * 8 + [False] * 6 + [True] * 6])
    rewards = torch.zeros(1, 20)
    rewards[0, -1] = 1.0
    values = torch.full((1, 20), 0.4)
    at = loss_mask[0].nonzero()[:, 0].tolist()
    lines = {}
    for gae_lambda in (1.0, 0.9, 0.5):
        found, _ = gae(rewards, values, loss_mask, 1.0, gae_lambda)
        lines[f"λ = {gae_lambda}:"] = [(float(t), found[0, t].item()) for t in at]
    title = "Advantage; V = 0.4, tokens 8 to 13 are read, not written"
    chart = line_chart(lines, title, "token", "advantage", width=560, height=320)
    return card([chart], 600, 320, "Generalized advantages over two turns and an observation")


def memory() -> str:
    """Session 6: predicted peak memory of each phase for Qwen2.5-3B, by preset."""
    shape = model_shape(QWEN_3B)
    parts = [text(20, 28, "Predicted peak of each phase, Qwen2.5-3B in NF4 with LoRA, GRPO", "start", "title")]
    y = 48
    for preset in ("24gb", "16gb", "12gb"):
        predicted = predict(resolve(make(TrainConfig, model="Qwen2.5-3B", **PRESETS[preset])), shape, 2, on_gpu=True)
        parts.append(text(20, y + 34, f"--preset {preset}", "start", "name"))
        for color, phase in zip(COLORS, predicted.phases, strict=False):
            size = predicted.total(phase) / GB
            parts += [
                box(130, y, 22 * size, 16, color),
                text(136 + 22 * size, y + 12, f"{phase} {size:.1f} GB", "start"),
            ]
            y += 18
        y += 16
    return card(parts, 760, y, "Predicted peak memory by preset")


def suspects() -> str:
    """Session 7: the stages of a step, the faults of the museum in each, and what each changes first."""
    stages = [  # stage, faults, numbers of the log and columns of the rollouts
        ("roll out", ["no-last-turn"], ["turns, answered"]),
        ("reward", ["reward-from-whole-text"], ["reward above em"]),
        ("batch", ["retokenize"], ["entropy, grad_norm"]),
        ("advantages", ["colliding-groups"], ["group, advantage", "zero_variance_groups"]),
        ("loss", ["masked-in-denominator", "tool-tokens-in-length"], ["policy_loss", "grad_norm"]),
    ]
    parts, middle = [], 0.0
    for y, words in ((74, "stage"), (130, "fault"), (200, "shows in")):
        parts.append(text(20, y, words, "start", "name"))
    for place, (stage, faults, numbers) in enumerate(stages):
        middle = 164.0 + 158 * place
        parts.append(box(middle - 55, 50, 110, 40, WRITERS["policy"], stage))
        if place:
            parts.append(arrow(middle - 103, middle - 55, 70, ""))
        parts += [text(middle, 130 + 18 * line, fault) for line, fault in enumerate(faults)]
        parts += [text(middle, 200 + 18 * line, number) for line, number in enumerate(numbers)]
    parts.append(text(20, 28, "What each fault changes first, against a sound run of the same seed", "start", "title"))
    return card(
        parts, int(middle) + 94, 236, "The stages of a step, the fault of the museum in each, and where it shows"
    )


def named(x: float, y: float, width: float, color: str, name: str, about: str) -> str:
    """A box of two lines: the name of a room or module as it is in searchr1_mini/, and what it holds."""
    lines = text(x + width / 2, y + 19, name, "middle", "name") + text(x + width / 2, y + 36, about)
    return box(x, y, width, 46, color) + lines


def architecture() -> str:
    """Session 2 and architecture.md: the rooms of the package, and in the core the stages of a step."""
    gray, blue, yellow = WRITERS["prompt"], WRITERS["policy"], WRITERS["observation"]
    parts = [
        '<rect x="190" y="20" width="460" height="258" rx="6" fill="#f3f6fa" stroke="#9ccbe8"/>',
        text(204, 42, "core", "start", "title"),
        text(242, 42, "training.py: a step goes round once", "start"),
    ]
    stages = [  # in the order of core/training.py; the second row runs back
        ("rollout.py", "1 roll out"), ("rewards.py", "2 reward"), ("batch.py", "3 the mask"),
        ("experience.py", "4 advantages, pi_old"), ("algorithms.py", "5 losses"), ("optimizer.py", "6 optimizer steps"),
    ]  # fmt: skip
    for place, (name, about) in enumerate(stages):
        column = place if place < 3 else 5 - place
        parts.append(named(202 + 152 * column, 56 if place < 3 else 142, 132, blue, name, about))
    parts += [arrow(334, 354, 79, ""), arrow(486, 506, 79, ""), upright(572, 102, 142)]
    parts += [arrow(506, 486, 165, ""), arrow(354, 334, 165, ""), upright(268, 142, 102)]
    parts.append(text(276, 126, "new weights", "start"))
    helpers = {"methods.py": "Algorithm 1", "decoder.py": "sampling", "policy.py": "and reference"}
    for place, (name, about) in enumerate((helpers | {"critic.py": "PPO's values"}).items()):
        parts.append(named(202 + 111 * place, 218, 103, "#dbe9f5", name, about))
    rooms = {  # name: x, y, width, what it holds
        "data": (20, 20, 140, "questions, passages"),
        "retrievers": (20, 86, 140, "search engines"),
        "models": (20, 152, 140, "bases, adapters"),
        "options": (20, 218, 140, "flags, defaults"),
        "run": (700, 86, 140, "state, checks, log"),
        "storage": (700, 152, 140, "files, checkpoints"),
        "pages": (700, 218, 140, "reports, cards"),
        "evaluation": (20, 306, 193, "methods x data sets"),
        "chat": (229, 306, 193, "terminal, browser"),
        "ablations": (438, 306, 193, "studies"),
        "tiny": (647, 306, 193, "what the tiny base read"),
    }
    for name, (x, y, width, about) in rooms.items():
        parts.append(named(x, y, width, yellow if name == "retrievers" else gray, name, about))
    parts += [arrow(160, 190, y + 23, "") for y in (20, 86, 152, 218)]
    parts += [arrow(700, 650, 100, "steps"), arrow(650, 700, 122, "7 log")]
    order = "core, storage, models, retrievers, data, options, run, pages, evaluation, chat, ablations, tiny"
    parts.append(text(20, 378, f"A room imports only those before it: {order}", "start"))
    return card(parts, 860, 396, "The rooms of the package, and the stages of a step in its core")


def upright(x: float, y1: float, y2: float) -> str:
    """An upright arrow from y1 to y2."""
    head = 8 if y2 > y1 else -8
    return f'<path d="M{x} {y1}V{y2 - head}" stroke="#1f2430"/><path d="M{x} {y2}l-4 {-head}h8z" fill="#1f2430"/>'


PICTURES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (loop, rollout, mask, advantages, clip, credit, memory, suspects, architecture)
}


def write(folder: Path) -> list[Path]:
    """Every picture as `course_NAME.svg`; returns their paths."""
    paths = [folder / f"course_{name}.svg" for name in PICTURES]
    for path, draw in zip(paths, PICTURES.values(), strict=True):
        path.write_text(draw(), encoding="utf-8")
    return paths


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent):
        print(path.name, path.stat().st_size, "bytes")
