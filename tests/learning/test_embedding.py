"""The Fisher embedding: per-sample gradients of the feature extractor, averaged over filters."""

import json

import pytest
import torch
import torch.nn.functional as F
import transformers

from hf_dfml.learning import embedding
from hf_dfml.learning.embedding import fisher_embedding
from hf_dfml.learning.probe import load_probe
from hf_dfml.networks import create_network
from hf_dfml.pool import ModelPool
from hf_dfml.pool.entry import PoolEntry
from hf_dfml.pool.teacher import Teacher


def make_probe():
    entry = PoolEntry(
        id="probe", architecture="conv4", num_classes=3, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.3,) * 3
    )
    generator = torch.Generator().manual_seed(0)
    return Teacher(entry, create_network("conv4", num_classes=3, image_size=16, width=4, generator=generator))


def test_it_is_the_mean_square_of_per_sample_gradients(monkeypatch):
    """With a given head and given labels, against a loop over single images."""
    probe, images = make_probe(), torch.rand(5, 3, 16, 16)
    weight, bias = torch.randn(3, 4), torch.zeros(3)
    monkeypatch.setattr(embedding, "_fit_head", lambda *_: (weight, bias))
    labels = torch.tensor([0, 1, 2, 0, 1])
    monkeypatch.setattr(torch, "multinomial", lambda *_, **__: labels[:, None])
    found = fisher_embedding(probe, images, labels, torch.Generator().manual_seed(0), chunk_size=2)

    convs = [block.conv.weight.requires_grad_() for block in probe.network.blocks]
    expected = [torch.zeros(4) for _ in convs]
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(F.linear(probe.features(image[None]), weight, bias), label[None])
        for total, gradient in zip(expected, torch.autograd.grad(loss, convs), strict=True):
            total += gradient.flatten(1).square().mean(1) / len(images)
    assert found.shape == (16,)
    assert torch.allclose(found, torch.cat(expected), rtol=1e-4, atol=1e-9)


def test_embeddings_of_the_same_task_agree_more_than_those_of_unlike_tasks():
    probe, labels = make_probe(), torch.arange(3).repeat_interleave(10)
    generator = torch.Generator().manual_seed(1)

    def task(offset):
        stripes = torch.zeros(30, 3, 16, 16)
        for index, label in enumerate(labels):
            axis = -1 if offset else -2
            stripes[index] = torch.sin(torch.arange(16) * (1 + label)).view(*((1, 16) if axis == -1 else (16, 1)))
        return (0.5 + 0.3 * stripes + 0.05 * torch.randn(stripes.shape, generator=generator)).clamp(0, 1)

    embeddings = [fisher_embedding(probe, task(offset), labels, generator) for offset in (0, 0, 1)]
    distance = embedding.dissimilarities(torch.stack(embeddings))
    assert distance[0, 1] < distance[0, 2] and distance[0, 1] < distance[1, 2]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_member_of_transformers_serves_as_probe(kind, tmp_path):
    """One number for each row of every weight but the classifier's."""
    configs = {
        "vit": transformers.ViTConfig(
            image_size=32, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        ),
        "resnet": transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic"),
    }
    config = configs[kind]
    config.id2label = dict(enumerate("abc"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.AutoModelForImageClassification.from_config(config)
    network.save_pretrained(tmp_path / kind)
    preprocessor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    pool = ModelPool.from_dir(tmp_path)
    probe = load_probe(kind, pool)
    body = [value for name, value in network.named_parameters() if value.dim() >= 2 and "classifier" not in name]
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = fisher_embedding(probe, images, torch.arange(6) % 3, torch.Generator().manual_seed(0))
    assert found.shape == (sum(len(value) for value in body),)
    assert (found >= 0).all() and found.isfinite().all() and found.sum() > 0
