"""State on disk: what goes in comes out, whole or not at all."""

import pytest
import torch

from hf_dfml.utils.checkpoint import atomic_write, load_tree, save_tree


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


def test_stored_tensors_can_be_read_by_others(tmp_path):
    save_tree(tmp_path / "state", {"value": torch.ones(1)})
    assert (tmp_path / "state" / "tree.safetensors").stat().st_mode & 0o777 == 0o644
