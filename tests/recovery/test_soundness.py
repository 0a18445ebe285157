"""Members that are worth nothing are found by what they answer to images that show nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_dfml.cli import main
from hf_dfml.pool import ModelPool
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.recovery.soundness import doubtful_members, reasons, unsound_members
from tests.methods.pools import make_pool

NAMES = [f"class-{index}" for index in range(8)]
MEMBERS, WAYS, IMAGES = 12, 4, 200


def members(seed: int = 0) -> tuple[list[PoolEntry], list[Tensor]]:
    """Members that see the same eight properties of an image, each with an error of its own."""
    generator = torch.Generator().manual_seed(seed)
    properties = 2 * torch.randn(IMAGES, len(NAMES), generator=generator)
    entries, answers = [], []
    for index in range(MEMBERS):
        own = torch.randperm(len(NAMES), generator=generator)[:WAYS].tolist()
        entries.append(PoolEntry(id=f"m-{index}", num_classes=WAYS, label_names=tuple(NAMES[each] for each in own)))
        answers.append((properties[:, own] + torch.randn(IMAGES, WAYS, generator=generator)).softmax(-1))
    return entries, answers


def found(entries: list[PoolEntry], answers: list[Tensor]) -> dict[int, str]:
    return reasons(entries, answers, [entry.id for entry in entries])


def test_good_members_are_all_kept():
    for seed in range(5):
        assert found(*members(seed)) == {}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda answers: answers.mean(0).expand_as(answers), "answers nearly the same to every image"),
        (lambda answers: answers.log().mul(1e6).softmax(-1), "is certain of every image"),
        (lambda answers: answers.roll(1, 1), "disagrees with the members that know the same classes"),
    ],
)
def test_bad_members_are_found_and_no_other(spoil, said):
    entries, answers = members()
    for index in (3, 7, 8):
        answers[index] = spoil(answers[index])
    spoilt = found(entries, answers)
    assert set(spoilt) == {3, 7, 8} and all(said in reason for reason in spoilt.values())


def little(answers: Tensor) -> Tensor:
    """Answers near their mean, which tell about a tenth."""
    return answers.mean(0) + 0.3 * (answers - answers.mean(0))


def test_little_is_told_by_members_without_a_trace_of_training_only():
    """Members that know characters tell little of procedural images, and random weights not so much less."""
    entries, answers = members()
    for index in (3, 7, 8):
        answers[index] = little(answers[index])
    digests = [entry.id for entry in entries]
    as_made = [index in (2, 3, 7) for index in range(MEMBERS)]  # 2: trained with frozen normalisation, or not at all.
    spoilt = reasons(entries, answers, digests, as_made)
    assert set(spoilt) == {3, 7} and all(reason.startswith("is not trained: its norm") for reason in spoilt.values())
    assert reasons(entries, answers, digests) == {}
    assert reasons(entries, answers, digests, [index < 7 for index in range(MEMBERS)]) == {}, "most are so"


def test_random_weights_in_a_pool_of_weak_members_are_found(tmp_path):
    pool = make_pool(tmp_path, 7)
    for entry in list(pool)[2:]:
        path = entry.location / "model.safetensors"
        weights = load_file(path)
        for name in weights:
            if name.endswith("bn.weight"):
                weights[name] += 0.2  # As training changes them; the answers tell some four times as much then.
        save_file(weights, path)
    found = unsound_members(ModelPool.from_dir(pool[0].location.parent), torch.Generator().manual_seed(0))
    not_trained = [id for id, reason in found.items() if reason.startswith("is not trained: its normalisation")]
    assert not_trained == [pool[0].id, pool[1].id]


def test_a_copy_is_left_out_and_its_original_kept():
    entries, answers = members()
    entries.append(PoolEntry(id="copy", num_classes=WAYS, label_names=entries[4].label_names))
    answers.append(answers[4] + 1e-5)
    assert found(entries, answers) == {MEMBERS: "is a copy of m-4: the same answers"}
    digests = [str(index) for index in range(MEMBERS)] + ["4"]
    assert reasons(entries, answers, digests) == {MEMBERS: "is a copy of m-4: the same weights"}
    # Other names of the same outputs are other classes.
    entries[-1] = PoolEntry(id="copy", num_classes=WAYS, label_names=("a", "b", "c", "d"))
    assert found(entries, answers) == {}


def test_members_that_share_no_class_are_not_compared():
    entries, answers = members()
    alone = [PoolEntry(id=entry.id, num_classes=WAYS) for entry in entries]
    answers[2] = answers[2].roll(1, 1)
    assert found(alone, answers) == {}


def test_members_of_few_classes_in_common_are_not_judged_by_them():
    """Pairs of members share one class: its correlation is chance, and whichever is bad, both would be left out."""
    generator = torch.Generator().manual_seed(0)
    entries, answers = [], []
    for index in range(12):
        names = (f"shared-{index // 2}", *(f"{index}-{each}" for each in range(WAYS - 1)))
        entries.append(PoolEntry(id=f"m-{index}", num_classes=WAYS, label_names=names))
        seen = torch.randn(IMAGES, WAYS, generator=generator)
        seen[:, 0] += 2 * torch.randn(IMAGES, generator=torch.Generator().manual_seed(index // 2))
        answers.append(seen.softmax(-1))
    answers[1] = answers[1].roll(1, 1)
    assert found(entries, answers) == {}


def test_twelve_comparisons_are_too_few():
    """A good member was left out, whose classes ten others saw otherwise."""
    generator = torch.Generator().manual_seed(0)
    entries, answers = [], []
    for index in range(MEMBERS):  # Four members know the same classes.
        names = tuple(f"{index // 4}-{each}" for each in range(WAYS))
        entries.append(PoolEntry(id=f"m-{index}", num_classes=WAYS, label_names=names))
        seen = 2 * torch.randn(IMAGES, WAYS, generator=torch.Generator().manual_seed(index // 4))
        answers.append((seen + torch.randn(IMAGES, WAYS, generator=generator)).softmax(-1))
    answers[1] = answers[1].roll(1, -1)
    assert found(entries, answers) == {}


def test_members_whose_agreement_is_chance_are_not_judged_by_it():
    """Few images, and members that see different things in them: good members were left out of a mixed pool."""
    for seed in range(5):
        entries, answers = members(seed)
        generator = torch.Generator().manual_seed(seed)
        noisy = [answer.log()[:48] + 8 * torch.randn(48, WAYS, generator=generator) for answer in answers]
        assert found(entries, [answer.softmax(-1) for answer in noisy]) == {}


def test_untrained_members_are_kept_where_all_are_but_copies_are_named(tmp_path):
    pool = make_pool(tmp_path, 3)
    first = pool[0].location
    assert unsound_members(pool, torch.Generator().manual_seed(0)) == {}
    shutil.copytree(first, first.parent / "zz-copy")
    again = ModelPool.from_dir(first.parent)
    assert unsound_members(again, torch.Generator().manual_seed(0)) == {
        "zz-copy": f"is a copy of {pool[0].id}: the same weights"
    }


def timm_member(folder: Path, architecture: str, steps: int) -> Path:
    """A small network of timm's after so many training steps."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=3)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    labels = torch.arange(6) % 3
    for _ in range(steps):
        images = torch.rand(6, *network.pretrained_cfg["input_size"]) * labels.view(-1, 1, 1, 1) / 2
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    names = {"label_names": ["ant", "bee", "cow"]}
    timm.models.save_for_hf(network, str(folder), model_config=names, safe_serialization=True)
    return folder


@pytest.mark.parametrize(
    ("architecture", "sign"),
    [
        ("test_resnet", "normalisation layers are as they are before"),
        ("test_vit", "normalisation layers are as they are before"),
        ("test_nfnet", "every image with nearly the same probability"),  # It has no normalisation layer.
    ],
)
def test_members_that_were_never_trained_are_in_doubt(tmp_path, architecture, sign):
    timm_member(tmp_path / "fresh", architecture, 0)
    timm_member(tmp_path / "trained", architecture, 10 if architecture == "test_nfnet" else 1)
    found = doubtful_members(ModelPool.from_dir(tmp_path), torch.Generator().manual_seed(0))
    assert list(found) == ["fresh"] and found["fresh"].startswith("may not be trained: ") and sign in found["fresh"]


def test_trained_members_of_a_real_pool_are_in_no_doubt(shared_dir):
    pool = ModelPool.from_dir(shared_dir / "pools" / "cifar-fs-conv4")[:20]
    assert doubtful_members(pool, torch.Generator().manual_seed(0)) == {}


def test_the_check_names_them_and_passes(tmp_path, capsys):
    timm_member(tmp_path / "fresh", "test_resnet", 0)
    with pytest.raises(SystemExit) as stop:
        main(["pool", "check", str(tmp_path)])
    said = capsys.readouterr().out
    assert not stop.value.code and "in doubt fresh: may not be trained: its normalisation layers" in said
    assert "1 of 1 member can be used." in said
    with pytest.raises(SystemExit):
        main(["pool", "check", str(tmp_path), "--json"])
    (member,) = json.loads(capsys.readouterr().out)["members"]
    assert member["usable"] and member["problem"] is None and member["doubt"].startswith("may not be trained")
