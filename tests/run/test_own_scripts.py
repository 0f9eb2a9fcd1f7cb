"""Scripted episodes on questions and passages of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.files import write_lines
from helpers.sessions import session_of

from searchr1_mini.run.cold_start import scripted_episodes


def files_of(folder: Path, rows: list[dict], passages: list[dict]) -> dict[str, str]:
    """The options of a run on these questions and passages."""
    path, corpus = write_lines(folder / "q.jsonl", rows), write_lines(folder / "c.jsonl", passages)
    return {"dataset": "jsonl", "data_path": path, "corpus": corpus}


def test_an_episode_answers_in_the_spelling_that_it_read(tmp_path):
    rows = [{"question": f"Where is ferry {n} from?", "golden_answers": ["USA", "United States"]} for n in range(12)]
    passages = [{"id": str(n), "title": f"Ferry {n}", "text": "It is from the United States."} for n in range(12)]
    run = session_of(tmp_path / "run", cold_start=4, **files_of(tmp_path, rows, passages))
    assert {episode.answer for episode in scripted_episodes(run)} == {"United States"}


@pytest.mark.parametrize("n_words", [0, 2])
def test_passages_of_ones_own_need_not_be_the_questions_own(tmp_path, n_words):
    """Their titles are spelled in another way, or they are cut in other places, so that no support is in the corpus."""
    rows, passages = [], []
    for n in range(12):
        context = f"Ferry {n} sails at noon from Pier{n}."
        asked = {"question": f"Where does ferry {n} sail from at noon?", "answer": f"Pier{n}", "context": context}
        rows.append(asked | {"title": f"The_Ferry_{n}"})
        text = " ".join(context.split()[n_words:])
        passages.append({"id": str(n), "title": f"The_Ferry_{n}", "text": text})
    run = session_of(tmp_path / "run", cold_start=4, **files_of(tmp_path, rows, passages))
    episodes = scripted_episodes(run)
    assert len(episodes) == 4 and {len(episode.queries) for episode in episodes} == {1}
