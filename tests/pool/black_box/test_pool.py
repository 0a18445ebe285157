"""Black boxes: what crosses and what does not, what answers are worth to a loss, counting, budgets."""

import gc

import pytest
import torch
from torch import nn

from hf_dfml.pool import BlackBoxPool, ModelPool, QueryBudgetError
from hf_dfml.pool.black_box.pool import SMOOTHING, to_answers, to_logits
from hf_dfml.pool.queries import QueryCount

OUTPUTS = ("logits", "probs", "topk", "label")


@pytest.fixture
def pool(members):
    return ModelPool.from_dir(members)


def pictures(count=4, size=16, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("output", OUTPUTS)
def test_answers_are_those_of_the_member(pool, output):
    boxes = pool.as_black_box(output, top_k=2)
    for index in range(len(pool)):
        images = pictures(seed=index)
        with torch.no_grad():
            logits = pool.load(index)(images)
        answers, p = boxes.load(index)(images), logits.softmax(1)
        if output == "logits":
            torch.testing.assert_close(answers, logits)
            continue
        torch.testing.assert_close(answers.exp().sum(1), torch.ones(4))
        if output == "label":
            assert (answers.argmax(1) == logits.argmax(1)).all()
        else:
            # Of three classes two are told, so what is missing is the third.
            torch.testing.assert_close(answers.exp(), p, rtol=1e-4, atol=1e-6)


def test_losses_from_probabilities_are_losses_from_logits():
    logits = 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    told_of = to_logits(to_answers(logits, "probs", 1), "probs")
    expected = nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(nn.functional.cross_entropy(told_of, labels, reduction="none"), expected)


def test_the_mass_that_top_k_leaves_out_is_spread_and_a_label_is_smoothed():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.05, 0.25]]).log()
    answers = to_answers(logits, "topk", 2)
    torch.testing.assert_close(answers, torch.tensor([[0.0, 0.4, 0.0, 0.0, 0.25]]))
    shared = 0.35 / 3
    torch.testing.assert_close(to_logits(answers, "topk").exp(), torch.tensor([[shared, 0.4, shared, shared, 0.25]]))
    assert to_answers(logits, "label", 2).tolist() == [[0, 1, 0, 0, 0]]
    rest = SMOOTHING / 5
    torch.testing.assert_close(
        to_logits(to_answers(logits, "label", 2), "label").exp(),
        torch.tensor([[rest, 1 - 4 * rest, rest, rest, rest]]),
    )
    # More classes than there are: everything is told, and nothing is divided by zero.
    torch.testing.assert_close(to_logits(to_answers(logits, "topk", 9), "topk"), logits)


def test_an_impossible_class_has_a_finite_loss():
    sure = torch.tensor([[500.0, 0.0, 0.0]])
    for output in OUTPUTS:
        assert to_logits(to_answers(sure, output, 1), output).isfinite().all()


@pytest.mark.parametrize("output", OUTPUTS)
def test_no_graph_crosses_even_where_images_require_one(pool, output):
    images = pictures().requires_grad_()
    with torch.enable_grad():
        answers = pool.as_black_box(output).load(0)(images)
    assert not answers.requires_grad and answers.grad_fn is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        answers.sum().backward()
    assert images.grad is None


def test_neither_weights_nor_statistics_nor_features_can_be_reached(pool):
    boxes = pool.as_black_box()
    box = boxes.load(0)
    box(pictures())
    for name in ("network", "features", "parameters", "modules", "state_dict", "mean", "train", "buffers"):
        with pytest.raises(AttributeError, match=f"m-0 is a black box.*no '{name}'"):
            getattr(box, name)
    entry = box.entry
    assert (entry.id, entry.class_names, entry.num_classes) == ("m-0", ("cat", "dog", "fox"), 3)
    assert entry.location is None and entry.val_accuracy is None and entry.dataset is None and not entry.model_args
    assert entry.mean != pool[0].mean and entry.architecture == "black box"
    # What hangs on the object itself: no module and no tensor.
    held = [getattr(box, name) for name in type(box).__slots__]
    assert not any(isinstance(thing, nn.Module | torch.Tensor | ModelPool) for thing in held)
    assert not any(isinstance(thing, nn.Module | torch.Tensor | ModelPool) for thing in vars(boxes).values())
    assert not any(isinstance(thing, nn.Module) for thing in gc.get_referents(box))


def test_every_image_is_counted_for_its_member_and_in_total(pool):
    boxes = pool.as_black_box(max_queries=30)
    boxes.load(0)(pictures(5))
    boxes.load("m-3")(pictures(7))
    boxes[3:].load(0)(pictures(2))  # A part of the pool spends from the same budget.
    boxes.to("cpu").load(pool[0])(pictures(1))
    assert boxes.queries.members == {"m-0": 6, "m-3": 9} and boxes.queries.total == 15


def test_over_budget_nothing_is_sent_and_the_numbers_are_named(pool, monkeypatch):
    boxes = pool.as_black_box(max_queries=10)
    boxes.load(0)(pictures(8))
    sent = []
    monkeypatch.setattr(ModelPool, "load", lambda self, member: sent.append(member))
    with pytest.raises(
        QueryBudgetError, match="budget of 10 .*: 8 images were sent and 3 more.*--max_queries"
    ) as error:
        boxes.load(1)(pictures(3))
    assert (error.value.spent, error.value.asked, error.value.allowed) == (8, 3, 10)
    assert not sent and boxes.queries.total == 8
    monkeypatch.undo()
    boxes.load(1)(pictures(2))  # To the last image.
    assert boxes.queries.total == 10


def test_the_count_is_restored_and_never_falls():
    count, later = QueryCount(10), QueryCount(20)
    count.spend("a", 6)
    count.spend("b", 1)
    later.spend("b", 3)
    later.load_state_dict(count.state_dict())
    assert later.members == {"a": 6, "b": 3} and later.allowed == 20


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"output": "features"}, "one of logits, probs, topk, label"),
        ({"output": "topk", "top_k": 0}, "^top_k=0: expected at least 1"),
        ({"max_queries": -1}, "^max_queries=-1: expected 0 or more"),
    ],
)
def test_mistakes_are_named(pool, wrong, message):
    with pytest.raises(ValueError, match=message):
        pool.as_black_box(**wrong)


def test_a_member_that_is_not_there(pool):
    boxes = pool.as_black_box()
    assert isinstance(boxes[:2], BlackBoxPool) and len(boxes[:2]) == 2 and boxes[1].id == "m-1"
    with pytest.raises(KeyError, match="no member 'x' among its 5"):
        boxes.load("x")


def test_bare_labels_are_compared_over_longer_differences(pool):
    assert pool.as_black_box("label").resolution > 0 == pool.as_black_box("probs").resolution
