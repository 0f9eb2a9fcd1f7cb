"""Files of the user's own: what lies beside them, and edits between two looks."""

from __future__ import annotations

import sys

import pytest

from searchr1_mini.core.errors import UserError
from searchr1_mini.options.own_parts import own_hashes, own_part


@pytest.mark.parametrize("where", ["top", "function"])
def test_a_file_imports_its_neighbor_which_is_hashed_too(tmp_path, where):
    """Edits within the same second, to as many bytes, count as any other."""
    line, code = "from beside_it import VALUE", "def pays(trajectory, example):\n    {}\n    return VALUE\n"
    code = f"{line}\n{code.format('pass')}" if where == "top" else code.format(line)
    (tmp_path / "neighbor.py").write_text(code)
    (tmp_path / "not_imported.py").write_text("")
    named, hashes = {"reward": f"{tmp_path}/neighbor.py:pays"}, []
    for value in (1, 2):
        (tmp_path / "beside_it.py").write_text(f"VALUE = {value}\n")
        assert own_part("reward", named["reward"])(None, None) == value
        hashes.append(own_hashes(named))
    assert sorted(hashes[0]) == sorted(hashes[1]) == ["beside_it.py", "neighbor.py"]
    assert [hashes[0][name] == hashes[1][name] for name in sorted(hashes[0])] == [False, True]
    assert "beside_it" not in sys.modules and str(tmp_path) not in sys.path


def test_neighbors_of_two_folders_by_one_name_are_kept_apart(tmp_path):
    code = (
        "import common, helpers.words\nfrom common import NAME\nfrom helpers import words as same\n"
        "def pays(trajectory, example):\n    from common import NAME as late\n    import helpers.later as later\n"
        "    return NAME, common.NAME, late, helpers.words.NAME, same.NAME, later.NAME, words_of().__name__\n"
        "def words_of():\n    import json\n    return json\n"
    )
    named = {}
    for option, name in (("reward", "a"), ("method", "b")):
        folder = tmp_path / name
        for inside in ("helpers", "json", "searchr1_mini"):  # what is installed goes before a folder without __init__
            (folder / inside).mkdir(parents=True)
        (folder / "searchr1_mini" / "__init__.py").write_text("raise RuntimeError")  # never stands for the program
        (folder / "helpers" / "__init__.py").write_text("from .words import NAME\n")
        for path in ("common.py", "helpers/words.py", "helpers/later.py"):
            (folder / path).write_text(f"from searchr1_mini.core.errors import UserError\nNAME = {name!r}\n")
        (folder / "part.py").write_text(code)
        named[option] = f"{folder}/part.py:pays"
    parts = [own_part("reward", value) for value in named.values()]
    assert [part(None, None) for part in parts] == [("a",) * 6 + ("json",), ("b",) * 6 + ("json",)]
    files = ["common.py", "helpers/__init__.py", "helpers/later.py", "helpers/words.py", "part.py"]
    both, first = own_hashes(named), own_hashes({"reward": named["reward"]})
    assert sorted(both) == sorted(first) == files and all(both[name] != first[name] for name in files)
    (tmp_path / "a" / "helpers" / "words.py").write_text("NAME = 'c'\n")
    assert own_part("reward", named["reward"])(None, None) == ("a", "a", "a", "c", "c", "a", "json")
    assert own_part("reward", named["method"]) is parts[1]


def test_a_module_of_the_current_folder_is_taken_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside.py").write_text("VALUE = 3\n")
    (tmp_path / "mine" / "here.py").write_text("from .beside import VALUE\ndef pays(t, e): return VALUE\n")
    assert own_part("reward", "mine.here:pays")(None, None) == 3
    (tmp_path / "mine" / "beside.py").write_text("VALUE = 4\n")
    assert own_part("reward", "mine.here:pays")(None, None) == 4
    assert sorted(own_hashes({"reward": "mine.here:pays"})) == ["mine/beside.py", "mine/here.py"]


def test_a_file_that_broke_is_read_again_once_it_is_mended(tmp_path):
    path = tmp_path / "mended.py"
    for code in ("raise KeyError", "def pays(:"):
        path.write_text(code)
        with pytest.raises(UserError, match=r"mended\.py cannot be imported"):
            own_part("reward", f"{path}:pays")
    path.write_text("def pays(trajectory, example): return 5\n")
    assert own_part("reward", f"{path}:pays")(None, None) == 5
