"""A group's prompt computed once: rows with one prompt become one row, in which each goes on from it by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from searchr1_mini.core.batch import Batch
from searchr1_mini.core.policy import Policy


def rows_by_prompt(batch: Batch) -> dict[tuple[int, ...], list[int]]:
    """Groups the rows by prompt: the ids before the first that is learned from."""
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, ids in enumerate(batch.input_ids.tolist()):
        learned = batch.loss_mask[row].nonzero()
        n = int(learned[0]) + 1 if len(learned) else int(batch.lengths[row])
        rows.setdefault(tuple(ids[:n]), []).append(row)
    return rows


def packed_width(packs: dict[tuple[int, ...], list[int]], lengths: list[int]) -> int:
    """Returns the number of tokens of the longest packed row."""
    return max(len(prompt) + sum(lengths[row] - len(prompt) for row in rows) for prompt, rows in packs.items())


def is_shorter(packs: dict[tuple[int, ...], list[int]], batch: Batch, hidden_size: int) -> bool:
    """Tells whether packed rows cost less: fewer tokens, but more pairs, since attention computes what it masks.

    A token costs about 24 H^2 operations in a layer, and a pair of tokens 4 H.
    """
    (n, width), packed = batch.input_ids.shape, packed_width(packs, batch.lengths.tolist())
    return len(packs) * packed * (6 * hidden_size + packed) < n * width * (6 * hidden_size + width)


def batch_hidden(policy: Policy, batch: Batch) -> Tensor:
    """Computes last hidden states (B, T, H) of a batch, by packed rows where shorter; arbitrary in padding."""
    packs = rows_by_prompt(batch) if policy.packs else {}
    if not packs or not is_shorter(packs, batch, policy.config.hidden_size):
        return policy.hidden(input_ids=batch.input_ids, position_ids=batch.position_ids)
    inputs, places = pack(packs, batch)
    return policy.hidden(**inputs).flatten(0, 1)[places]


def pack(packs: dict[tuple[int, ...], list[int]], batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the inputs of packed rows, and where each token of the batch stands in them, flattened (B, T).

    A token sees its prompt, and what came before it in its own row.
    """
    lengths, device = batch.lengths.tolist(), batch.input_ids.device
    width = packed_width(packs, lengths)
    ids, positions, owners = torch.zeros(3, len(packs), width, dtype=torch.long, device=device)
    places = torch.zeros_like(batch.input_ids)
    for pack_, (prompt, rows) in enumerate(packs.items()):
        at = n = len(prompt)
        ids[pack_, :n], positions[pack_, :n] = batch.input_ids[rows[0], :n], torch.arange(n)
        for owner, row in enumerate(rows, start=1):
            span, rest = slice(at, at + lengths[row] - n), slice(n, lengths[row])
            ids[pack_, span], owners[pack_, span] = batch.input_ids[row, rest], owner
            positions[pack_, span] = torch.arange(n, lengths[row])
            places[row, :n] = torch.arange(n) + pack_ * width
            places[row, rest] = torch.arange(span.start, span.stop) + pack_ * width
            at = span.stop
    sees = ((owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])).tril()
    return {"input_ids": ids, "position_ids": positions, "attention_mask": sees[:, None]}, places
