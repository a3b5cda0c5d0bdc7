"""Agreement of two maps: the one found in a picture, and the true one that the picture was to
follow. 1 is perfect."""

import numpy as np
import torch
import torch.nn.functional as F


def near(pixels: int, size: tuple[int, int]) -> int:
    """A distance in pixels, given for a short side of 64, scaled to a picture of this size."""
    return max(1, round(pixels * min(size) / 64))


def f1(found: np.ndarray, truth: np.ndarray, within: int) -> float:
    """The F1 score of found lines (bool [H, W]): the harmonic mean of precision and recall. A pixel
    of one map is matched if the other has a line within `within` pixels along either axis."""

    def around(lines: np.ndarray) -> np.ndarray:
        grown = torch.from_numpy(lines)[None].float()
        # One axis, then the other: this gives the same maxima and is fast for large distances.
        grown = F.max_pool2d(grown, (2 * within + 1, 1), 1, (within, 0))
        return F.max_pool2d(grown, (1, 2 * within + 1), 1, (0, within))[0].numpy() > 0

    if not found.any() or not truth.any():
        return float(found.any() == truth.any())
    precision, recall = around(truth)[found].mean(), around(found)[truth].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two maps [H, W]; 0 if one of them is constant."""
    if min(a.std(), b.std()) < 1e-6:
        return 0.0
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def mean_overlap(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of labels (integers [H, W]), averaged over the true labels."""
    overlaps = []
    for label in np.unique(truth):
        either = (truth == label) | (found == label)
        overlaps.append(((truth == label) & (found == label)).sum() / either.sum())
    return float(np.mean(overlaps))


def share_of_normals(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of n pixels whose found normal is within 22.5 degrees of the true one. Both are
    [3, n], with -1..1 stored as 0..1."""
    a, b = (x * 2 - 1 for x in (truth, found))
    cosine = (a * b).sum(axis=0) / (np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0) + 1e-6)
    return float((cosine > np.cos(np.pi / 8)).mean())
