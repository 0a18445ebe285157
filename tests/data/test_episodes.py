import dataclasses

import pytest
import torch

from hf_dfml.data import EpisodeSampler, FewShotDataset


def counting_dataset(sizes: list[int]) -> FewShotDataset:
    """Image k of the set holds the number k in every pixel, so an episode shows which images it took."""
    count = sum(sizes)
    return FewShotDataset(
        name="counting",
        split="test",
        images=torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2).contiguous(),
        labels=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        class_names=tuple(f"class{k}" for k in range(len(sizes))),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


SIZES = [7, 30, 12, 9, 20, 8]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_episodes_hold_the_classes_and_images_they_name():
    dataset = counting_dataset(SIZES)
    episodes = EpisodeSampler(dataset, ways=4, shots=2, queries=5).sample(50, seeded())
    assert len(episodes) == 50
    assert episodes.support.shape == (50, 8, 3, 2, 2) and episodes.query.shape == (50, 20, 3, 2, 2)
    assert episodes.support.dtype == torch.float32
    assert episodes.support_labels[7].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert episodes.query_labels[7].tolist() == [way for way in range(4) for _ in range(5)]
    support = (episodes.support[:, :, 0, 0, 0] * 255).round().long()
    query = (episodes.query[:, :, 0, 0, 0] * 255).round().long()
    for episode in range(50):
        names = episodes.class_names[episode]
        assert len(set(names)) == 4
        for images, labels in ((support, episodes.support_labels), (query, episodes.query_labels)):
            taken = [dataset.class_names[k] for k in dataset.labels[images[episode]].tolist()]
            assert taken == [names[way] for way in labels[episode].tolist()]
        used = support[episode].tolist() + query[episode].tolist()
        assert len(used) == len(set(used)), "an image is used twice in an episode"


def test_indices_and_images_are_the_same_episodes():
    dataset = counting_dataset(SIZES)
    sampler = EpisodeSampler(dataset, ways=3, shots=1, queries=4)
    support_rows, query_rows = sampler.sample_indices(9, seeded(3))
    episodes = sampler.sample(9, seeded(3))
    assert torch.equal(dataset.images[support_rows].float() / 255, episodes.support)
    assert torch.equal(dataset.images[query_rows].float() / 255, episodes.query)


def test_chunks_of_episodes_are_the_episodes_drawn_at_once():
    sampler = EpisodeSampler(counting_dataset(SIZES), ways=5, shots=1, queries=6)
    whole = sampler.sample_indices(12, seeded(1))
    generator = seeded(1)
    chunks = [sampler.sample_indices(size, generator) for size in (1, 4, 7)]
    assert torch.equal(whole[0], torch.cat([support for support, _ in chunks]))
    assert torch.equal(whole[1], torch.cat([query for _, query in chunks]))
    assert not torch.equal(whole[0], sampler.sample_indices(12, seeded(2))[0])


def test_the_episodes_of_a_seed_never_change():
    # Results of different versions are compared on the same episodes, so the stream is part of the interface.
    support, query = EpisodeSampler(counting_dataset(SIZES), ways=3, shots=1, queries=2).sample_indices(2, seeded())
    assert support.tolist() == [[40, 78, 51], [3, 74, 47]]
    assert query.tolist() == [[42, 38, 81, 82, 50, 55], [6, 0, 72, 61, 41, 43]]


def test_sampling_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    EpisodeSampler(counting_dataset(SIZES), ways=3, shots=1, queries=2).sample(3, seeded())
    assert torch.equal(state, torch.get_rng_state())


def test_classes_and_images_are_drawn_uniformly():
    sampler = EpisodeSampler(counting_dataset([4, 4, 4, 4]), ways=2, shots=1, queries=1)
    rows = torch.cat(sampler.sample_indices(4000, seeded()), dim=1).flatten()
    share = torch.bincount(rows, minlength=16) / len(rows)
    # Each image is in an episode with probability 1/4, so its share has a deviation of about 0.0015.
    assert (share - 1 / 16).abs().max() < 0.008


def test_classes_with_just_enough_images_and_no_queries_work():
    sampler = EpisodeSampler(counting_dataset([3, 3]), ways=2, shots=3, queries=0)
    support, query = sampler.sample_indices(1, seeded())
    assert sorted(support[0].tolist()) == list(range(6)) and query.shape == (1, 0)


def test_too_few_images_names_the_set_and_the_class():
    with pytest.raises(ValueError, match=r"'counting' \(test\): class 'class0' has 7 images, but 5 shots and 15 quer"):
        EpisodeSampler(counting_dataset(SIZES), ways=5, shots=5, queries=15)


def test_a_class_without_any_image_is_too_small():
    dataset = dataclasses.replace(counting_dataset([5, 5, 5]), class_names=("class0", "class1", "class2", "empty"))
    with pytest.raises(ValueError, match="class 'empty' has 0 images"):
        EpisodeSampler(dataset, ways=3, shots=1, queries=1)


def test_too_few_classes_names_the_set():
    with pytest.raises(ValueError, match=r"'counting' \(test\) has 6 classes: 7-way episodes need 7 or more"):
        EpisodeSampler(counting_dataset(SIZES), ways=7)


@pytest.mark.parametrize("numbers", [{"ways": 0}, {"shots": 0}, {"queries": -1}])
def test_numbers_that_make_no_episode_are_refused(numbers):
    with pytest.raises(ValueError, match="An episode needs at least"):
        EpisodeSampler(counting_dataset(SIZES), **{"ways": 2, "shots": 1, "queries": 1, **numbers})
