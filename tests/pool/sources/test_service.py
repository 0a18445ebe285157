from __future__ import annotations

import pytest

from hf_dfml.pool import BlackBoxPool, MemberError, ModelPool, open_pool
from hf_dfml.pool.opening import is_service
from tests.pool.black_box.test_service import served
from tests.pool.members import ids, images


def test_a_service_is_opened_by_the_same_function_and_is_no_pool_of_files(members):
    with served(members, output="probs") as url:
        pool = open_pool(url, max_queries=10)
        assert isinstance(pool, BlackBoxPool) and ids(pool) == [f"m-{index}" for index in range(5)]
        pool.load(2)(images())
        assert pool.queries.total == 2 and pool.queries.allowed == 10
        seen = ModelPool.open(url)
        assert ids(seen) == ids(pool)
        with pytest.raises(MemberError, match=r"m-1 is behind a service, .*open_pool"):
            seen.load(1)
        with pytest.raises(ValueError, match="none can be used"):
            seen.usable()
        with pytest.raises(ValueError, match="is a service and other parts"):
            open_pool(f"{url},{members}")
    assert isinstance(open_pool(str(members)), ModelPool)


def test_what_is_a_service_is_known_by_its_name():
    assert is_service("http://127.0.0.1:1,https://host/x") and is_service("endpoints.yaml")
    assert not any(map(is_service, ("org/name", "pools/x", "org", "https://huggingface.co/org/name")))
