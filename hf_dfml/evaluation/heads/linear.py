"""Logistic regression on features."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_dfml.evaluation.heads.features import FeatureHead


class Linear(FeatureHead):
    """Logistic regression on features; scikit-learn takes one support set at a time."""

    name = "linear"
    help = "logistic regression on features"
    vectorises = False

    @staticmethod
    def classifier(features: Tensor, labels: Tensor, ways: int) -> tuple[Tensor, Tensor]:
        """See `logistic_regression`."""
        return logistic_regression(features, labels)


def logistic_regression(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `(N, D)` and biases `(N,)` of scikit-learn's `LogisticRegression` (C = 1) on features `(S, D)`."""
    from sklearn.linear_model import LogisticRegression

    basis = None
    if features.shape[0] < features.shape[1]:
        # The ridge penalty is the same in any orthonormal basis and the solution lies in the span of the support
        # features, so that S coordinates stand for D exactly.
        basis, coordinates = torch.linalg.qr(features.T.double())
        inputs = coordinates.T
    else:
        inputs = features.double()
    model = LogisticRegression(max_iter=1000).fit(inputs.cpu().numpy(), labels.cpu().numpy())
    weight = torch.from_numpy(model.coef_).to(inputs)
    bias = torch.from_numpy(model.intercept_).to(inputs)
    if len(weight) == 1:
        # Two classes have one logit, that of the second class against the first.
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    if basis is not None:
        weight = weight @ basis.T
    return weight.to(features.dtype), bias.to(features.dtype)
