"""The HTTP side: who may ask for what, and how long it may be."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanocontrol.doctor.hints import TrainingHints
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.world import KINDS, draw, random_scene
from nanocontrol.page.asked import SCENE, SEED, THRESHOLDS, Refused, Sent, expect, fields_of, one_of
from nanocontrol.page.check import check_of, training_hints
from nanocontrol.page.command import command_for
from nanocontrol.page.making import Making
from nanocontrol.page.models import Models
from nanocontrol.page.preview import STATIC
from nanocontrol.page.sketch import as_picture, drawn_hint, png
from nanocontrol.page.worker import MOST, Worker, internal
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import as_tensor, cut_out, picture_size, read_image

BODY, PHOTO = 2**20, 10 * 2**20  # bytes, at most
LARGEST = 50 * 10**6  # pixels of a photo
PATIENCE = 20  # seconds for a request's body
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
HEADERS |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Guard:
    """Answers only to the page itself. Another site's page can send requests here, and its name can
    be made to lead here; but it cannot choose the headers Host and Origin."""

    def __init__(self, app: ASGIApp, hosts: str):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope) if scope["type"] == "http" else {}
        host = headers.get("host", "")
        own = re.fullmatch(self.hosts, host) and headers.get("origin") in (None, f"http://{host}")
        if scope["type"] == "http" and not own:
            answer = refused(Refused("this page answers only to its own address", 403))
            return await answer(scope, receive, sent)
        await self.app(scope, receive, sent)


def own_hosts(address: str, port: int) -> str:
    """A pattern for the Host headers of a server. If it listens to other machines, every numeric
    address is one: no other site's name looks like that."""
    local = address in ("127.0.0.1", "localhost", "::1")
    names = r"127\.0\.0\.1|localhost|\[::1\]" + ("" if local else r"|[\d.]+|\[[\da-f:]+\]")
    return rf"({names}|{re.escape(address)}){'(:80)?' if port == 80 else f':{port}'}"


def refused(error: InputError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, getattr(error, "status", 400))


async def body_of(request: Request, kind: str, most: int) -> bytes:
    """A request's body. Raises Refused if it is of another type, too long or too slow."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != kind:
        raise Refused(f"the body is of another type: expected {kind}", 415)
    too_long = Refused(f"the body is longer than {most // 2**20} MB", 413)
    if int(request.headers.get("content-length", "0")) > most:  # the server checked that it is one
        raise too_long
    data = bytearray()
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_long
    except (TimeoutError, ClientDisconnect):  # who has left reads no answer
        raise Refused(f"the body did not arrive within {PATIENCE} seconds", 408) from None
    return bytes(data)


class Page:
    """The answers. Everything that computes runs in the worker's thread."""

    def __init__(self, models: Models, out: Path):
        self.models, self.out = models, out
        self.training: dict[str, TrainingHints] = {}
        self.error, self.worker = "", Worker()
        self.worker.pool.submit(self.load)

    def load(self) -> None:
        """Load the models; later, measure the hints of their trainings."""
        try:
            self.models.load()
            for name in self.models.usable() if self.models.scenes else ():
                self.worker.pool.submit(self.measure, name)
        except Exception as error:
            self.error = str(error) if isinstance(error, InputError) else internal(error)

    def measure(self, condition: str) -> None:
        self.training[condition] = training_hints(condition, self.models.size)

    async def json(self, request: Request) -> Any:
        """The JSON of a request. Raises Refused while there are no models."""
        data = await body_of(request, "application/json", BODY)
        if not self.models.about["ready"]:
            raise Refused(self.error or "the models are still loading", 503)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise Refused("the body is not JSON") from None

    async def info(self, request: Request) -> Response:
        return JSONResponse(self.models.info() | ({"error": self.error} if self.error else {}))

    async def run(self, request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self.models.progress))

    def answering(self, function: Callable[[Any], dict]) -> Callable:
        """The endpoint for a function of a request's JSON."""

        async def endpoint(request: Request) -> Response:
            given = await self.json(request)
            return JSONResponse(await self.worker.call(lambda: function(given)))

        return endpoint

    def draw(self, given: Any) -> dict:
        one = fields_of(drawing=lambda given, name: self.models.drawing(given))
        drawing = one(given, "request").drawing
        hint = drawn_hint(drawing, drawing.condition, self.models.size)
        training = self.training.get(drawing.condition)
        check = training and check_of(hint, drawing.condition, training)
        return {"hint": png(hint), "empty": bool(hint.std() == 0), "check": check}

    def scene(self, given: Any) -> dict:
        """A scene with everything that its editor shows."""
        if not self.models.scenes:
            raise Refused("scenes are nano's: this base has no drawn world", 404)
        parts = {"scene": (SCENE, None), "random": (SEED, None), "kind": (one_of(KINDS), None)}
        found = fields_of(**parts)(given, "request")
        kinds = (found.kind,) if found.kind else KINDS
        expect(found.scene or found.random is not None, "request", "a scene or random")
        scene = found.scene or random_scene(found.random, kinds)
        drawing, n = draw(scene, self.models.size), len(scene.things)
        hints = {name: png(as_picture(CONDITIONS[name](drawing))) for name in self.models.usable()}
        prompt = scene.prompt.removeprefix(" on ")  # of a scene without objects
        notes = [] if n in (1, 2) else [f"{n} objects: the training's scenes have one or two"]
        answer = {"scene": asdict(scene), "prompt": prompt, "hints": hints, "notes": notes}
        return answer | {"picture": png(as_picture(drawing.image))}

    async def photo(self, request: Request) -> Response:
        """The middle of a photo, and its edges. Sent again, the middle stays as it is."""
        data = await body_of(request, "application/octet-stream", PHOTO)
        given = {n: int(x[:9]) if x.isdecimal() else x for n, x in request.query_params.items()}
        found, size = fields_of(**THRESHOLDS)(given, "request"), self.models.size
        expect(found.low <= found.high, "request.high", "no less than low")

        def answer() -> dict:
            photo = Sent(data, "the photo")
            width, height = picture_size(photo)  # before it is decoded
            expect(width * height <= LARGEST, str(photo), f"at most {LARGEST // 10**6} megapixels")
            pixels = as_tensor(cut_out(read_image(photo), (size, size), (0.5, 0.5)))
            return {"picture": png(pixels), "hint": png(canny(pixels, found.low, found.high))}

        return JSONResponse(await self.worker.call(answer))

    async def generate(self, request: Request) -> Response:
        given = await self.json(request)
        making = await self.worker.compute(lambda: Making(self.models, self.models.wanted(given)))
        if len(self.worker.latest) >= MOST:
            raise Refused("too many pictures are in the making: try again in a moment", 429)
        events = self.worker.stream(making.wanted.client, making.events())
        lines = (json.dumps(event).encode() + b"\n" async for event in events)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    def command(self, given: Any) -> dict:
        column = str(given.pop("column", None)) if isinstance(given, dict) else ""
        wanted = self.models.wanted(given)
        one_of(wanted.columns)(column, "request.column")
        return command_for(self.models, wanted, column, self.out)


def page_app(page: Page, hosts: str) -> ASGIApp:
    routes: list[Any] = [Route("/api/info", page.info), Route("/api/run", page.run)]
    posts = {"generate": page.generate, "photo": page.photo}
    posts |= {f.__name__: page.answering(f) for f in (page.draw, page.scene, page.command)}
    routes += [Route(f"/api/{name}", post, methods=["POST"]) for name, post in posts.items()]
    routes += [Mount("/static", StaticFiles(directory=STATIC))]
    routes += [Route("/", lambda request: FileResponse(STATIC / "index.html"))]
    handlers: Any = {InputError: lambda request, error: refused(error)}
    handlers[HTTPException] = lambda _, error: refused(Refused(error.detail, error.status_code))
    return Guard(Starlette(routes=routes, exception_handlers=handlers), hosts)
