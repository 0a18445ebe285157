"""benchmarks/end_to_end.py --against: both run their own files with the same values, and leave nothing behind."""

import json
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

RECIPE = """
import json, pathlib, sys
import package
if "--help" in sys.argv:
    print("usage: recipe --nothing\\noptions:", *(f"\\n  --{name} X  text of --nothing" for name in package.OPTIONS))
    sys.exit()
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
unknown = [word for word in words if word[2:] not in package.OPTIONS]
if unknown:
    sys.exit(f"there is no option {unknown[0]}")
words["preset"] = pathlib.Path(words["--config"]).read_text()
row = dict(method="Pool distillation", dataset="glyphs", ways=3, bn="running", head="prototype", episodes=2,
    metric="accuracy", ci95=1.0, seed=0, split="test", seconds=1.0, command=json.dumps(words))
rows = [
    dict(row, shots=1, mean=package.ACCURACY + int(words["--seed"])),
    dict(row, shots=5, mean=50.0, head=package.HEAD),
    dict(row, shots=1, mean=99.0, method="Best member"),
    dict(row, shots=1, mean=98.0, split="validation"),
]
folder = pathlib.Path(words["--output_dir"])
folder.mkdir()
(folder / "results.json").write_text(json.dumps(rows))
pathlib.Path(package.LOG).open("a").write(json.dumps([package.NAME, words]) + "\\n")
"""
"""Stands for a recipe: a package's options, and rows of results; no torch."""

OLD = "config pool num_members dataset seed num_threads output_dir log_with steps episodes yardsticks".split()
NEW = [*OLD[:-1], "baselines", "joint_updates"]
WORDS = ["--against", "HEAD~1", "--methods", "pool-distillation", "--members", "2", "--turns", "2", "--seed", "3"]
WORDS += ["--options", "episodes=7", "baselines=false", "--old_options", "yardsticks=false"]


@pytest.fixture
def end_to_end(script, tmp_path, monkeypatch):
    """The script in a clone of two commits, whose recipes stand for those of this library."""
    folder = tmp_path / "clone"

    def git(*words):
        who = ["-c", "user.name=Someone", "-c", "user.email=someone@example.com", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)

    (folder / "recipes").mkdir(parents=True)
    git("init", "--quiet")
    (folder / "recipes" / "pool_distillation.py").write_text(RECIPE)
    for name, options, accuracy, head in (("old", OLD, 40.0, "linear"), ("new", NEW, 45.0, "finetune")):
        facts = {"NAME": name, "OPTIONS": options, "ACCURACY": accuracy, "HEAD": head, "LOG": str(tmp_path / "log")}
        (folder / "package.py").write_text("".join(f"{key} = {value!r}\n" for key, value in facts.items()))
        git("add", ".")
        git("commit", "--quiet", "--message", name)
    module = script("end_to_end")
    against = sys.modules[module.in_turns.__module__]
    monkeypatch.setattr(against, "ROOT", folder)
    monkeypatch.setattr(module, "open_pool", lambda pool, members: None)
    monkeypatch.setattr(module, "names_of", lambda method: {*NEW, "steps"})
    monkeypatch.setattr(module, "parse", lambda *arguments, **options: None)  # It knows the library's options only.
    module.against = against
    module.worktrees = lambda: subprocess.run(
        ["git", "-C", str(folder), "worktree", "list"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    module.log = lambda: [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    return module


def test_both_run_their_own_files_with_the_same_values(end_to_end, tmp_path, capsys):
    result = end_to_end.main([*WORDS, "--output_dir", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    runs = end_to_end.log()
    # Each by the package beside its recipe, in turns.
    assert [name + words["--seed"] for name, words in runs] == ["old3", "new3", "old4", "new4"]
    (_, old), (_, new), *_ = runs
    for name in ("--pool", "--num_members", "--dataset", "--episodes", "--num_threads"):
        assert old[name] == new[name]
    assert old["--episodes"] == "7" and "steps: 4" in old["preset"] and "joint_updates" not in old["preset"]
    assert "joint_updates: 20" in new["preset"]
    # What had another name is given to the older one alone.
    assert old["--yardsticks"] == "false" and "--baselines" not in old and "--yardsticks" not in new
    assert end_to_end.worktrees()[1:] == []

    assert result["ratio"] == pytest.approx(result["baseline"] / result["ours"], rel=0.2) and result["ours"] > 0
    rows = {tuple(each["row"]): (each["old"], each["new"]) for each in result["accuracies"]}
    assert rows == {
        # The mean of both turns; rows of others and of other classes are left out.
        ("glyphs", 1, "prototype", "running"): ([43.5, 1.0], [48.5, 1.0]),
        ("glyphs", 5, "linear", "running"): ([50.0, 1.0], None),
        ("glyphs", 5, "finetune", "running"): (None, [50.0, 1.0]),
    }
    section = (tmp_path / "end_to_end.md").read_text(encoding="utf-8")
    assert "| Pool distillation | glyphs | 1 | prototype | running | 43.5 ± 1.0 | 48.5 ± 1.0 |" in section
    assert "| Pool distillation | glyphs | 5 | linear | running | 50.0 ± 1.0 | - |" in section
    left_out = re.split(r"[ ,.]+", " ".join(section.split("left out there: ")[1].split("```")[0].split()))
    assert {"baselines", "joint_updates"} < set(left_out) and not set(left_out) & {*OLD, "steps"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--old_options", "nothing=1"], r"ended with exit code 1: there is no option --nothing\n.*--old_options"),
        (["--against", "no-such-commit"], "expected a hash, branch or tag of the repository in .*, found none"),
        (["--against", "HEAD..HEAD"], "expected a hash, branch or tag"),
        (["--methods", "tgr"], "That commit has no recipes/tgr.py"),
    ],
)
def test_what_fails_says_why_in_a_sentence_and_leaves_no_worktree(end_to_end, words, sentence):
    with pytest.raises(SystemExit, match=sentence):
        end_to_end.main([*WORDS, *words])
    assert end_to_end.worktrees()[1:] == []


def test_ctrl_c_leaves_no_worktree(end_to_end, monkeypatch):
    seen = []

    def interrupted(tree, *arguments):
        seen.append((tree.is_dir(), len(end_to_end.worktrees())))
        raise KeyboardInterrupt

    monkeypatch.setattr(end_to_end.against, "run_recipe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        end_to_end.main(WORDS)
    assert seen == [(True, 2)] and end_to_end.worktrees()[1:] == []


def test_files_that_are_no_clone_have_no_commits(end_to_end, monkeypatch, tmp_path):
    monkeypatch.setattr(end_to_end.against, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="needs a git clone of the repository, and .* is not one"):
        end_to_end.main(WORDS)
    # A folder inside of somebody else's clone is none either.
    monkeypatch.setattr(end_to_end.against, "ROOT", tmp_path / "clone" / "recipes")
    with pytest.raises(SystemExit, match="is not one"):
        end_to_end.main(WORDS)
