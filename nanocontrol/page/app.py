"""The HTTP side: what may be asked, by whom, and how long it may be."""

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanocontrol.doctor.hints import TrainingHints
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.world import KINDS, draw, joints_of, random_scene
from nanocontrol.page.asked import (
    Refused,
    Sent,
    choice,
    fields,
    picture,
    scene_of,
    sketch_of,
    wanted_of,
    whole,
)
from nanocontrol.page.check import check_of, measured_hints
from nanocontrol.page.command import command_for
from nanocontrol.page.making import made
from nanocontrol.page.models import Models
from nanocontrol.page.sketch import as_picture, hint_of, outline_of, png, prompt_of
from nanocontrol.page.worker import Job, Worker
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import as_tensor, cut_out, read_image

STATIC = Path(__file__).parent / "static"
BODY, PHOTO = 2**20, 10 * 2**20  # bytes, at most
PATIENCE = 20  # seconds for a request's body
JSON_TYPE, BYTES_TYPE = "application/json", "application/octet-stream"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Guard:
    """Answers only to the page itself: by its address, with the right type, and with its headers.

    Another site's page can send requests here, and can even let its own name lead here. It cannot
    choose the headers Host and Origin, or send JSON without asking first.
    """

    def __init__(self, app: ASGIApp, hosts: Callable[[str], bool]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.hosts(host) or origin not in (None, f"http://{host}"):
            refusal = refused(Refused("this page answers only to its own address", 403))
            return await refusal(scope, receive, sent)
        await self.app(scope, receive, sent)


def known_host(address: str, port: int) -> Callable[[str], bool]:
    """Whether a Host header names this server. A numeric address cannot be another site's name."""
    names = {"localhost", address, socket.gethostname()}

    def known(host: str) -> bool:
        name, _, number = host.rpartition(":")
        if number != str(port):
            return False
        try:
            own = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name in names
        return own.is_loopback or not ipaddress_of(address).is_loopback

    return known


def ipaddress_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(socket.gethostbyname(address))
    except (OSError, ValueError):
        return ipaddress.ip_address("127.0.0.1" if address == "localhost" else address)


def refused(error: Refused) -> JSONResponse:
    return JSONResponse({"error": str(error)}, error.status)


async def body_of(request: Request, kind: str, most: int) -> bytes:
    """A request's body. Raises Refused if it is of another type, too long or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != kind:
        raise Refused(f"expected a body of type {kind}", 415)
    length = request.headers.get("content-length", "0")
    data = bytearray()
    too_long = Refused(f"the body is longer than {most // 2**20} MB", 413)
    if not length.isdecimal() or int(length) > most:
        raise too_long
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_long
    except TimeoutError:
        raise Refused(f"the body did not arrive within {PATIENCE} seconds", 408) from None
    return bytes(data)


class Page:
    """The answers. Everything that computes runs in the worker's thread."""

    def __init__(self, models: Models, out: Path):
        self.models, self.out = models, out
        self.training: dict[str, TrainingHints] = {}
        self.worker = Worker(self.prepare)

    def prepare(self) -> None:
        self.models.load()
        if self.models.scenes:
            for name in self.models.usable():
                hints = measured_hints(name, self.models.size, self.training)
                self.worker.start(Job(f"measure {name}", hints))

    async def json(self, request: Request) -> Any:
        data = await body_of(request, JSON_TYPE, BODY)
        if self.worker.error or not self.models.about["ready"]:
            raise Refused(self.worker.error or "the models are still loading", 503)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise Refused("expected JSON") from None

    def known(self) -> dict[str, int]:
        return dict.fromkeys(self.models.conditions(), 0) | self.models.usable()

    async def info(self, request: Request) -> Response:
        about = self.models.about
        return JSONResponse(about | ({"error": self.worker.error} if self.worker.error else {}))

    async def draw(self, request: Request) -> Response:
        given = fields(await self.json(request), "request", ("drawing",), ("drawing",))
        size = self.models.size

        def answer() -> dict:
            sketch = sketch_of(given["drawing"], self.known(), size, self.models.scenes)
            hint = hint_of(sketch, sketch.condition, size)
            training = self.training.get(sketch.condition)
            check = training and check_of(hint, sketch.condition, training)
            return {"hint": png(hint), "empty": bool(hint.std() == 0), "check": check}

        return JSONResponse(await self.worker.call(answer))

    async def scene(self, request: Request) -> Response:
        given = fields(await self.json(request), "request", ("scene", "random", "kind"))
        if not self.models.scenes:
            raise Refused("scenes are nano's: this base has no drawn world", 404)
        if "random" in given:
            kinds = (choice(given["kind"], "kind", KINDS),) if "kind" in given else KINDS
            scene = random_scene(whole(given["random"], "random", 0, 2**31 - 1), kinds)
        else:
            scene = scene_of(given.get("scene"))
        return JSONResponse(await self.worker.call(lambda: seen(scene, self.models)))

    async def photo(self, request: Request) -> Response:
        data = await body_of(request, BYTES_TYPE, PHOTO)
        low, high = thresholds(*(request.query_params.get(n, d) for n, d in LOW_HIGH))
        size = self.models.size

        def answer() -> dict:
            photo = as_tensor(
                cut_out(read_image(Sent(data, "the photo")), (size, size), (0.5, 0.5))
            )
            return {"picture": png(photo), "hint": png(canny(photo, low, high))}

        return JSONResponse(await self.worker.call(answer))

    async def edges(self, request: Request) -> Response:
        given = fields(
            await self.json(request), "request", ("picture", "low", "high"), ("picture",)
        )
        low, high = thresholds(*(str(given.get(name, default)) for name, default in LOW_HIGH))

        def answer() -> dict:
            photo = picture(given["picture"], "picture", self.models.size)
            return {"hint": png(canny(photo, low, high))}

        return JSONResponse(await self.worker.call(answer))

    def wanted(self, given: Any) -> Any:
        models = self.models
        known = self.known()
        wanted = wanted_of(given, known, models.size, models.scenes, models.sd.guidance)
        for column in wanted.columns:
            if column in known:
                models.control(column, wanted.run_step)  # refuses one without weights
        return wanted

    async def generate(self, request: Request) -> Response:
        given = await self.json(request)
        wanted = await self.worker.call(lambda: self.wanted(given))
        job = Job(wanted.client, made(self.models, wanted), asyncio.get_running_loop())
        self.worker.start(job)

        async def lines() -> AsyncIterator[bytes]:
            async for event in self.worker.stream(job):
                yield json.dumps(event).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def command(self, request: Request) -> Response:
        given = await self.json(request)
        if not isinstance(given, dict) or "column" not in given:
            raise Refused("request: the field 'column' is missing")
        column = given.pop("column")

        def answer() -> dict:
            wanted = self.wanted(given)
            return command_for(
                self.models, wanted, choice(column, "column", wanted.columns), self.out
            )

        return JSONResponse(await self.worker.call(answer))

    async def run(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.models.progress))


LOW_HIGH = ("low", "100"), ("high", "200")


def thresholds(low: str, high: str) -> tuple[int, int]:
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high) <= 1000):
        raise Refused("low, high: expected whole numbers, 0 <= low <= high <= 1000")
    return int(low), int(high)


def seen(scene: Any, models: Models) -> dict[str, Any]:
    """A scene with everything that its editor shows."""
    drawing = draw(scene, models.size)
    hints = {name: hint for name, hint in CONDITIONS.items() if name in models.usable()}
    n = len(scene.things)
    notes = [] if n in (1, 2) else [f"{n} objects: the training's scenes have one or two"]
    return {
        "scene": asdict(scene),
        "prompt": prompt_of(scene),
        "picture": png(as_picture(drawing.image)),
        "hints": {name: png(as_picture(make(drawing))) for name, make in hints.items()},
        "joints": [joints_of(t).tolist() if t.kind == "figure" else None for t in scene.things],
        "outlines": [outline_of(thing) for thing in scene.things],
        "notes": notes,
    }


def page_app(page: Page, hosts: Callable[[str], bool]) -> ASGIApp:
    async def on_refused(request: Request, error: Any) -> Response:
        return refused(error if isinstance(error, Refused) else Refused(str(error)))

    async def on_http(request: Request, error: Any) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code)

    get = {"/": "index.html", "/first.json": "first.json"}
    routes: list[Any] = [
        Route(path, lambda request, name=name: FileResponse(STATIC / name))
        for path, name in get.items()
    ]
    for name in "info", "run":
        routes.append(Route(f"/api/{name}", getattr(page, name)))
    for name in "draw", "scene", "photo", "edges", "generate", "command":
        routes.append(Route(f"/api/{name}", getattr(page, name), methods=["POST"]))
    routes.append(Mount("/static", StaticFiles(directory=STATIC)))
    handlers: Any = {InputError: on_refused, HTTPException: on_http}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts)
