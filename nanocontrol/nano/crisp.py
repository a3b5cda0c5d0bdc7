"""`crisp`: the distance of generated pictures from true ones, relative to that of the VAE's
reconstructions. 1 is the best that the VAE allows.

FD is the Fréchet distance of two sets of pictures, as in FID (Heusel et al. 2017), but on the
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
    """The number, and the distances from B that it is computed from, with A's as a reference.

    The arguments are four sets of pictures, each [n, 3, H, W] in [-1, 1].
    """
    far = features_of(detector, b)
    sets = {"generated": made, "rebuilt": rebuilt, "true": a}
    distances = {
        name: frechet_distance(features_of(detector, some), far) for name, some in sets.items()
    }
    return {"crisp": distances["generated"] / distances["rebuilt"], "distances": distances}


@torch.no_grad()
def features_of(detector: Detector, images: Tensor) -> np.ndarray:
    """Pictures [n, 3, H, W] in [-1, 1] -> features [n, 96]: see `Detector.features`."""
    return torch.cat([detector.features(part) for part in images.split(50)]).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two sets of features [n, d], each modelled as a normal distribution
    N(m, C): |m_a - m_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)). Equal sets have 0."""
    apart = a.mean(axis=0) - b.mean(axis=0)
    c_a, c_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = root_of(c_a)
    # root C_b root is symmetric and has the eigenvalues of C_a C_b.
    common = np.trace(root_of(root @ c_b @ root))
    return float(apart @ apart + np.trace(c_a) + np.trace(c_b) - 2 * common)


def root_of(matrix: np.ndarray) -> np.ndarray:
    """The square root of a symmetric matrix whose eigenvalues are not negative. Rounding errors
    below 0 are set to 0."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
