"""What frozen features tell of classes: weighted kNN and a ridge classifier, both in float64.

kNN as DINO's (Caron et al. 2021, section 4.1): the nearest by cosine similarity s vote with
exp(s / 0.07). The linear probe is ridge regression of the classes' indicators on standardised
features, every class weighing the same: a closed form, so there is nothing to tune and nothing
drawn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

TEMPERATURE = 0.07
AT_ONCE = 1024
"""Rows whose similarities are held at once."""


@dataclass(frozen=True)
class Features:
    """Features (n, width) with their classes (n,), numbered from 0; float64 and int64."""

    values: Tensor
    classes: Tensor

    @property
    def is_finite(self) -> bool:
        """Whether every feature is a number."""
        return bool(self.values.isfinite().all())


def knn_classes(train: Features, asked: Tensor, neighbours: int, n_classes: int) -> Tensor:
    """Class (m,) that the neighbours of each row of `asked` (m, width) vote for."""
    neighbours = min(neighbours, len(train.values))
    known = torch.nn.functional.normalize(train.values)
    found = []
    for rows in torch.nn.functional.normalize(asked).split(AT_ONCE):
        similar, nearest = (rows @ known.T).topk(neighbours)
        votes = rows.new_zeros(len(rows), n_classes)
        votes.scatter_add_(1, train.classes[nearest], (similar / TEMPERATURE).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)


def linear_classes(train: Features, asked: Tensor, ridge: float, n_classes: int) -> Tensor:
    """Class (m,) that the linear probe gives each row of `asked` (m, width).

    It minimises sum_i w_i |y_i - b - x_i B|^2 + ridge * n * |B|^2, where w_i are inverse to the
    size of i's class and sum to n.
    """
    n, wanted = len(train.values), torch.nn.functional.one_hot(train.classes, n_classes).double()
    counts = wanted.sum(0)
    weight = (n / counts.gt(0).sum() / counts)[train.classes][:, None]
    mean = train.values.mean(0)
    spread = train.values.std(0, unbiased=False)
    spread = torch.where(spread > 0, spread, 1.0)
    x, x_asked = (train.values - mean) / spread, (asked - mean) / spread
    x_mean, y_mean = (weight * x).sum(0) / n, (weight * wanted).sum(0) / n
    x, y = x - x_mean, wanted - y_mean
    gram = x.T @ (weight * x) + ridge * n * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    slopes = torch.cholesky_solve(x.T @ (weight * y), torch.linalg.cholesky(gram))
    outputs = (x_asked - x_mean) @ slopes + y_mean
    # A class that nothing was learned of is never given.
    return outputs.masked_fill(counts == 0, -torch.inf).argmax(1)


def balanced_accuracy(found: Tensor, truth: Tensor) -> float:
    """The mean over the classes in `truth` of the share of each that was found."""
    right = (found == truth).double()
    return float(torch.stack([right[truth == k].mean() for k in truth.unique()]).mean())


def accuracy(found: Tensor, truth: Tensor) -> float:
    """The share that was found."""
    return float((found == truth).double().mean())
