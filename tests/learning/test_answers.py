"""The loss of many teachers against a plain loop over them, tied rows, gradients."""

import pytest
import torch
import torch.nn.functional as F

from hf_dfml.learning.answers import AnswerHeads, answer_loss, by_member, probabilities, softened

NAMES = [("cat", "dog", "emu"), ("dog", "yak"), ("cat", "emu", "yak", "dog")]
EQUAL = [("cat", "dog"), ("dog", "yak"), ("emu", "cat")]


def heads_of(names, kind="member", scale=4.0) -> AnswerHeads:
    return AnswerHeads(6, names, kind, scale, torch.Generator().manual_seed(1))


def answers_of(names, count=7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.cat([torch.randn(count, len(each), generator=generator).softmax(-1) for each in names], -1)


@pytest.mark.parametrize("names", [NAMES, EQUAL], ids=["sizes differ", "sizes are equal"])
def test_the_loss_is_the_mean_over_members_of_the_divergence_of_each(names):
    heads, answers = heads_of(names), answers_of(names)
    features = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    wanted, begin = 0.0, 0
    for each in names:
        rows = heads.rows[begin : begin + len(each)]
        logits = 4.0 * F.cosine_similarity(features[:, None], rows[None], dim=-1)
        theirs = answers[:, begin : begin + len(each)]
        wanted += F.kl_div(logits.log_softmax(-1), theirs, reduction="batchmean") / len(names)
        begin += len(each)
    torch.testing.assert_close(answer_loss(heads(features), answers, heads.sizes), wanted)


@pytest.mark.parametrize("names", [NAMES, EQUAL], ids=["sizes differ", "sizes are equal"])
def test_the_loss_is_zero_only_where_all_heads_answer_as_their_members(names):
    sizes, answers = [len(each) for each in names], answers_of(names)
    assert answer_loss(answers.log() + 3, answers, sizes).abs() < 1e-6
    torch.testing.assert_close(probabilities(answers.log() + 3, sizes), answers)
    assert answer_loss(answers.log().roll(1, 0), answers, sizes) > 0.1


@pytest.mark.parametrize("names", [NAMES, EQUAL], ids=["sizes differ", "sizes are equal"])
def test_softened_answers_are_those_of_divided_logits(names):
    sizes, answers = [len(each) for each in names], answers_of(names)
    torch.testing.assert_close(softened(answers, sizes, 3.0), probabilities(answers.log() / 3, sizes))
    assert softened(answers, sizes, 1.0) is answers


@pytest.mark.parametrize("kind", ["member", "name"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_gradients_are_those_of_finite_differences(kind, one_hot):
    heads, answers = heads_of(NAMES, kind).double(), answers_of(NAMES).double()
    if one_hot:
        labels = [part.argmax(-1) for part in answers.split(heads.sizes, -1)]
        answers = torch.cat([F.one_hot(each, n) for each, n in zip(labels, heads.sizes, strict=True)], -1).double()
    features = torch.randn(7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.double, requires_grad=True)

    def loss(features, rows):
        return answer_loss(torch.func.functional_call(heads, {"rows": rows}, features), answers, heads.sizes)

    assert torch.autograd.gradcheck(loss, (features, heads.rows.detach().requires_grad_()))


def test_heads_tied_by_name_are_restrictions_of_one_softmax_over_all_names():
    heads = heads_of(NAMES, "name")
    assert heads.rows.shape == (4, 6) and heads_of(NAMES).rows.shape == (9, 6)
    features = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    everything = (4.0 * F.normalize(features, dim=-1) @ F.normalize(heads.rows, dim=-1).T).softmax(-1)
    order = ["cat", "dog", "emu", "yak"]
    answers = probabilities(heads(features), heads.sizes).split(heads.sizes, -1)
    for names, ours in zip(NAMES, answers, strict=True):
        part = everything[:, [order.index(name) for name in names]]
        torch.testing.assert_close(ours, part / part.sum(-1, keepdim=True))


def test_members_of_few_classes_are_filled_up():
    assert by_member(torch.arange(5.0), [2, 3], -1.0).tolist() == [[0, 1, -1], [2, 3, 4]]
