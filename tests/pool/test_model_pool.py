from __future__ import annotations

import pytest
import torch

from hf_dfml import ModelPool
from tests.pool.members import write_member


@pytest.fixture
def pool(members) -> ModelPool:
    return ModelPool.from_dir(members)


def ids(pool: ModelPool) -> list[str]:
    return [entry.id for entry in pool]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_members_are_listed_by_name_without_loading_any(pool):
    assert ids(pool) == ["m-0", "m-1", "m-2", "m-3", "m-4"]
    assert pool[1].id == "m-1" and len(pool[1:3]) == 2
    assert pool.cache.loads == 0


def test_load_takes_index_id_and_entry_and_loads_once(pool):
    teacher = pool.load(2)
    assert pool.load("m-2") is teacher and pool.load(pool[2]) is teacher
    assert (pool.cache.loads, pool.cache.hits) == (1, 2)
    with pytest.raises(KeyError, match="no member 'm-9'"):
        pool.load("m-9")
    for members in (pool, pool.as_black_box()):
        with pytest.raises(IndexError, match="no member 99: it has 5 members"):
            members.load(99)
    assert pool.load(-1) is pool.load(4)


def test_the_least_recently_used_teacher_is_dropped_at_the_budget(members):
    first = ModelPool.from_dir(members).load(0)
    size = sum(tensor.nbytes for tensor in (*first.parameters(), *first.buffers()))
    pool = ModelPool.from_dir(members, cache_bytes=2 * size + 10)
    zero, one = pool.load(0), pool.load(1)
    assert pool.load(0) is zero
    pool.load(2)  # Drops 1, which was used before 0.
    assert pool.cache.bytes == 2 * size
    assert pool.load(0) is zero
    assert pool.load(1) is not one
    assert pool.cache.loads == 4


def test_a_budget_of_nothing_keeps_nothing(members):
    pool = ModelPool.from_dir(members, cache_bytes=0)
    assert pool.load(0) is not pool.load(0)
    assert pool.cache.bytes == 0


def test_derived_pools_share_the_cache(pool):
    teacher = pool.load(3)
    assert pool.filter(lambda entry: entry.id == "m-3").load(0) is teacher
    assert pool[3:].load(0) is teacher


def test_sample_draws_different_members_reproducibly(pool):
    drawn = pool.sample(3, generator())
    assert len(set(ids(drawn))) == 3
    assert ids(drawn) == ids(pool.sample(3, generator()))
    assert sorted(ids(pool.sample(5, generator()))) == ids(pool)
    with pytest.raises(ValueError, match="Cannot sample 6 members from a pool of 5"):
        pool.sample(6, generator())


def test_split_divides_the_pool(pool):
    first, second = pool.split(0.8, generator())
    assert (len(first), len(second)) == (4, 1)
    assert sorted(ids(first) + ids(second)) == ids(pool)
    assert ids(first) == ids(pool.split(0.8, generator())[0])


def test_adding_pools_keeps_a_shared_member_once(pool):
    assert ids(pool[:2] + pool[1:4]) == ["m-0", "m-1", "m-2", "m-3"]


def test_two_members_of_one_name_are_refused(pool, tmp_path):
    write_member(tmp_path / "m-0", seed=9)
    with pytest.raises(ValueError, match="two members called 'm-0'"):
        pool + ModelPool.from_dir(tmp_path)


def test_same_architecture_looks_at_what_shapes_the_weights(pool, tmp_path):
    assert pool.same_architecture()
    write_member(tmp_path / "other", num_classes=2, label_names=["x", "y"], dfml={})
    assert not (pool + ModelPool.from_dir(tmp_path)).same_architecture()


def test_open_takes_folders_lists_and_one_member(members, tmp_path):
    write_member(tmp_path / "more" / "n-0")
    assert len(ModelPool.open(members)) == 5
    assert ids(ModelPool.open(f"{members / 'm-1'}, {tmp_path / 'more'}")) == ["m-1", "n-0"]
    assert ids(ModelPool.open([str(members / "m-2"), str(members / "m-0")])) == ["m-2", "m-0"]


def test_a_folder_that_is_not_there_or_holds_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ModelPool.open(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="holds no pool member"):
        ModelPool.open(tmp_path)


def test_unfinished_and_foreign_folders_are_not_members(members, tmp_path):
    write_member(tmp_path / "pool" / "a")
    write_member(tmp_path / "pool" / ".b.partial")
    (tmp_path / "pool" / "logs").mkdir()
    assert ids(ModelPool.from_dir(tmp_path / "pool")) == ["a"]


def test_real_pool_loads_in_milliseconds_and_is_what_it_says(shared_dir):
    pool = ModelPool.from_dir(shared_dir / "pools" / "cifar-fs-conv4")
    assert len(pool) == 100 and pool.same_architecture()
    assert all(entry.problem is None for entry in pool)
    assert sum(entry.val_accuracy for entry in pool) / 100 == pytest.approx(0.848, abs=0.001)
    teacher = pool.load(0)
    assert sum(parameter.numel() for parameter in teacher.parameters()) == 29_541
    assert teacher(torch.rand(2, 3, 84, 84)).shape == (2, 5)
