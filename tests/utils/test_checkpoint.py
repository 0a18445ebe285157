"""State on disk: what goes in comes out, whole or not at all."""

from dataclasses import dataclass

import pytest
import torch

from hf_dfml.resuming import refuse_other_options
from hf_dfml.utils.checkpoint import FILES, SUMS, atomic_write, damage, load_tree, load_values, newest_sound, save_tree


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = {
        "model": {"weight": torch.randn(3, 2), "count": torch.tensor(4)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(2.0)}, 1: {"step": 3}},
            "groups": [{"lr": 1e-3, "betas": [0.9, 0.99]}],
        },
        "none": None,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "pair": (1, 2),
        "permuted": torch.randn(2, 3, 4, 5).permute(3, 1, 0, 2),
    }
    save_tree(tmp_path / "state", tree)
    back = load_tree(tmp_path / "state")
    assert torch.equal(back["model"]["weight"], tree["model"]["weight"])
    assert back["model"]["count"].shape == ()
    assert back["optimizer"]["state"][0]["step"] == 2.0
    assert back["optimizer"]["state"][1] == {"step": 3}
    assert back["optimizer"]["groups"] == [{"lr": 1e-3, "betas": [0.9, 0.99]}]
    assert back["none"] is None
    assert back["half"].dtype == torch.bfloat16
    assert back["pair"] == (1, 2)
    assert torch.equal(back["permuted"], tree["permuted"])
    assert back["permuted"].stride() == tree["permuted"].stride()


def test_an_optimizer_goes_on_as_if_never_saved(tmp_path):
    def steps(optimizer, weight, count):
        for _ in range(count):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()

    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], 0.1)
    steps(optimizer, weight, 3)
    save_tree(tmp_path / "state", {"weight": weight, "optimizer": optimizer.state_dict()})
    steps(optimizer, weight, 3)

    state = load_tree(tmp_path / "state")
    again = state["weight"].clone().requires_grad_()
    resumed = torch.optim.Adam([again], 0.1)
    resumed.load_state_dict(state["optimizer"])
    steps(resumed, again, 3)
    assert torch.equal(again, weight)


def test_a_failed_save_leaves_the_old_state(tmp_path):
    save_tree(tmp_path / "state", {"value": 1})
    with pytest.raises(TypeError, match="'/model/fn' is a function"):
        save_tree(tmp_path / "state", {"model": {"fn": lambda: None}})
    assert load_tree(tmp_path / "state") == {"value": 1}


def test_a_folder_without_state_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no saved state"):
        load_tree(tmp_path)


def test_tied_tensors_are_stored_twice(tmp_path):
    weight = torch.randn(2)
    save_tree(tmp_path / "state", {"a": weight, "b": weight})
    assert torch.equal(load_tree(tmp_path / "state")["b"], weight)


def test_atomic_write_makes_folders_and_leaves_no_partial_file(tmp_path):
    atomic_write(tmp_path / "deep" / "file.json", "{}")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file.json"]


def test_names_that_are_no_text_are_written_all_the_same(tmp_path):
    """As from an archive that was packed in another encoding."""
    atomic_write(tmp_path / "answers.csv", f"caf{chr(0xDCE9)}.jpg,ant\n")
    assert (tmp_path / "answers.csv").read_text() == "caf\\udce9.jpg,ant\n"


def test_stored_tensors_can_be_read_by_others(tmp_path):
    save_tree(tmp_path / "state", {"value": torch.ones(1)})
    assert (tmp_path / "state" / "tree.safetensors").stat().st_mode & 0o777 == 0o644


def spoil(file, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    else:
        content[-2] ^= 16
    file.unlink() if how == "gone" else file.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "gone"])
@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_each_damage_is_found_out(tmp_path, name, how):
    save_tree(tmp_path / "state", {"value": torch.arange(100.0), "step": 3})
    assert damage(tmp_path / "state") is None
    spoil(tmp_path / "state" / name, how)
    if (name, how) == (SUMS, "gone"):  # As of a version that wrote none.
        assert load_tree(tmp_path / "state")["step"] == 3
        return
    assert damage(tmp_path / "state")
    if (name, how) != ("tree.json", "gone"):
        with pytest.raises(ValueError, match=r"state is damaged \(.*\): delete it"):
            load_tree(tmp_path / "state")


@pytest.mark.parametrize("how", ["cut", "gone"])
@pytest.mark.parametrize("name", FILES)
def test_without_sums_what_cannot_be_read_is_damaged(tmp_path, name, how):
    save_tree(tmp_path / "state", {"value": torch.ones(100)})
    (tmp_path / "state" / SUMS).unlink()
    spoil(tmp_path / "state" / name, how)
    assert damage(tmp_path / "state")


def test_the_newest_that_is_sound(tmp_path):
    for step in (1, 2, 10):
        save_tree(tmp_path / f"step-{step:06d}", {"step": step})
    assert newest_sound(tmp_path) == ("step-000010", {})
    spoil(tmp_path / "step-000010" / "tree.json", "cut")
    name, damaged = newest_sound(tmp_path)
    assert name == "step-000002" and list(damaged) == ["step-000010"]
    for step in (1, 2):
        spoil(tmp_path / f"step-{step:06d}" / "tree.safetensors", "flipped")
    with pytest.raises(ValueError, match=r"All checkpoints in .* are damaged \(step-000010: .*; step-000001: .*\)"):
        newest_sound(tmp_path)


def test_a_part_without_tensors_is_read_alone_and_held_to_the_same(tmp_path):
    folder = tmp_path / "step"
    save_tree(folder, {"options": {"steps": 3, "names": ["a"]}, "weights": torch.zeros(2)})
    assert load_values(folder, "options") == {"steps": 3, "names": ["a"]}
    with pytest.raises(ValueError, match="no 'other'"):
        load_values(folder, "other")
    with pytest.raises(FileNotFoundError, match="holds no saved state"):
        load_values(tmp_path / "none", "options")
    (folder / "tree.json").write_text("{")
    with pytest.raises(ValueError, match="step is damaged"):
        load_values(folder, "options")


def test_options_without_a_default_can_be_resumed(tmp_path):
    @dataclass
    class Needed:
        size: int
        steps: int = 2

    refuse_other_options(tmp_path, {"size": 3, "steps": 1}, Needed(3))
    with pytest.raises(ValueError, match="other values of size"):
        refuse_other_options(tmp_path, {"size": 3, "steps": 1}, Needed(4))
