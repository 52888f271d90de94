"""A commit's name: the same for the same code, another for each edit of it."""

import subprocess

import pytest

from util import provenance


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A repository with a source and a document, which the code takes for its own."""
    monkeypatch.delenv("MIMAE_COMMIT", raising=False)
    (tmp_path / "util").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "util/provenance.py"))
    (tmp_path / "util/a.py").write_text("one\n")
    (tmp_path / "README.md").write_text("text\n")
    own = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], [*own, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def test_edits_and_new_sources_are_told_apart_by_a_digest(tree):
    clean = provenance.commit()
    (tree / "README.md").write_text("another text\n")
    (tree / "notes.md").write_text("no code\n")
    assert provenance.commit() == clean and "dirty" not in clean
    names = [clean]
    for content in ("two\n", "three\n"):
        (tree / "util/a.py").write_text(content)
        names.append(provenance.commit())
        assert names[-1].startswith(f"{clean}-dirty-") and names[-1] == provenance.commit()
    for content in ("new\n", "newer\n"):
        (tree / "util/b.py").write_text(content)
        names.append(provenance.commit())
    (tree / "util/b.py").rename(tree / "util/c.py")
    names.append(provenance.commit())
    assert len(set(names)) == len(names)
    (tree / "util/c.py").unlink()
    (tree / "util/a.py").write_text("one\n")
    assert provenance.commit() == clean


def test_a_launcher_says_it_and_outside_git_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "util/provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("MIMAE_COMMIT", raising=False)
    assert provenance.commit() == "unknown"
    monkeypatch.setenv("MIMAE_COMMIT", "abc-dirty-12345678")
    assert provenance.commit() == "abc-dirty-12345678"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("8bc050e", "8bc050e5" + 32 * "0", True),
        ("8bc050e5", "8bc050e", True),
        ("8bc050e", "8bc050f", False),
        ("8bc050e", "8bc050e-dirty-12345678", False),
        ("test", "test", True),
        ("te", "test", False),
    ],
)
def test_a_commits_number_may_be_abbreviated(one, other, same):
    assert provenance.is_same(one, other) == same
