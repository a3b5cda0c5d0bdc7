"""The page's server, over HTTP: the numbers that it shows are the networks' own, the pictures are
sample.py's to the bit, and nonsense harms nobody."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.client import HTTPConnection, HTTPResponse
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import train
from conftest import NANO, ROOT, opened, randomise, refusal
from in_float64 import no_pictures
from nanocontrol.checkpoint import save_control, save_sd
from nanocontrol.controlnet import ControlNet
from nanocontrol.nano.conditions import CONDITIONS, grey, line, thick_lines
from nanocontrol.nano.model import UNET, new_nano
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.world import Drawing, draw, random_scene
from nanocontrol.page import asked, insides, record
from nanocontrol.page.__main__ import await_run, listening
from nanocontrol.page.__main__ import main as page
from nanocontrol.page.insides import preview_map
from nanocontrol.page.making import Making
from nanocontrol.page.models import STATIC, Models
from nanocontrol.page.sketch import as_picture
from nanocontrol.plumbing.pictures import CAPTION
from nanocontrol.sampling import initial_noise, sample, sampling_steps
from nanocontrol.tools.walk import BASE, COPY
from nanocontrol.training.measure import mean_latents
from nanocontrol.training.run import RunFolder
from nanocontrol.unet import UNet
from sample import generate

NO_PAGE = 'the extra `page` is not installed: pip install -e ".[page]"'
uvicorn = pytest.importorskip("uvicorn", reason=NO_PAGE)
app = pytest.importorskip("nanocontrol.page.app", reason=NO_PAGE)

SIZE = 128
PYRAMID = [((62.5, 26.5), (26.5, 86.5)), ((62.5, 26.5), (68.5, 102.5))]
PYRAMID += [((62.5, 26.5), (102.5, 80.5)), ((26.5, 86.5), (68.5, 102.5))]
PYRAMID += [((68.5, 102.5), (102.5, 80.5))]
STROKES = [{"tool": "line", "points": [[*a], [*b]]} for a, b in PYRAMID]
SKETCH = {"condition": "canny", "strokes": STROKES}
PROMPT = "a red pyramid on a white background"
FEW = {"client": "test", "drawing": SKETCH, "prompt": PROMPT, "steps": 3}


# ---------------------------------------------------------------------------------- a real server


class Served:
    """The page behind a real server, in a thread of its own."""

    def __init__(self, models: Models, out: Path):
        self.models = models
        self.page = app.Page(models, out)
        self.socket = listening("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.server = uvicorn.Server(
            app.served_at(self.page, app.own_hosts("127.0.0.1", self.port))
        )
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],))
        self.thread.start()
        while not models.about["ready"]:
            assert "error" not in models.about, models.about
            time.sleep(0.05)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()
        self.page.worker.pool.shutdown(cancel_futures=True)

    @contextmanager
    def asking(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> Iterator[HTTPResponse]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def get(self, path: str) -> dict:
        with self.asking("GET", path) as response:
            return json.load(response)

    def ask(self, path: str, body: object, **headers: str) -> tuple[int, dict]:
        """The status and the answer. A body of bytes is sent as it is."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content_Type": "application/json"} | headers
        with self.asking("POST", path, data, **headers) as response:
            return response.status, json.loads(response.read().splitlines()[0])

    def post(self, path: str, body: object) -> dict:
        status, answer = self.ask(path, body)
        assert status == 200, answer
        return answer

    def events(self, request: dict) -> Iterator[dict]:
        data, kind = json.dumps(request).encode(), "application/json"
        with self.asking("POST", "/api/generate", data, Content_Type=kind) as response:
            assert response.status == 200, response.read()
            for row in response:
                yield json.loads(row)

    def pictures(self, request: dict) -> dict[str, np.ndarray]:
        found = [*self.events(request)]
        assert found[-1]["event"] == "done", found[-1]
        return {e["column"]: pixels(e["png"]) for e in found if e["event"] == "picture"}


def pixels(png: str) -> np.ndarray:
    return np.array(Image.open(BytesIO(b64decode(png))))


def as_png(array: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def as_hint(png: str) -> Tensor:
    """A hint as sample.py reads it: [1, 3, H, W]."""
    return torch.from_numpy(pixels(png)).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps that keeps its weights."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    flags = ["--steps", "2", "--batch-size", "2", "--scenes", "4", "--condition", "hough"]
    flags += ["--sample-every", "1", "--keep", "all", "--device", "cpu", "--out", str(folder)]
    with no_pictures():
        train.main(flags)
    return folder


@pytest.fixture(scope="module")
def served(run, tmp_path_factory) -> Iterator[Served]:
    served = Served(Models(None, [], run, "cpu"), tmp_path_factory.mktemp("out"))
    yield served
    served.close()


@pytest.fixture(scope="module")
def canny_net(served) -> ControlNet:
    return served.models.control("canny", None)[0]


# ----------------------------------------------------------------------------- the first screen


def test_the_page_begins_with_a_recorded_run(served):
    with served.asking("GET", "/") as response:
        assert response.status == 200 and b"<html" in response.read()
    first = served.get("/static/first.json")
    assert sum(file.stat().st_size for file in STATIC.glob("*.json")) < 300_000
    assert first["events"][0]["event"] == "start" and first["events"][-1]["event"] == "done"
    assert len(first["events"]) == 2 + 2 * 21 + 1
    recorded = first["request"] | {"client": "test"}
    again = [*served.events(recorded | {"columns": ["canny"]})]
    (old,) = [e for e in first["events"] if e["event"] == "picture" and e["column"] == "canny"]
    (new,) = [e for e in again if e["event"] == "picture"]
    difference = pixels(old["png"]).astype(float) - pixels(new["png"])
    assert np.abs(difference).mean() < 2  # another processor rounds differently
    assert new["score"] > 0.7


def test_no_file_of_the_page_names_another_address():
    for file in STATIC.rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf-8").replace("http://www.w3.org/", "")
            assert "http:" not in text and "https:" not in text and "//cdn" not in text, file


def test_every_answer_carries_the_policy(served):
    for path in "/", "/static/first.json", "/api/info", "/nothing", "/static/nothing.js":
        with served.asking("GET", path) as response:
            assert response.getheader("Content-Security-Policy").startswith("default-src 'self';")
            assert response.getheader("X-Content-Type-Options") == "nosniff"


def test_facts_of_the_networks(served, canny_net):
    info, unet = served.get("/api/info"), served.models.sd.unet
    x, t, context = torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 77, 64)
    with torch.no_grad():
        residuals = canny_net(x, torch.zeros(1, 3, SIZE, SIZE), t, context)
    shapes = [[e["channels"], e["size"], e["size"]] for e in info["residuals"]]
    assert shapes == [[*r.shape[1:]] for r in residuals]
    counted = {COPY: canny_net, BASE: unet}
    for part, network in counted.items():
        blocks = [b for b in info["blocks"] if b["network"] == part]
        own = sum(b["parameters"] for b in blocks)
        assert own + sum(p.numel() for p in network.time_embed.parameters()) == sum(
            p.numel() for p in network.parameters()
        )
    ends = "zero_convs", "middle_block_out"
    zeros = [b["shape_out"] for b in info["blocks"] if b["key"].startswith(ends)]
    assert zeros == shapes
    available = [c["name"] for c in info["conditions"] if c["available"]]
    assert available == ["canny", "hough", "pose", "depth"]
    assert info["limits"] == asked.LIMITS and info["defaults"]["scale"] == 2.5


# ------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strength": [0, 1, 0.5, 1, -0.5, 1, 2], "control_to": 0.5, "negative": "a blue ball"},
        {"guess": True, "control_from": 0.3, "seed": 5, "scale": 1},
        {"resolution_weighting": True, "strength": 0.7, "attention": True},
    ],
    ids=str,
)
def test_pictures_are_those_of_sample_py_to_the_bit(served, canny_net, options):
    """Also with previews and insides: hooks change nothing."""
    found = [*served.events(FEW | options)]
    made = {e["column"]: pixels(e["png"]) for e in found if e["event"] == "picture"}
    names = {"negative", "seed", "scale", "control_from", "control_to", "guess"}
    given = {name: options[name] for name in names & options.keys()}
    given |= {"resolution_weighting": True} if "resolution_weighting" in options else {}
    control = canny_net, as_hint(found[0]["hints"]["canny"]), options.get("strength", 1.0)
    for column, controls in ("canny", [control]), ("none", []):
        (expected,) = generate(served.models.sd, PROMPT, controls=controls, n=1, steps=3, **given)
        assert np.array_equal(made[column], expected), column
    assert not np.array_equal(made["canny"], made["none"])


@pytest.mark.slow
def test_the_command_makes_the_same_pixels(served, tmp_path):
    request = FEW | {"strength": [0, 1, 0.5, 1, 1, 1, 2], "control_to": 0.9, "prompt": "-default'"}
    for column, made in served.pictures(request).items():
        command = served.post("/api/command", request | {"columns": [column]})["command"]
        threads, python, *rest = shlex.split(command)
        assert (threads, python) == ("OMP_NUM_THREADS=1", "python")
        flags = [sys.executable, str(ROOT / rest[0]), *rest[1:], f"--out={tmp_path}"]
        subprocess.run(flags, check=True, env={"OMP_NUM_THREADS": "1"}, capture_output=True)
        assert np.array_equal(np.array(opened(tmp_path / "000.png")), made), column


def test_a_command_for_a_prompt_that_sample_py_reads_otherwise(served):
    request = FEW | {"prompt": "default", "columns": ["none"]}
    assert "'--prompt=default '" in served.post("/api/command", request)["command"]


def test_sample_exhausts_the_steps(served):
    sd, noise = served.models.sd, initial_noise(1, SIZE, SIZE, torch.Generator())
    with torch.no_grad():
        context, uncond = sd.encode_prompts(PROMPT), sd.encode_prompts("")
    steps = [*sampling_steps(sd, noise, context, uncond, steps=3, scale=2.5)]
    assert len(steps) == 4 and torch.equal(steps[0][0], noise)
    assert torch.equal(steps[-1][0], sample(sd, noise, context, uncond, steps=3, scale=2.5))


def test_two_users_get_their_own_pictures(served):
    """While their steps are interleaved."""
    requests = [FEW | {"client": f"user-{i}", "seed": i} for i in range(2)]
    alone = [served.pictures(request) for request in requests]
    together: dict[int, dict] = {}
    order: list[int] = []

    def user(i: int) -> None:
        events = []
        for event in served.events(requests[i]):
            order.append(i)
            events.append(event)
        found = [e for e in events if e["event"] == "picture"]
        together[i] = {e["column"]: pixels(e["png"]) for e in found}

    threads = [threading.Thread(target=user, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = sum(a != b for a, b in pairwise(order))
    assert changes > 6, order
    for i in range(2):
        for column in "none", "canny":
            assert np.array_equal(together[i][column], alone[i][column])


def test_a_newer_request_cancels_the_older_one_of_its_client(served):
    long = FEW | {"steps": 100, "client": "hasty"}
    events = served.events(long)
    first = next(events)
    assert first["event"] == "start"
    served.pictures(long | {"steps": 1})
    rest = [*events]
    assert rest[-1] == {"event": "cancelled"} and len(rest) < 60


def test_a_client_that_leaves_frees_its_work(served):
    events = served.events(FEW | {"steps": 100, "client": "gone"})
    next(events)
    assert "gone" in served.page.worker.latest
    events.close()
    for _ in range(200):
        if "gone" not in served.page.worker.latest:
            break
        time.sleep(0.05)
    assert "gone" not in served.page.worker.latest


def test_an_upload_that_breaks_off_leaves_no_traceback(served, caplog):
    head = "POST /api/photo HTTP/1.1\r\nContent-Type: application/octet-stream\r\n"
    head += f"Content-Length: 9000\r\nHost: 127.0.0.1:{served.port}\r\n\r\n"
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", served.port)) as upload:
            upload.sendall(head.encode() + bytes(100))
            time.sleep(0.1)  # it is being read
    served.get("/api/info")
    time.sleep(0.2)
    assert not [record for record in caplog.records if record.exc_info]


# -------------------------------------------------------------------------------------- insides


def test_every_number_is_of_the_networks_own_tensors(served, canny_net):
    """Computed again from x_t alone, by the networks' own forward passes."""
    sd, strengths = served.models.sd, [1, 0.5, 0, 1, -1, 2, 1]
    request = FEW | {"columns": ["canny"], "strength": strengths, "control_to": 0.7}
    start, encoder, *found = served.events(request)
    hint = as_hint(start["hints"]["canny"])
    noise = initial_noise(1, SIZE, SIZE, torch.Generator().manual_seed(0))
    with torch.no_grad():
        context, uncond = sd.encode_prompts(PROMPT), sd.encode_prompts("")
        controls = [(canny_net, hint, strengths)]
        steps = [*sampling_steps(sd, noise, context, uncond, controls, 3, 2.5, control_to=0.7)]
        for i, event in enumerate(found[:3]):
            (x, _), (_, x0) = steps[i], steps[i + 1]
            colours = x0[0].permute(1, 2, 0) @ served.models.map[:4] + served.models.map[4]
            off = pixels(event["preview"]) - 255 * colours.clamp(0, 1).numpy()
            assert np.abs(off).max() <= 0.51
            if i == 2:  # 2/3 is below 0.7
                continue
            t = torch.tensor([start["ts"][i]])
            residuals = canny_net(x, hint, t, context)
            skips = sd.unet.encode(x, sd.unet.embed_time(t), context)
            rows = zip(event["connections"], residuals, skips, strengths, strict=True)
            for shown, residual, skip, strength in rows:
                ratio = abs(strength) * residual.norm().item() / skip.norm().item()
                assert shown == pytest.approx(ratio, rel=1e-4)
    assert start["weights"]["canny"] == strengths
    check_encoder(encoder["layers"], canny_net, hint)


def white(lines: np.ndarray) -> np.ndarray:
    return np.repeat(np.uint8(255) * lines[..., None], 3, axis=-1)


def byte_pixels(picture: Tensor) -> np.ndarray:
    return (picture * 255).round().byte().permute(1, 2, 0).numpy()


def check_encoder(layers: list[dict], control: ControlNet, hint: Tensor) -> None:
    block, empty = control.input_hint_block, torch.zeros_like(hint)
    ends = [0, *range(2, 15, 2), 15]
    assert len(layers) == len(ends)
    drawn = (hint - empty).square().mean().sqrt().item()
    with torch.no_grad():
        for layer, end in zip(layers, ends):
            change = block[:end](hint) - block[:end](empty)
            assert layer["shape"] == [*change.shape[1:]]
            signal = change.square().mean().sqrt().item()
            assert layer["share"] == pytest.approx(signal / drawn, rel=1e-4)


def test_uncontrolled_steps_show_no_connections(served):
    request = FEW | {"control_from": 0.3, "control_to": 0.6}
    start, *found = served.events(request)
    assert start["controlled"] == [False, True, False]
    steps = [e for e in found if e["event"] == "step"]
    shown = {(e["column"], e["step"]): "connections" in e for e in steps}
    assert [key for key in shown if shown[key]] == [("canny", 1)]


def test_attention_is_computed_from_the_layers_own_queries_and_keys(served):
    """With the layers' own values and projection they give the layers' own outputs."""
    sd = served.models.sd
    layers = insides.cross_attentions(sd.unet)
    torch.manual_seed(0)
    x, context = torch.randn(2, 4, 16, 16), None
    with torch.no_grad():
        context = sd.encode_prompts(["", PROMPT])
        taken: insides.Taken = {}
        parts = [m for layer in layers for m in (layer, layer.to_q, layer.to_k, layer.to_v)]
        with insides.watched(parts, taken):
            sd.unet(x, torch.tensor([500, 500]), context)
        spans = insides.spans_of(PROMPT)
        assert [word for word, *_ in spans] == PROMPT.split()
        everything = [("all", 0, 77)]
        total = insides.attention_maps(taken, sd.unet, everything, 16)
        assert total == pytest.approx(torch.ones(1, 16, 16))
        expected = torch.zeros(len(spans), 16, 16)
        for layer in layers:
            q, k, v = (
                taken[m][-1].unflatten(-1, (layer.heads, -1)).transpose(0, 1)
                for m in (layer.to_q, layer.to_k, layer.to_v)
            )
            share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
            out = layer.to_out((share @ v).transpose(0, 1).flatten(1))
            assert torch.allclose(out, taken[layer][-1], atol=1e-5)
            side = round(share.shape[1] ** 0.5)
            maps = share.mean(dim=0)[:, 1 : 1 + len(spans)].T.view(1, -1, side, side)
            expected += F.interpolate(maps, (16, 16))[0] / len(layers)
        assert torch.allclose(
            insides.attention_maps(taken, sd.unet, spans, 16), expected, atol=1e-6
        )


def test_words_that_nano_does_not_know_are_marked(served):
    start = next(served.events(FEW | {"prompt": "a shiny pyramid, on velvet", "attention": True}))
    known = {word["text"]: word["known"] for word in start["words"]}
    assert known == {"a": True, "shiny": False, "pyramid,": False, "on": True, "velvet": False}


def test_previews_are_a_fitted_map(served):
    """Its error on other scenes is small, and another fit is nearly the same."""
    sd, found = served.models.sd, served.models.map
    pictures = torch.stack([Scenes(None, HELD_OUT, size=SIZE)[i][0] for i in range(12)])
    true, latents = F.avg_pool2d(pictures / 2 + 0.5, 8), mean_latents(sd, pictures)
    shown = torch.stack([insides.preview(latent, found) for latent in latents])
    assert (shown - true).square().mean().sqrt() < 0.15
    assert (found - preview_map(sd, 12)).abs().max() < 0.15


# ------------------------------------------------------------------------------------- drawings


def test_canny_lines_are_as_thin_as_in_training(served):
    drawn = pixels(served.post("/api/draw", {"drawing": SKETCH})["hint"])
    assert {*np.unique(drawn)} == {0, 255}
    line_of = {"tool": "line", "points": [[10.5, 20.5], [50.5, 20.5]]}
    one = served.post("/api/draw", {"drawing": SKETCH | {"strokes": [line_of]}})
    assert pixels(one["hint"])[..., 0].nonzero()[0].tolist() == [20] * 41


@pytest.mark.parametrize("condition", ["hough", "scribble"])
def test_other_lines_are_drawn_as_in_training(served, condition):
    about = {c["name"]: c for c in served.get("/api/info")["conditions"]}[condition]
    stroke = {"tool": "line", "width": about["widths"][0], "points": [[10, 20], [90, 70]]}
    drawn = served.post("/api/draw", {"drawing": {"condition": condition, "strokes": [stroke]}})
    on = np.zeros((2 * SIZE, 2 * SIZE), np.float32)
    width = {"hough": 1.5, "scribble": 3}[condition]
    box, found, _ = line(np.array([10, 20]) / SIZE, np.array([90, 70]) / SIZE, width, SIZE)
    on[box][found] = 1
    assert np.array_equal(pixels(drawn["hint"]), np.rint(grey(on) * 255))


def test_a_soft_line_is_as_soft_as_an_outline_of_the_training(served):
    """Compared with the hint of a picture of two halves."""
    index = np.repeat(np.arange(2 * SIZE)[None] >= SIZE, 2 * SIZE, axis=0).astype(np.uint8)
    flat, scene = np.zeros(index.shape, np.float32), random_scene(0)
    normal = np.stack([flat, flat, flat + 1])
    drawing = Drawing(scene, index, flat, normal, np.zeros((SIZE, SIZE, 3), np.float32))
    stroke = {"tool": "line", "width": 2, "points": [[64, -20], [64, 148]]}
    drawn = served.post("/api/draw", {"drawing": {"condition": "soft", "strokes": [stroke]}})
    assert np.array_equal(pixels(drawn["hint"]), np.rint(CONDITIONS["soft"](drawing) * 255))


def test_an_eraser_takes_away_what_was_drawn(served):
    wide = {"tool": "eraser", "width": 12, "points": [[x, y] for x in (0, 128) for y in range(129)]}
    wide["points"] = [[x, y] for y in range(0, 130, 6) for x in (0, 128)]
    answer = served.post("/api/draw", {"drawing": SKETCH | {"strokes": [*STROKES, wide]}})
    assert answer["empty"] and "empty" in answer["check"]["differences"][0]


def test_scenes_have_the_hints_of_the_training(served):
    for seed in HELD_OUT, HELD_OUT + 1:
        answer = served.post("/api/draw", {"drawing": {"condition": "canny", "scene": seed}})
        scene = random_scene(seed)
        assert answer["prompt"] == scene.prompt
        sketch = {"condition": "depth", "scene": answer["scene"]}
        again = served.post("/api/draw", {"drawing": sketch})
        drawing = draw(scene, SIZE)
        for name in answer["hints"]:
            expected = byte_pixels(as_picture(CONDITIONS[name](drawing)))
            assert np.array_equal(pixels(answer["hints"][name]), expected)
            assert np.abs(pixels(again["hints"][name]) - expected.astype(int)).mean() < 0.1
        assert again["check"]["fits"] and again["hint"] == again["hints"]["depth"]


def test_a_scene_is_followed_through_every_condition(served):
    scene = random_scene(HELD_OUT, ("figure",))
    columns = ["none", "canny", "pose", "depth"]
    drawing = {"condition": "canny", "scene": asdict(scene)}
    request = {"client": "test", "drawing": drawing, "columns": columns, "prompt": scene.prompt}
    found = [*served.events(request | {"steps": 5})]
    scores = {e["column"]: e["score"] for e in found if e["event"] == "picture"}
    assert scores["canny"] > scores["none"] + 0.2 and scores["pose"] > 0.5 < scores["depth"]
    assert found[0]["hints"].keys() == {"canny", "pose", "depth"}


def test_an_empty_hint_is_named(served):
    """A scene without figures has an empty pose; its edges are not empty."""
    scene = next(s for s in map(random_scene, range(9)) if not s.of("figure"))
    drawing = {"condition": "canny", "scene": asdict(scene)}
    start = next(served.events(FEW | {"drawing": drawing, "columns": ["none", "canny", "pose"]}))
    assert start["empty"] == ["pose"]


def test_photos_become_edges(served):
    photo = np.zeros((300, 400, 3), np.uint8)
    photo[100:200, 150:250] = 255
    file = BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=95)
    kind, path = "application/octet-stream", "/api/photo?low=50&high=150"
    status, answer = served.ask(path, file.getvalue(), Content_Type=kind)
    assert status == 200 and pixels(answer["picture"]).shape == (SIZE, SIZE, 3)
    edges = pixels(answer["hint"])[..., 0] > 0
    assert 100 < edges.sum() < 300
    middle = b64decode(answer["picture"])  # sent again for other thresholds
    assert served.ask(path, middle, Content_Type=kind)[1] == answer
    _, strict = served.ask("/api/photo?low=900&high=1000", middle, Content_Type=kind)
    assert (pixels(strict["hint"]) > 0).sum() <= 3 * edges.sum()


def check_of(served, condition: str, array: np.ndarray) -> dict:
    sketch = {"condition": condition, "under": as_png(array)}
    return served.post("/api/draw", {"drawing": sketch})["check"]


def test_hints_that_it_was_not_trained_on_are_recognised_and_mended(served):
    hint = byte_pixels(Scenes("canny", HELD_OUT, size=SIZE)[3][1])
    assert check_of(served, "canny", hint)["fits"]
    thick = white(thick_lines(hint[..., 0] > 0, 2))
    colourful = hint * np.array([1, 0, 0], np.uint8)
    wrong = {"invert": 255 - hint, "line width": thick, "colours": colourful}
    wrong["strength"] = hint // 3
    for fix, array in wrong.items():
        check = check_of(served, "canny", array)
        assert not check["fits"] and fix in check["fixes"], (fix, check["differences"])
        assert not check["after"], (fix, check["after"])
        assert check_of(served, "canny", pixels(check["fixed"]))["fits"]
    assert np.array_equal(pixels(check_of(served, "canny", 255 - hint)["fixed"]), hint)


def test_swapped_colours_of_a_pose_are_swapped_back(served):
    scene = next(s for s in map(random_scene, range(HELD_OUT, 2 * HELD_OUT)) if s.of("figure"))
    hint = byte_pixels(as_picture(CONDITIONS["pose"](draw(scene, SIZE))))
    check = check_of(served, "pose", hint[..., ::-1])
    assert check["fixes"] == ["swap red and blue"] and np.array_equal(pixels(check["fixed"]), hint)


# ---------------------------------------------------------------------------------------- a run


def test_a_run_is_shown_with_its_kept_weights(served, run):
    shown = served.get("/api/run")
    files = sorted(file.stem for file in (run / "weights").iterdir())
    assert [f"control-{step:07d}" for step in shown["steps"]] == files and len(files) >= 2
    assert (shown["condition"], shown["done"], shown["total"]) == ("hough", 2, 2)
    assert not shown["running"] and any("loss" in entry for entry in shown["log"])


def test_one_drawing_through_the_weights_of_a_run(served, run, tmp_path):
    sketch = {"condition": "hough", "strokes": STROKES}
    request = FEW | {"drawing": sketch, "columns": ["hough"]}
    steps = served.get("/api/run")["steps"]
    made = {step: served.pictures(request | {"run_step": step})["hough"] for step in steps}
    assert not np.array_equal(made[steps[0]], made[steps[-1]])
    newest = served.pictures(request)["hough"]
    assert np.array_equal(newest, made[steps[-1]])
    command = served.post("/api/command", request | {"run_step": steps[0]})
    assert f"control-{steps[0]:07d}.safetensors" in command["command"]
    for unknown in request | {"run_step": 77}, FEW | {"run_step": 77}:
        status, answer = served.ask("/api/generate", unknown)
        assert status == 404 and answer["error"].startswith("run_step: "), answer


def test_a_run_that_is_still_training_grows(served, run, tmp_path):
    copy = tmp_path / "growing"
    (copy / "weights").mkdir(parents=True)
    files = sorted((run / "weights").iterdir())
    (copy / "settings.json").write_text((run / "settings.json").read_text())
    models = Models(None, [], copy, "cpu")
    assert models.progress()["steps"] == [] and "--keep all" in models.progress()["note"]
    for n, file in enumerate(files, 1):
        (copy / "weights" / file.name).write_bytes(file.read_bytes())
        (copy / "log.jsonl").write_text(json.dumps({"step": n, "loss": 0.1}) + "\n")
        shown = models.progress()
        assert len(shown["steps"]) == n and shown["running"]
    for name in "settings.json", "log.jsonl":
        os.utime(copy / name, (0, 0))
    assert not models.progress()["running"]


def test_a_run_is_recorded_from_its_contact_sheets(served, run, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "STATIC", tmp_path)
    sheets = RunFolder(run).sheets()
    for step, file in enumerate(sheets):
        sheet = np.zeros((SIZE + 40 + SIZE + CAPTION, 8 * SIZE, 3), np.uint8)
        place = slice(record.COLUMN * SIZE, (record.COLUMN + 1) * SIZE)
        sheet[:SIZE, place], sheet[-CAPTION - SIZE : -CAPTION, place] = 200, 50 * (1 + step)
        Image.fromarray(sheet).save(file)
    record.main(["--run", str(run)])
    recorded = json.loads((tmp_path / "training.json").read_text())
    assert recorded["run"] == served.get("/api/run")
    colours = [pixels(one["url"].partition(",")[2]) for one in recorded["made"].values()]
    assert [round(c.mean()) for c in colours] == [50, 100, 150]
    assert all(c.shape == (SIZE, SIZE, 3) and c.std() < 2 for c in colours)
    assert pixels(recorded["hint"].partition(",")[2]).mean() == pytest.approx(200, abs=2)


def test_the_recorded_training_jumps(served):
    recorded = served.get("/static/training.json")
    assert recorded["run"].keys() == served.get("/api/run").keys()
    scores = {int(step): one["score"] for step, one in recorded["made"].items()}
    assert [*scores] == recorded["run"]["steps"] and not recorded["run"]["running"]
    values = [*scores.values()]
    assert values[0] < 0.3 and values[-1] > 0.9
    assert max(b - a for a, b in pairwise(values)) > 0.35


# ----------------------------------------------------------------------------------- another base


STROKE = {"tool": "pen", "width": 2, "points": [[5, 5], [50, 40]]}
LINE = {"condition": "lines", "strokes": [STROKE]}


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Iterator[Served]:
    """A base that is not nano, with random weights, and a ControlNet for it."""
    folder = tmp_path_factory.mktemp("other")
    sd = new_nano(64)
    unet = randomise(UNet(replace(UNET, norm_groups=8)))
    save_sd(replace(sd, unet=unet, guidance=5.0), folder / "base.safetensors")
    save_control(randomise(ControlNet(unet.config), 1), folder / "lines.safetensors")
    files = folder / "base.safetensors", [folder / "lines.safetensors"]
    served = Served(Models(*files, None, "cpu"), folder / "out")
    yield served
    served.close()


def test_another_base_is_behind_the_same_page(other):
    info = other.get("/api/info")
    assert (info["nano"], info["size"], info["words"]) == (False, 64, None)
    (condition,) = info["conditions"]
    assert condition["name"] == "lines" and condition["available"]
    request = FEW | {"drawing": LINE}
    start, *found = other.events(request | {"attention": True})
    assert found[-1]["event"] == "done"
    made = {e["column"]: pixels(e["png"]) for e in found if e["event"] == "picture"}
    control, _ = other.models.control("lines", None)
    controls = [(control, as_hint(start["hints"]["lines"]), 1.0)]
    (expected,) = generate(other.models.sd, PROMPT, controls=controls, n=1, steps=3)
    assert np.array_equal(made["lines"], expected)
    scene = {"drawing": {"condition": "lines", "scene": 1}}
    assert "with this base" in other.ask("/api/draw", scene)[1]["error"]
    assert other.post("/api/draw", {"drawing": request["drawing"]})["check"] is None


def test_a_step_of_a_run_is_refused_without_a_run(other):
    status, answer = other.ask("/api/generate", FEW | {"drawing": LINE, "run_step": 0})
    assert status == 404 and answer["error"].startswith("run_step: ") and "--run" in answer["error"]
    assert other.ask("/api/command", FEW | {"drawing": LINE, "run_step": 0})[0] == 404


def test_models_that_could_not_be_loaded_are_said(other, monkeypatch):
    why = "the file is damaged"
    monkeypatch.setattr(other.models, "about", {"ready": False, "error": why})
    assert other.ask("/api/generate", FEW | {"drawing": LINE}) == (503, {"error": why})


# ---------------------------------------------------------------------------------------- safety


def test_other_addresses_and_other_sites_are_refused(served):
    own = f"127.0.0.1:{served.port}"
    for host, origin, status in [
        (own, None, 200),
        (own, f"http://{own}", 200),
        (f"localhost:{served.port}", None, 200),
        ("evil.example", None, 403),
        (f"evil.example:{served.port}", None, 403),
        (f"127.0.0.1.evil.example:{served.port}", None, 403),
        (f"10.0.0.7:{served.port}", None, 403),
        (own, "http://evil.example", 403),
        (own, "null", 403),
        (own, f"https://{own}", 403),
    ]:
        headers = {"Host": host} | ({"Origin": origin} if origin else {})
        with served.asking("GET", "/api/info", **headers) as response:
            assert response.status == status, (host, origin)


def test_a_server_for_other_machines_answers_to_numbers_only():
    for host, known in ("192.168.1.5:80", True), ("[fe80::1]:80", True), ("evil.example:80", False):
        assert bool(re.fullmatch(app.own_hosts("0.0.0.0", 80), host)) == known
        assert not re.fullmatch(app.own_hosts("127.0.0.1", 80), host)


def test_nonsense_gets_a_status_and_a_sentence(served):
    nan = json.dumps(FEW).replace('"steps": 3', '"scale": NaN').encode()
    deep = b"[" * 100_000
    big = FEW | {"prompt": "x" * 500}
    sketch = SKETCH | {"strokes": [STROKES[0]] * 501}
    scene = asdict(random_scene(1))
    far = scene | {"things": [scene["things"][0] | {"x": 1e300}]}
    dark, full = scene | {"light": [0, 0, 0]}, scene | {"things": [*scene["things"]] * 5}
    cases = [
        ("/api/generate", b"", 400),
        ("/api/generate", b"\xff{", 400),
        ("/api/generate", deep, 400),
        ("/api/generate", nan, 400),
        ("/api/generate", [], 400),
        ("/api/generate", {}, 400),
        ("/api/generate", FEW | {"unknown": 1}, 400),
        ("/api/generate", FEW | {"client": "../x"}, 400),
        ("/api/generate", FEW | {"client": None}, 400),
        ("/api/generate", FEW | {"steps": 0}, 400),
        ("/api/generate", FEW | {"steps": 101}, 400),
        ("/api/generate", FEW | {"steps": True}, 400),
        ("/api/generate", FEW | {"seed": 2.5}, 400),
        ("/api/generate", FEW | {"seed": 10**400}, 400),
        ("/api/generate", FEW | {"scale": 10**400}, 400),
        ("/api/generate", FEW | {"strength": [1] * 6}, 400),
        ("/api/generate", FEW | {"strength": "1"}, 400),
        ("/api/generate", FEW | {"control_from": 0.9, "control_to": 0.1}, 400),
        ("/api/generate", FEW | {"guess": True, "resolution_weighting": True}, 400),
        ("/api/generate", FEW | {"columns": ["none", "none"]}, 400),
        ("/api/generate", FEW | {"columns": []}, 400),
        ("/api/generate", FEW | {"columns": ["depth"]}, 400),
        ("/api/generate", FEW | {"prompt": "\ud800"}, 400),
        ("/api/generate", FEW | {"prompt": "a\0b"}, 400),
        ("/api/generate", big, 400),
        ("/api/generate", FEW | {"drawing": sketch}, 400),
        ("/api/generate", FEW | {"drawing": {"condition": "soft"}}, 404),
        ("/api/generate", FEW | {"drawing": {"condition": "hed"}}, 400),
        ("/api/generate", FEW | {"drawing": SKETCH | {"under": "no base64"}}, 400),
        ("/api/generate", FEW | {"drawing": SKETCH | {"under": "AAAA"}}, 400),
        (
            "/api/generate",
            FEW | {"drawing": SKETCH | {"under": as_png(np.zeros((9, 9), "u1"))}},
            400,
        ),
        ("/api/generate", FEW | {"drawing": SKETCH | {"strokes": [{"tool": "pen"}]}}, 400),
        *[
            ("/api/draw", {"drawing": {"condition": "canny", "scene": bad}}, 400)
            for bad in (far, dark, full, -1, True, {})
        ],
        ("/api/draw", {}, 400),
        ("/api/command", FEW | {"columns": ["depth"]}, 400),
        ("/api/command", [], 400),
        ("/api/draw", {"drawing": None}, 400),
        ("/api/nothing", {}, 404),
        ("/static/../app.py", {}, 405),
    ]
    for path, body, expected in cases:
        status, answer = served.ask(path, body)
        assert status == expected, (path, body if len(str(body)) < 300 else "...", answer)
        assert len(answer["error"]) < 300 and "internal" not in answer["error"], answer
    kind = "application/octet-stream"
    assert served.ask("/api/photo", b"GIF89a", Content_Type=kind)[0] == 400
    picture = b64decode(as_png(np.zeros((200, 200), "u1")))
    for bad in "low=x", "low=-5", "low=", "low=1001", "low=3e1", "low=201", "lower=5":
        status, answer = served.ask(f"/api/photo?{bad}", picture, Content_Type=kind)
        assert status == 400 and "request" in answer["error"], (bad, answer)
    assert served.ask("/api/photo?low=200&high=200", picture, Content_Type=kind)[0] == 200
    bomb = b64decode(as_png(np.zeros((8000, 8000), "u1")))  # 64 megapixels in 63 KB
    status, answer = served.ask("/api/photo", bomb, Content_Type=kind)
    assert status == 400 and "megapixels" in answer["error"]
    assert served.ask("/api/draw", b"{}", Content_Type="text/plain")[0] == 415
    with served.asking("GET", "/static/..%2fapp.py") as response:
        assert response.status == 404
    assert served.pictures(FEW).keys() == {"none", "canny"}  # and it still works


def test_large_bodies_are_refused(served):
    assert served.ask("/api/draw", b" " * (app.BODY + 1))[0] == 413
    with served.asking(
        "POST", "/api/draw", Content_Type="application/json", Content_Length=str(30 * 2**20)
    ) as response:
        assert response.status == 413
    both = {"Content-Length": "2", "Transfer-Encoding": "chunked"}  # the server itself refuses it
    for more, status in ({}, 413), (both, 400):
        parts = (b" " * 2**16 for _ in range(20))
        connection = HTTPConnection("127.0.0.1", served.port, timeout=60)
        headers = {"Content-Type": "application/json"} | more
        connection.request("POST", "/api/draw", parts, headers, encode_chunked=True)
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.slow
def test_many_quick_requests_harm_nobody(served):
    """Another user's pictures come out right meanwhile."""
    expected, statuses = served.pictures(FEW), []
    data, kind = json.dumps({"drawing": SKETCH}).encode(), "application/json"

    def flood() -> None:
        connection = HTTPConnection("127.0.0.1", served.port, timeout=120)
        for _ in range(10):
            connection.request("POST", "/api/draw", data, {"Content-Type": kind})
            response = connection.getresponse()
            statuses.append(response.status)
            response.read()
        connection.close()

    threads = [threading.Thread(target=flood) for _ in range(100)]
    for thread in threads:
        thread.start()
    made = served.pictures(FEW | {"client": "other"})
    for thread in threads:
        thread.join()
    assert {*statuses} == {200, 429} and len(statuses) == 1000
    assert all(np.array_equal(made[column], expected[column]) for column in expected)


# --------------------------------------------------------------------------------- the command


def test_the_page_waits_for_a_training_that_was_started_with_it(tmp_path):
    begin = threading.Timer(0.5, (tmp_path / "settings.json").touch)
    begin.start()
    await_run(tmp_path)
    assert (tmp_path / "settings.json").exists()


def test_files_that_are_no_models_are_refused_before_the_server_starts(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr("nanocontrol.page.__main__.PATIENCE", 0)
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    assert "--base" in refusal(page, capsys, "--base", "no.safetensors", "--port", "0")
    for file in (NANO, "no.safetensors"):
        said = refusal(page, capsys, "--control", file, "--port", "0")
        assert said.count("--control") == 1
    assert "--run" in refusal(page, capsys, "--run", str(tmp_path), "--port", "0")


def test_a_port_that_is_taken_is_refused(served, capsys):
    assert "--port" in refusal(page, capsys, "--port", str(served.port))


def test_without_its_packages_the_page_names_them(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'pip install -e ".[page]"' in refusal(page, capsys)


# ----------------------------------------------------------------------------------------- a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_gpu_shows_what_a_cpu_does():
    """Its steps are recorded graphs: every column has its own, whose tensors stay its own."""
    found = {}
    for device in "cpu", "cuda":
        models = Models(None, [], None, device)
        models.load()
        models.sd.unet.float(), models.sd.vae.float(), models.sd.text_encoder.float()
        for control in models.control("canny", None), models.control("depth", None):
            control[0].float()
        request = FEW | {"steps": 6, "control_to": 0.7}
        jobs = [
            Making(models, asked.wanted(models, request | {"seed": seed})).events()
            for seed in (0, 1)
        ]
        with torch.no_grad():
            rows = [event for pair in zip(*jobs) for event in pair]
        found[device] = [e["connections"] for e in rows if e.get("connections")]
    assert len(found["cpu"]) == len(found["cuda"]) == 10
    for ours, theirs in zip(found["cuda"], found["cpu"]):
        for a, b in zip(ours, theirs):
            assert a == pytest.approx(b, rel=0.02)
