"""Scores of how well a picture follows its condition. The condition is extracted from the picture
and compared with the true one. 1 is perfect, and a picture without control has the score of chance.
follows.py scores whole objects instead.

| condition          | extracted by | score, a mean over pictures                                 |
|--------------------|--------------|-------------------------------------------------------------|
| canny              | canny.py     | F1 of edges, within 1 pixel                                 |
| hough, cartoon     | the detector | F1 of lines, within 1 pixel                                 |
| scribble           | the detector | F1 of the outlines of found objects, within 2 pixels        |
| soft, depth        | the detector | correlation of the two maps                                 |
| pose               | the detector | share of joints that are found within 3 pixels              |
| segmentation       | the detector | intersection over union, mean over the scene's kinds,       |
|                    |              | including the wall                                          |
| normals            | the detector | share of the objects' pixels within 22.5 degrees            |

Distances are in pixels of a picture of 64 and grow in proportion at other sizes. Pictures are first
resized to the detector's size.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from nanocontrol.nano.conditions import CONDITIONS, canny_edges, outlines_of
from nanocontrol.nano.detector import (
    CARTOON,
    DEPTH,
    HOUGH,
    JOINTS,
    KIND,
    NORMALS,
    SOFT,
    Detector,
    kinds_of,
    load_detector,
)
from nanocontrol.nano.follows import follows
from nanocontrol.nano.model import DETECTOR
from nanocontrol.nano.scenes import Scenes
from nanocontrol.nano.world import Drawing, Scene, draw, joints_of
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import correlation, f1, mean_overlap, near, share_of_normals
from nanocontrol.training.measure import Scores
from nanocontrol.training.pairs import Folder

# How near a line that is found has to be to a true one, in pixels of a picture of 64.
WITHIN = {"canny": 1, "hough": 1, "cartoon": 1, "scribble": 2, "pose": 3}


def scorer(condition: str, scenes: Scenes) -> Scores:
    """A function that scores n pictures against the first n scenes -> numbers by name."""
    detector = load_detector(DETECTOR)

    def scores(images: Tensor) -> dict[str, float | None]:
        followed = [scenes.scene(i) for i in range(len(images))]
        return {
            "score": score(condition, images, followed, detector),
            "follows": follows(condition, images, followed, detector),
        }

    return scores


def edge_scores(pairs: Folder) -> Scores:
    """A function that scores pictures against hints of edges, those of the first pairs. The score
    is the F1 of the pictures' own edges, found with the same thresholds, within 1 pixel if the
    short side has 64."""

    def scores(images: Tensor) -> dict[str, float | None]:
        values = []
        for i, image in enumerate(images):
            found = canny((image + 1) / 2, *pairs.thresholds(pairs.entries[i]))
            edges, truth = (x[0].numpy() > 0.5 for x in (found, pairs.hint(i)))
            values.append(f1(edges, truth, near(WITHIN["canny"], (image.shape[1], image.shape[2]))))
        return {"score": float(np.mean(values))}

    return scores


def score(condition: str, images: Tensor, scenes: list[Scene], detector: Detector) -> float:
    """The mean score of images [B, 3, H, W] in [-1, 1], which were to follow the scenes."""
    images = detector.fitted(images.float())
    found = detector(images)[0].sigmoid().numpy()
    pictures = ((images + 1) / 2).permute(0, 2, 3, 1).numpy()
    drawings = [draw(scene, detector.size) for scene in scenes]
    return float(np.mean([SCORES[condition](*three) for three in zip(pictures, found, drawings)]))


# Each of these takes a picture [size, size, 3] in 0..1, the maps that the detector finds in it
# [27, size, size] in 0..1, and the drawing that it was to follow.


def canny_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    return edges_met(image, drawing, WITHIN["canny"])


def edges_met(image: np.ndarray, drawing: Drawing, within: float) -> float:
    """F1 of a picture's Canny edges against the drawing's, within so many pixels of 64."""
    truth, again = canny_edges(drawing), canny_edges(replace(drawing, image=image))
    return f1(again[..., 0] > 0.5, truth[..., 0] > 0.5, max(1, round(within * drawing.scale)))


def hough_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    return f1(
        found[HOUGH] > 0.5, true_map("hough", drawing) > 0.5, within=WITHIN["hough"] * drawing.scale
    )


def soft_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    return correlation(found[SOFT], true_map("soft", drawing))


def scribble_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    outlines = outlines_of(found[KIND].argmax(axis=0), drawing.scale)
    return f1(
        outlines, true_map("scribble", drawing) > 0.5, within=WITHIN["scribble"] * drawing.scale
    )


def pose_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    # The detector's joint maps are exp(-d^2 / 8) at d pixels of 64. Above exp(-9/8), d < 3.
    hits, size = [], drawing.size
    for figure in drawing.scene.of("figure"):
        columns, rows = np.clip(joints_of(figure) * size, 0, size - 1).astype(int).T
        hits.extend(
            found[JOINTS][range(len(rows)), rows, columns] > np.exp(-(WITHIN["pose"] ** 2) / 8)
        )
    return float(np.mean(hits))


def segmentation_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    return mean_overlap(found[KIND].argmax(axis=0), kinds_of(drawing))


def depth_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    return correlation(found[DEPTH], true_map("depth", drawing))


def normals_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    truth = CONDITIONS["normals"](drawing).transpose(2, 0, 1)[:, drawing.shown > 0]
    return share_of_normals(found[NORMALS][:, drawing.shown > 0], truth)


def cartoon_score(image: np.ndarray, found: np.ndarray, drawing: Drawing) -> float:
    return f1(
        found[CARTOON] < 0.5,
        true_map("cartoon", drawing) < 0.5,
        within=WITHIN["cartoon"] * drawing.scale,
    )


SCORES = {
    "canny": canny_score,
    "hough": hough_score,
    "soft": soft_score,
    "scribble": scribble_score,
    "pose": pose_score,
    "segmentation": segmentation_score,
    "depth": depth_score,
    "normals": normals_score,
    "cartoon": cartoon_score,
}


def true_map(condition: str, drawing: Drawing) -> np.ndarray:
    """The map [size, size] of a condition without colours."""
    return CONDITIONS[condition](drawing)[..., 0]
