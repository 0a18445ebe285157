"""The plateau switch on scripted accuracies."""

import pytest

from hf_dfml.learning.curriculum import PlateauSwitch


def fired(switch, accuracies, first=0):
    on = []
    for step, accuracy in enumerate(accuracies, first):
        if switch.take(step):
            on.append(step)
        switch.observe(step, accuracy)
    return on


def test_six_steps_without_improvement_fire_it_and_begin_a_new_phase():
    # Step 3 is the phase's best; 4 to 9 do not improve on it, whether they rise or fall between themselves.
    accuracies = [0.2, 0.3, 0.4, 0.5, 0.1, 0.4, 0.45, 0.5, 0.2, 0.3]
    # The next phase has no best yet: 0.1 is an improvement, and six equal steps after it fire again.
    accuracies += [0.1] + [0.1] * 6 + [0.9]
    assert fired(PlateauSwitch(patience=6), accuracies) == [0, 10, 17]


def test_an_improvement_starts_the_count_again():
    flat = [0.5] + [0.5] * 5 + [0.51] + [0.5] * 5
    assert fired(PlateauSwitch(patience=6), flat + [0.6] * 5) == [0]
    assert fired(PlateauSwitch(patience=6), flat + [0.5] * 2) == [0, 13]


def test_nothing_before_the_warm_up_whose_end_fires_it_once():
    # A best of the warm-up does not count afterwards, or 0.2 would never be an improvement.
    accuracies = [0.9] * 8 + [0.2, 0.3, 0.3, 0.3, 0.3]
    assert fired(PlateauSwitch(patience=2, warm_up=8), accuracies) == [8, 12]


def test_a_phase_ends_after_its_longest_time_at_the_latest():
    rising = [step / 100 for step in range(12)]
    assert fired(PlateauSwitch(patience=6, longest=5), rising) == [0, 5, 10]
    assert fired(PlateauSwitch(patience=6), rising) == [0]


@pytest.mark.parametrize("stop", range(9))
def test_a_resumed_switch_fires_at_the_same_steps(stop):
    accuracies = [0.3, 0.2, 0.4, 0.4, 0.4, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5]
    whole = PlateauSwitch(patience=2, warm_up=1)
    first = PlateauSwitch(patience=2, warm_up=1)
    begun = fired(first, accuracies[:stop])
    second = PlateauSwitch(patience=2, warm_up=1)
    second.load_state_dict(first.state_dict())
    assert begun + fired(second, accuracies[stop:], first=stop) == fired(whole, accuracies) == [1, 5, 8]


def test_a_patience_of_nothing_is_refused():
    with pytest.raises(ValueError, match="patience of at least 1"):
        PlateauSwitch(patience=0)
