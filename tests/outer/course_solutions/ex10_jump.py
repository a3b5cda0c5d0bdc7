import json

PREDICTED = {"scaled": 150, "half": 250}
BROKEN_AFTER_300 = False


def first_step_at(steps, scores, level):
    points = list(zip(steps, scores))
    if points[0][1] >= level:
        return float(steps[0])
    for (a, low), (b, high) in zip(points, points[1:]):
        if low < level <= high:
            return a + (b - a) * (level - low) / (high - low)
    return None


def found(run):
    with open(f"runs/{run}/log.jsonl") as file:
        looks = [look for look in map(json.loads, file) if "score" in look]
    return first_step_at([look["step"] for look in looks], [look["score"] for look in looks], 0.4)


FOUND = {run: found(run) for run in PREDICTED}
