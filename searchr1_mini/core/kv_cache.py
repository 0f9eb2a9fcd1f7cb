"""A KV cache in which every row has its own length, so that rows of different lengths share a batch with no holes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Cache

GROW = 128  # the cache grows in steps of this many positions


class RowCache(Cache):
    """Keys and values of `n_rows` conversations, each written at its own offset.

    Per layer two tensors (n_rows, kv_heads, capacity + 1, head_dim), made when the layer first writes: heads and
    dimension are its own, and of keys and values they may differ. The capacity grows on demand up to `max_length`; what
    a decode step writes for rows that rest goes to the one position more.
    `place` names the rows and positions of the next forward; a model's attention then calls `update`.
    """

    def __init__(self, n_layers: int, n_rows: int, max_length: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        self.n_rows, self.max_length, self.device, self.dtype = n_rows, max_length, device, dtype
        self.capacity = 0
        empty = torch.zeros(n_rows, 0, 0, 0, device=device, dtype=dtype)
        self.keys, self.values = [empty] * n_layers, [empty] * n_layers
        self.rows = self.token_rows = self.token_columns = self.token_slots = self.positions = torch.empty(0).long()
        self.span, self.is_prefix = 0, True

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns `span`: transformers asks when it has no position ids, and the decoder always passes them."""
        return self.span

    def place(self, rows: Tensor, positions: Tensor, is_real: Tensor) -> Tensor:
        """Tells the cache what the next forward feeds.

        Args:
            rows: (n,) the cache's row of each row of the batch; on the CPU, as the others, so that no device waits.
            positions: (n, t) the position of each id.
            is_real: (n, t) which ids are no padding.

        Returns:
            The attention mask (n, 1, t, span) on the cache's device, True where a query may look: every position up
            to its own.
        """
        device = self.device
        token_rows, token_columns = is_real.nonzero(as_tuple=True)
        placed = (rows, token_rows, token_columns, rows[token_rows], positions[is_real])
        self.rows, self.token_rows, self.token_columns, self.token_slots, self.positions = (
            indices.to(device) for indices in placed
        )
        self.span = int(positions[is_real].max()) + 1
        self.is_prefix = bool((rows == torch.arange(len(rows))).all())
        self.reserve(self.span)
        return (torch.arange(self.span, device=device) <= positions.to(device)[:, :, None])[:, None]

    def reserve(self, length: int, multiple: int = 1) -> int:
        """Makes room for rows of this length; returns it rounded up to a multiple, or what a row may hold if less."""
        length = min(-(-length // multiple) * multiple, self.max_length)
        if length > self.capacity:
            capacity = min(max(length, self.capacity + max(GROW, self.capacity // 2)), self.max_length)
            for tensors in (self.keys, self.values):
                for layer, tensor in enumerate(tensors):
                    if tensor.shape[1]:
                        tensors[layer] = nn.functional.pad(tensor, (0, 0, 0, capacity - self.capacity))
            self.capacity = capacity
        return length

    def allocate(self, layer: int, kv_heads: int, key_dim: int, value_dim: int) -> None:
        """Makes a layer's tensors, unless they are there."""
        for stores, dim in ((self.keys, key_dim), (self.values, value_dim)):
            if not stores[layer].shape[1]:
                shape = (self.n_rows, kv_heads, self.capacity + 1, dim)
                stores[layer] = torch.zeros(shape, device=self.device, dtype=self.dtype)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Writes states (n, kv_heads, t, head_dim) where `place` said; returns all of these rows up to the span."""
        self.allocate(layer_idx, key_states.shape[1], key_states.shape[3], value_states.shape[3])
        for stores, states in ((self.keys, key_states), (self.values, value_states)):
            real = states[self.token_rows, :, self.token_columns]
            stores[layer_idx][self.token_slots, :, self.positions] = real.to(self.dtype)
        return self._read(self.keys[layer_idx]), self._read(self.values[layer_idx])

    def _read(self, store: Tensor) -> Tensor:
        if self.is_prefix:  # the first n rows: a view, no copy
            return store[: len(self.rows), :, : self.span]
        return store[self.rows, :, : self.span]

    def snapshot(self, row: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Returns a copy of the first `length` positions of a row, per layer."""
        pairs = zip(self.keys, self.values, strict=True)
        return [(keys[row, :, :length].clone(), values[row, :, :length].clone()) for keys, values in pairs]

    def restore(self, row: int, states: list[tuple[Tensor, Tensor]]) -> None:
        """Writes a snapshot to the start of a row."""
        length = states[0][0].shape[1]
        self.reserve(length)
        for layer, (keys, values) in enumerate(states):
            self.keys[layer][row, :, :length] = keys
            self.values[layer][row, :, :length] = values

    def move(self, source: int, target: int, length: int) -> None:
        """Copies a row to another, so that the rows in use stay together at the front."""
        for store in (*self.keys, *self.values):
            store[target, :, :length] = store[source, :, :length]
