"""The HTTP side: who may ask for what, and how long it may be."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn import Config

from nanocontrol.page.asked import THRESHOLDS, Refused, Sent, drawing, expect, fields_of, wanted
from nanocontrol.page.check import check_of, training_hints
from nanocontrol.page.making import Making, command_for
from nanocontrol.page.models import STATIC, Models
from nanocontrol.page.sketch import as_picture, drawn, drawn_hint, is_empty, png
from nanocontrol.page.worker import Worker, explained
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import as_tensor, cut_out, picture_size, read_image

BODY, PHOTO = 2**20, 10 * 2**20  # bytes, at most
LARGEST = 50 * 10**6  # pixels of a photo
POLICY = "default-src 'self'; img-src 'self' data: blob:"
POLICY += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
HEADERS |= {"Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


def guarded(app: ASGIApp, hosts: str) -> ASGIApp:
    """The app, for the page itself only. Another site's page can send requests here, and its name
    can be made to lead here; but it cannot choose the headers Host and Origin."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        own = re.fullmatch(hosts, host) and headers.get("origin") in (None, f"http://{host}")
        foreign = refused(None, Refused("this page answers only to its own address", 403))
        await (app if own else foreign)(scope, receive, send)

    return answer


def own_hosts(address: str, port: int) -> str:
    """A pattern for the Host headers of a server. If it listens to other machines, every numeric
    address is one: no other site's name looks like that."""
    local = address in ("127.0.0.1", "localhost", "::1")
    names = r"127\.0\.0\.1|localhost|\[::1\]" + ("" if local else r"|[\d.]+|\[[\da-f:]+\]")
    return rf"({names}|{re.escape(address)}){'(:80)?' if port == 80 else f':{port}'}"


def refused(request: Request | None, error: Exception) -> JSONResponse:
    """The answer to an InputError, or to an error of Starlette."""
    sentence = getattr(error, "detail", str(error))
    return JSONResponse({"error": sentence}, getattr(error, "status_code", 400))


async def body_of(request: Request, kind: str, most: int) -> bytes:
    """A request's body. Raises Refused if it is of another type, or not known to be short."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != kind:
        raise Refused(f"the body is of another type: expected {kind}", 415)
    # The server checked the number, and refuses a length for a body that comes in parts.
    if int(request.headers.get("content-length", most + 1)) > most:
        raise Refused(f"the body is longer than {most // 2**20} MB or of unknown length", 413)
    return await request.body()


class Page:
    """The answers. Everything that computes runs in the worker's thread."""

    def __init__(self, models: Models, out: Path):
        self.models, self.out, self.worker = models, out, Worker()
        self.worker.pool.submit(self.load)  # requests wait for it

    def load(self) -> None:
        """Load the models, then measure the hints of their trainings."""
        try:
            self.models.load()
            for name in self.models.usable() if self.models.scenes else ():
                self.worker.pool.submit(training_hints, name, self.models.size)
        except Exception as error:
            self.models.about = {"ready": False, "error": str(explained(error))}

    def answering(self, function: Callable[[Any], Any]) -> Callable:
        """The endpoint for a function of a request's JSON. Pictures are answered as a stream."""

        async def endpoint(request: Request) -> Response:
            try:
                given = json.loads(await body_of(request, "application/json", BODY))
            except (ValueError, RecursionError):
                raise Refused("the body is not JSON") from None
            if error := self.models.about.get("error"):
                raise Refused(error, 503)
            makes = function == self.generate  # however many short calls of others wait
            others = len(self.worker.latest) if makes else self.worker.waiting
            found = await self.worker.call(partial(function, given), others)
            if not makes:
                return JSONResponse(found)
            events = self.worker.stream(found.wanted.client, found.events())
            lines = (json.dumps(event) + "\n" async for event in events)
            return StreamingResponse(lines, media_type="application/x-ndjson")

        return endpoint

    def generate(self, given: Any) -> Making:
        return Making(self.models, wanted(self.models, given))

    def command(self, given: Any) -> dict:
        return command_for(self.models, wanted(self.models, given), self.out)

    def draw(self, given: Any) -> dict:
        """A drawing's hint, and whether it is like those of the training. A scene is answered with
        everything that its editor shows."""
        check, models = fields_of(drawing=partial(drawing, self.models)), self.models
        sketch = check(given, "request").drawing
        hint, scene = drawn_hint(sketch, sketch.condition, models.size), sketch.scene
        answer = {"hint": png(hint), "empty": is_empty(hint)}
        answer |= {"check": check_of(hint, sketch.condition) if models.scenes else None}
        if scene is None:
            return answer
        n, names = len(scene.things), models.usable()
        hints = {name: png(drawn_hint(sketch, name, models.size)) for name in names}
        prompt = scene.prompt.removeprefix(" on ")  # of a scene without objects
        notes = [] if n in (1, 2) else [f"{n} objects: the training's scenes have one or two"]
        answer |= {"scene": asdict(scene), "prompt": prompt, "hints": hints, "notes": notes}
        return answer | {"picture": png(as_picture(drawn(scene, models.size).image))}

    async def photo(self, request: Request) -> Response:
        """The middle of a photo, and its edges. Sent again, the middle stays as it is."""
        photo = Sent(await body_of(request, "application/octet-stream", PHOTO))
        given = {n: int(x[:9]) if x.isdecimal() else x for n, x in request.query_params.items()}
        found, size = fields_of(**THRESHOLDS)(given, "request"), self.models.size
        expect(found.low <= found.high, "request.high", "no less than low")

        def answer() -> dict:
            width, height = picture_size(photo)  # before it is decoded
            expect(width * height <= LARGEST, str(photo), f"at most {LARGEST // 10**6} megapixels")
            pixels = as_tensor(cut_out(read_image(photo), (size, size), (0.5, 0.5)))
            return {"picture": png(pixels), "hint": png(canny(pixels, found.low, found.high))}

        return JSONResponse(await self.worker.call(answer, self.worker.waiting))


def served_at(page: Page, hosts: str) -> Config:
    """The page for a server with these Host headers."""
    routes: list[Any] = [Route("/api/info", lambda request: JSONResponse(page.models.info()))]
    routes += [Route("/api/run", lambda request: JSONResponse(page.models.progress()))]
    functions = page.generate, page.command, page.draw
    posts = {f.__name__: page.answering(f) for f in functions} | {"photo": page.photo}
    routes += [Route(f"/api/{name}", post, methods=["POST"]) for name, post in posts.items()]
    routes += [Mount("/static", StaticFiles(directory=STATIC))]
    routes += [Route("/", lambda request: FileResponse(STATIC / "index.html"))]
    # Who has left reads no answer.
    handlers: Any = dict.fromkeys((InputError, HTTPException, ClientDisconnect), refused)
    app = guarded(Starlette(routes=routes, exception_handlers=handlers), hosts)
    sent: Any = {"headers": [*HEADERS.items()], "log_level": "warning"}
    return Config(app, lifespan="off", ws="none", timeout_graceful_shutdown=1, **sent)
