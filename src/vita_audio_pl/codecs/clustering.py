"""A codebook for points: the nearest centroid, and k-means, which finds the centroids."""

import torch
from torch import Tensor


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Number of the centroid nearest to each of `points: (n, size)`."""
    half_norms = centroids.square().sum(dim=1) / 2
    return torch.cat([(half_norms - part @ centroids.T).argmin(dim=1) for part in points.split(8192)])


def k_means(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20, most: int = 40_000) -> Tensor:
    """Centroids of `points: (n, size)` by Lloyd's rounds from a k-means++ start: `(count, size)`."""
    points = points[torch.randperm(len(points), generator=generator)[:most]]
    centroids = points[torch.randint(len(points), (1,), generator=generator)]
    distances = (points - centroids[0]).square().sum(dim=1)
    norms = points.square().sum(dim=1)
    for _ in range(count - 1):
        chosen = points[torch.multinomial(distances + 1e-12, 1, generator=generator)]
        centroids = torch.cat([centroids, chosen])
        distances = torch.minimum(distances, (norms - 2 * (points @ chosen[0]) + chosen.square().sum()).clamp(min=0))
    for _ in range(rounds):
        owners = nearest(points, centroids)
        sizes = torch.bincount(owners, minlength=count)
        sums = torch.zeros_like(centroids).index_add_(0, owners, points)
        lost = sizes == 0
        centroids = sums / sizes.clamp(min=1)[:, None]
        if lost.any():  # an empty cluster starts again at a random point
            fresh = torch.randint(len(points), (int(lost.sum()),), generator=generator)
            centroids[lost] = points[fresh]
    return centroids
