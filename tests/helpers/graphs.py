"""CUDA's graphs, played on the CPU: what is called during a capture is called again at each replay."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from searchr1_mini.models import stacked


class Graph:
    """Keeps calls, with their results, which a replay writes over; `replays` counts."""

    made: list[Graph]

    def __init__(self) -> None:
        self.calls, self.replays = [], 0
        self.made.append(self)

    def pool(self) -> None:
        """None, as before the first capture."""

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, results in self.calls:
            for old, new in zip(results, tensors(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():  # no view, and not written in place
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """Inside, calls are kept in a graph."""

    def __init__(self, graph: Graph, pool: None) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, tensors(result)))
        return result


class Refused(Capture):
    """A capture that breaks off at its first call, as for one that waits for the GPU, and cannot be ended."""

    def __torch_dispatch__(self, *call):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        raise RuntimeError("operation failed due to a previous error during capture")


def tensors(result) -> list[torch.Tensor]:
    """What a call returned, less what is no tensor."""
    every = result if isinstance(result, (tuple, list)) else [result]
    return [each for each in every if isinstance(each, torch.Tensor)]


def capture_on_cpu(monkeypatch, graph: type = Graph, capture: type = Capture) -> list[Graph]:
    """Has steps captured on the CPU too; returns the graphs, as they are made."""
    graph.made = []
    monkeypatch.setattr(stacked, "can_capture", lambda device: True)
    monkeypatch.setattr(stacked.StackedModel, "may_capture", True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "own")
    return graph.made
