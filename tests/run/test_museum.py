"""The museum as a whole: every fault that `--bug` knows is planted somewhere, and trained by the study."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from searchr1_mini.ablations.studies import STUDIES
from searchr1_mini.core import training
from searchr1_mini.core.methods import Finish
from searchr1_mini.core.questions import Example
from searchr1_mini.core.trajectory import Segment, Trajectory
from searchr1_mini.options.config import BUGS, TrainConfig
from searchr1_mini.options.nested import make
from searchr1_mini.options.resolve import resolve
from searchr1_mini.run.museum import planted
from searchr1_mini.run.opening import configured_method
from searchr1_mini.run.training import configured_reward

READ = Trajectory("q", [Segment("observation", [1], [0.0], "Oslo is old.")], "turns", None)
QUESTION = Example("q", "Which city?", ("Oslo",), "test")


def places_of(bug: str | None) -> list[str]:
    """Where a run with this fault is not the sound one: functions of the loop, its reward, its method."""
    config = resolve(make(TrainConfig, bug=bug, max_turns=1))
    sound = dict(vars(training))
    with planted(bug, Mock()):
        places = [name for name, value in vars(training).items() if sound.get(name) is not value]
    if configured_reward(config)(READ, QUESTION) > 0:
        places.append("reward")
    method = configured_method(config)("Which city?")
    asked = [method.send(reply) for reply in (None, None, "hm", None)]
    return [*places, "method"] if isinstance(asked[-1], Finish) else places


@pytest.mark.parametrize("bug", BUGS)
def test_every_fault_is_planted_in_one_place(bug):
    assert len(places_of(bug)) == 1 and places_of(None) == []


def test_the_study_trains_with_every_fault():
    arms = STUDIES["bugs"].arms.values()
    assert {arm["bug"] for arm in arms if "bug" in arm} == set(BUGS)
