"""`crisp`: how far generated pictures are from true ones, measured by what the detector sees in
them, where the best that the VAE could do is 1.

FD is the Fréchet distance of two sets of pictures: as FID (Heusel et al. 2017), but of the
detector's features. A and B are the true pictures of 1,000 scenes each:

    crisp = FD(generated for A's prompts without control, B) / FD(reconstructions of A, B)
"""

import numpy as np
import torch
from torch import Tensor

from nanocontrol.nano.detector import Detector

SCENES = 1000  # in each set
FIRST_OF_A, FIRST_OF_B = 1_001_000, 1_002_000  # their seeds begin here


def crisp(detector: Detector, made: Tensor, rebuilt: Tensor, a: Tensor, b: Tensor) -> dict:
    """Four sets of pictures, each [n, 3, H, W] in [-1, 1] -> the number, and the distances from B
    that it is made of, with the one of A beside them."""
    far = features_of(detector, b)
    sets = {"generated": made, "rebuilt": rebuilt, "true": a}
    distances = {
        name: frechet_distance(features_of(detector, some), far) for name, some in sets.items()
    }
    return {"crisp": distances["generated"] / distances["rebuilt"], "distances": distances}


@torch.no_grad()
def features_of(detector: Detector, images: Tensor) -> np.ndarray:
    """[n, 3, H, W] in [-1, 1] -> [n, 96], of the detector's middle: what it tells kinds from."""
    return torch.cat([detector.features(part) for part in images.split(50)]).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets of features [n, d], each taken for a normal distribution N(m, C):
    |m_a - m_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)). 0 for equal sets."""
    apart = a.mean(axis=0) - b.mean(axis=0)
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = root_of(c_a)
    # root C_b root is symmetric and has the eigenvalues of C_a C_b.
    common = np.trace(root_of(root @ c_b @ root))
    return float(apart @ apart + np.trace(c_a) + np.trace(c_b) - 2 * common)


def root_of(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix without negative eigenvalues (but for rounding)."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
