from __future__ import annotations

import json
from pathlib import Path

import pytest

from tandem.errors import DataError
from tandem.training.data.corpus import STANDARD_LIBRARY, gather, read_texts, write_corpus
from tandem.training.data.docstrings import first_paragraph, module_name, questions_and_answers

SOURCE = '''"""Things about shapes
and their edges

Second paragraph.
"""
class Circle:
    """A round shape without corners."""
    def area(self):
        """Return the area:"""
        def inner():
            """Nobody can call this one."""
    def _hidden(self):
        """Not for you to see here."""
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name, content in {
        "b.py": SOURCE.encode(),
        "a/__init__.py": b"x = 1\n",
        "a/tests/t.py": b"no = 1",
        "site-packages/p.py": b"no = 1",
        "latin.py": b"# \xe9",
        "broken.py": b"print 'old'",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_gathers_sorted_and_names_what_it_leaves_out(tree: Path) -> None:
    sources = gather(str(tree))
    assert [file.path for file in sources.files] == ["a/__init__.py", "b.py", "broken.py"]
    assert sources.undecodable == ("latin.py",)


def test_digest_follows_content(tree: Path) -> None:
    before = gather(str(tree)).digest
    assert gather(str(tree)).digest == before
    (tree / "b.py").write_text("y = 2\n")
    assert gather(str(tree)).digest != before


def test_written_folder_can_be_read_and_checked(tree: Path, tmp_path: Path) -> None:
    sources = gather(str(tree))
    write_corpus(sources, tmp_path / "corpus")
    assert read_texts(tmp_path / "corpus") == [file.text for file in sources.files]
    assert json.loads((tmp_path / "corpus" / "corpus.json").read_text())["digest"] == sources.digest
    manifest = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    assert manifest["files"] == {file.path: file.sha256 for file in sources.files}
    assert manifest["instructions"] == 3


def test_the_standard_library_is_there() -> None:
    paths = {file.path for file in gather(STANDARD_LIBRARY).files}
    assert {"os.py", "json/__init__.py"} <= paths
    assert not any("/test/" in f"/{path}" or "site-packages" in path for path in paths)


def test_folders_without_python_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Python files"):
        gather(str(tmp_path / "nothing"))


def test_broken_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"corpus\.parquet"):
        read_texts(tmp_path)


def test_docstrings_become_questions() -> None:
    rows = [[turn["content"] for turn in row["messages"]] for row in questions_and_answers("geo/shapes.py", SOURCE)]
    assert rows == [
        ["What does geo.shapes do?", "Things about shapes and their edges."],
        ["What is geo.shapes.Circle?", "A round shape without corners."],
        ["What does geo.shapes.Circle.area do?", "Return the area."],
    ]
    assert list(questions_and_answers("_private/shapes.py", SOURCE)) == []
    assert list(questions_and_answers("old.py", "print 'old'")) == []


def test_names_and_paragraphs() -> None:
    assert module_name("json/__init__.py") == "json"
    assert module_name("json/decoder.py") == "json.decoder"
    assert first_paragraph("One\n  two!\n\n  three") == "One two!"
    assert first_paragraph("") == ""
