"""Work divided among threads: what comes back, what each thread owns, what it inherits."""

import threading

import pytest
import torch

from hf_dfml.utils.threads import thread_map


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_results_are_in_the_order_of_the_items(two_threads):
    late = threading.Event()

    def square(item):
        # The first item is done last.
        assert late.wait(10) if item == 0 else not late.set()
        return item**2

    assert thread_map(lambda: square, range(5)) == [0, 1, 4, 9, 16]
    assert torch.get_num_threads() == 2


def test_each_thread_has_a_function_of_its_own(two_threads):
    busy: list[object] = []
    meeting = threading.Barrier(2)

    def make():
        own = object()

        def work(_):
            meeting.wait(10)  # Both are at work at once.
            busy.append(own)
            return torch.get_num_threads()

        return work

    assert thread_map(make, range(2)) == [1, 1]
    assert busy[0] is not busy[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_gradient_and_autocast_modes_are_the_callers(threads):
    torch.set_num_threads(threads)
    try:

        def modes(_):
            return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()

        assert thread_map(lambda: modes, range(2)) == [(True, False, True)] * 2
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            assert thread_map(lambda: modes, range(2)) == [(False, True, False)] * 2
    finally:
        torch.set_num_threads(1)


def test_an_error_reaches_the_caller(two_threads):
    with pytest.raises(ZeroDivisionError):
        thread_map(lambda: lambda item: 1 // item, [2, 1, 0, 3])
    assert torch.get_num_threads() == 2
