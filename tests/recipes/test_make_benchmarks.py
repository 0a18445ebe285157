"""docs/benchmarks.md: what the scripts have written, in their order; a script that is run anew replaces its part."""

import sys


def test_the_page_is_made_of_the_sections_that_there_are(script, tmp_path, monkeypatch):
    module = script("make_benchmarks")
    assert all((module.ROOT / "benchmarks" / f"{name}.py").is_file() for name in module.SCRIPTS)
    ran = []

    def run(name, folder):
        ran.append(name)
        (folder / f"{name}.md").write_text(f"## {name} {len(ran)}\n")

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.01)
    for words in (["scaling", "evaluate"], ["scaling"]):
        monkeypatch.setattr(sys, "argv", ["make_benchmarks.py", "--output_dir", str(tmp_path), "--only", *words])
        module.main()
    assert ran == ["scaling", "evaluate", "scaling"]
    lines = (tmp_path / "page.md").read_text().splitlines()
    titles = [line for line in lines if line.startswith("#")]
    assert titles == [
        "# Benchmarks",
        "## evaluate 2",
        "## scaling 3",
        "## Against an earlier commit",
        "## Size",
        "## Accelerators",
    ]
    # Both have their times, whichever ran last.
    assert any(line.startswith("Minutes: evaluate 0.0, scaling 0.0; 0.0 in all.") for line in lines)
    assert max(map(len, lines)) <= 120
