"""`retouch-portrait --serve`: one process, one page; photos are dropped on it, retouched here and taken away again.

A photo lies in a temporary folder under a name that cannot be guessed until the server stops, what is made of it until it is sent; nothing
goes anywhere else. The retoucher runs once a photo; every move of a slider puts its parts together anew. On an address that other machines
reach, the page opens for those alone who have the link with its key.
"""

import json
import re
import secrets
import shutil
import signal
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from threading import RLock
from typing import Any, get_args, get_type_hints
from urllib.parse import parse_qsl, quote

from jaxtyping import Float
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from torch import Tensor

from policies.retoucher.retouch.faces import FacePlan, apply_controls, find_faces
from policies.retoucher.retouch.options import WRITABLE, Controls, RetouchConfig
from portraitkit.errors import ConfigError, UserError
from portraitkit.pictures.images import MAX_BYTES, Pixels, read_image, to_pil, within
from portraitkit.pictures.stored import write_edited
from portraitkit.serving import bounded, hosts_of, is_loopback, listen, page_app, read_body, server_of, url_of

HERE = Path(__file__).parent / "page"
STATIC = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
SCREEN = 1600
"""Longest side in pixels of a photo as the page shows it; what is downloaded has all of them."""
KEPT = 8
"""Photos that are kept ready for the sliders; earlier ones are looked at anew when they are shown again."""
MOST_NAME = 120
"""Bytes of a photo's name that are kept, beside its suffix."""
MAX_JSON = 2**20
COOKIE = "key-{port}"
"""Browsers send a machine's cookies to all of its ports: each page has one of its own, or two would log each other out."""
Analyse = Callable[[Pixels, Any], Iterable[FacePlan]]
Chosen = dict[int, dict[int, bool]]


@dataclass(frozen=True, eq=False)
class Opened:
    """A photo that is ready for the sliders."""

    plans: list[FacePlan]
    skipped: tuple[str, ...]
    shown: Float[Tensor, "3 h w"]  # the photo as large as the page shows it
    size: tuple[int, int]  # height and width of the photo
    notes: tuple[str, ...]  # what reading it changed or dropped


class Studio:
    """The photos of a visit, and the folder where they lie. The configuration has the sliders' first places, and what faces are too small;
    `analyse` is the retoucher's one pass, from a picture and its faces."""

    def __init__(self, folder: Path, config: RetouchConfig, analyse: Analyse) -> None:
        self.folder, self.config, self.analyse = folder, config, analyse
        self.lock = RLock()  # one photo at its full size at a time: a large one takes a gigabyte
        self.files: dict[str, Path] = {}
        self._opened: OrderedDict[str, Opened] = OrderedDict()

    def add(self, name: str, file: Path) -> dict[str, Any]:
        """Take a file in, which may go then; returns what the page is told about the photo.
        UserError: it cannot be read, or shows no face that can be retouched."""
        token = secrets.token_urlsafe(16)
        path = self.folder / token / safe_name(name)
        path.parent.mkdir()
        try:
            shutil.copyfile(file, path)
            opened = self.open(token, path)
        except Exception as error:
            shutil.rmtree(path.parent)
            if isinstance(error, UserError):
                raise type(error)(str(error).replace(f"{path.parent}/", "")) from error
            raise
        self.files[token] = path
        height, width = opened.size
        spots = [
            {"face": number, "spot": index, "x": spot.x / width, "y": spot.y / height, "radius": spot.radius / width, "kind": spot.kind}
            for number, plan in enumerate(opened.plans)
            for index, spot in enumerate(map(plan.in_picture, plan.parts.spots))
        ]
        notes = [*opened.skipped, *(note.replace(f"{path}: ", "") for note in opened.notes)]
        told = {"id": token, "name": path.name, "width": width, "height": height, "faces": len(opened.plans)}
        return told | {"spots": spots, "notes": notes}

    def file_of(self, token: str) -> Path:
        """Where a photo lies; HTTPException 404 where there is none of this name."""
        if token not in self.files:
            raise HTTPException(404, "This photo is gone; drop it again.")
        return self.files[token]

    def before(self, token: str) -> Float[Tensor, "3 h w"]:
        """A photo as it is, as large as the page shows it; the retoucher is not asked."""
        if (opened := self._opened.get(token)) is not None:
            return opened.shown
        path = self.file_of(token)
        with self.lock:
            return within(read_image(path, lean=True).pixels, SCREEN)

    def open(self, token: str, path: Path | None = None) -> Opened:
        """A photo, ready for the sliders."""
        path = path or self.file_of(token)
        if (opened := self._opened.get(token)) is None:  # a slider does not wait while another photo is at work
            with self.lock:
                if (opened := self._opened.get(token)) is None:
                    image = read_image(path, lean=True)
                    height, width = image.pixels.shape[1:]
                    faces = find_faces(image.pixels, self.config.smallest_face(height, width), path)
                    plans, shown = list(self.analyse(image.pixels, faces)), within(image.pixels, SCREEN)
                    opened = self._opened[token] = Opened(plans, faces.skipped, shown, (height, width), image.warnings)
                while len(self._opened) > KEPT:
                    self._opened.popitem(last=False)
        with suppress(KeyError):  # it may have had to go meanwhile
            self._opened.move_to_end(token)
        return opened

    def write(self, token: str, controls: Controls, chosen: Chosen) -> tuple[Path, tuple[str, ...]]:
        """Retouch a photo at its own size, in the terms of its file; returns the new file, and the faces left as they are, in words."""
        with self.lock:
            opened, path = self.open(token), self.files[token]
            image = read_image(path, lean=True)
            result = apply_controls(image.pixels, opened.plans, controls, chosen=chosen, skipped=opened.skipped)
            suffix = path.suffix if path.suffix.lower() in WRITABLE else ".png"
            target = path.parent / secrets.token_hex(4) / f"{path.stem}-retouched{suffix}"
            target.parent.mkdir()
            write_edited(image, result.strips(), target)
            return target, result.skipped


def safe_name(name: str) -> str:
    """A file's name without folders, hidden files' dots and what cannot be printed, and no longer than a disk takes.

    >>> safe_name("../../me.jpg"), safe_name("..")
    ('me.jpg', 'photo.png')
    """
    path = Path("".join(filter(str.isprintable, name.replace("\\", "/").rpartition("/")[2])).lstrip("."))
    suffix = path.suffix if len(path.suffix.encode()) <= 8 else ""
    stem = path.name.removesuffix(suffix).encode()[:MOST_NAME].decode(errors="ignore")
    return f"{stem}{suffix}" or "photo.png"


def read_settings(query: Mapping[str, str], config: RetouchConfig) -> tuple[Controls, Chosen]:
    """Controls and chosen spots from a query such as `tone=0.5&moles=keep&chosen=0.3.1_0.4.0` (face, spot, 1 removed or 0 kept).
    ConfigError: an impossible value."""
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(Controls)}
    for name, kind in ((name, kind) for name, kind in get_type_hints(Controls).items() if name in query and name in values):
        text = query[name]
        try:
            values[name] = float(text) if kind is float else {"0": False, "1": True}[text] if kind is bool else text
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{name} {text!r}: must be {'0 or 1' if kind is bool else 'a number'}") from error
        if get_args(kind) and text not in get_args(kind):
            raise ConfigError(f"{name} {text!r}: must be one of {', '.join(get_args(kind))}")
    chosen: Chosen = {}
    for entry in filter(None, query.get("chosen", "").split("_")):
        if not re.fullmatch(r"[0-9]{1,5}\.[0-9]{1,5}\.[01]", entry):
            raise ConfigError(f"chosen {entry!r}: must be face.spot.1 or face.spot.0")
        face, spot, removed = map(int, entry.split("."))
        chosen.setdefault(face, {})[spot] = removed == 1
    return Controls(**values), chosen


def make_app(studio: Studio, *, hosts: tuple[str, ...], key: str | None = None) -> Starlette:
    """The ASGI application. It may be asked for by the names `hosts`; others are refused (DNS rebinding). A visitor must bring the key, in
    the link the first time and in a cookie from then on; None asks for nothing."""
    archives: dict[str, Path] = {}  # the newest one alone

    def guarded(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            cookie = COOKIE.format(port=request.url.port)
            if key is not None and not secrets.compare_digest(request.cookies.get(cookie, "").encode(), key.encode()):
                if not secrets.compare_digest(request.query_params.get("key", "").encode(), key.encode()):
                    raise HTTPException(403, "Open the page by the link that retouch-portrait printed, with its key.")
                response = RedirectResponse("/", status_code=303)
                response.set_cookie(cookie, key, httponly=True, samesite="strict")
                return response
            if request.method == "POST" and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
                raise HTTPException(403, "This came from another site.")
            return await answer(request)

        return handler

    async def static(request: Request) -> Response:
        return FileResponse(HERE / STATIC[request.url.path])

    async def start(request: Request) -> Response:
        return JSONResponse({field.name: getattr(studio.config, field.name) for field in fields(Controls)})

    async def add(request: Request) -> Response:
        with NamedTemporaryFile(dir=studio.folder) as file:  # photos wait for their turn on the disk, not in memory
            async for chunk in bounded(request.stream(), MAX_BYTES):
                file.write(chunk)
            file.flush()
            return JSONResponse(await run_in_threadpool(studio.add, request.query_params.get("name", ""), Path(file.name)))

    def picture(pixels: Tensor, left: tuple[str, ...] = ()) -> Response:
        out = BytesIO()
        to_pil(pixels).save(out, "JPEG", quality=92, subsampling=0)
        headers = {"x-left": quote("; ".join(left)), "cache-control": "private, max-age=600"}
        return Response(out.getvalue(), media_type="image/jpeg", headers=headers)

    async def before(request: Request) -> Response:
        return await run_in_threadpool(lambda: picture(studio.before(request.path_params["token"])))

    async def after(request: Request) -> Response:
        controls, chosen = read_settings(request.query_params, studio.config)

        def draw() -> Response:
            opened = studio.open(request.path_params["token"])
            plans = [plan.scaled(opened.shown.shape[2] / opened.size[1]) for plan in opened.plans]
            result = apply_controls(opened.shown, plans, controls, chosen=chosen, skipped=opened.skipped)
            return picture(result.pixels, result.skipped)

        return await run_in_threadpool(draw)

    async def download(request: Request) -> Response:
        controls, chosen = read_settings(request.query_params, studio.config)
        path, _ = await run_in_threadpool(studio.write, request.path_params["token"], controls, chosen)  # `after` has said what was left
        return FileResponse(path, filename=path.name, background=BackgroundTask(shutil.rmtree, path.parent))

    async def pack(request: Request) -> Response:
        try:
            rows = [(str(row["id"]), dict(parse_qsl(row["settings"]))) for row in json.loads(await read_body(request.stream(), MAX_JSON))]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HTTPException(400, "needs a list of id and settings") from error
        if len({token for token, _ in rows}) < len(rows):
            raise HTTPException(400, "names a photo twice")

        def write() -> str:
            name = secrets.token_urlsafe(16)
            target = studio.folder / f"{name}.zip"
            try:
                with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
                    notes: list[str] = []
                    for number, (token, query) in enumerate(rows, 1):
                        path, left = studio.write(token, *read_settings(query, studio.config))
                        packed = f"{number}-{path.name}" if path.name in archive.namelist() else path.name
                        archive.write(path, packed)
                        notes += [f"{packed}: {face}\n" for face in left]
                        shutil.rmtree(path.parent)
                    if notes:
                        archive.writestr("left as it is.txt", "".join(notes))
            except BaseException:
                target.unlink()
                raise
            while archives:
                archives.popitem()[1].unlink()
            archives[name] = target
            return f"/archive/{name}"

        return JSONResponse({"url": await run_in_threadpool(write)})

    async def archive(request: Request) -> Response:
        if (path := archives.get(request.path_params["name"])) is None:
            raise HTTPException(404, "No such archive.")
        return FileResponse(path, filename="retouched.zip")

    async def refused(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, HTTPException) else HTTPException(400, str(error))
        return JSONResponse({"error": known.detail}, known.status_code, headers=known.headers)

    routes = [
        *(Route(path, guarded(static)) for path in STATIC),
        Route("/api/start", guarded(start)),
        Route("/api/photo", guarded(add), methods=["POST"]),
        Route("/api/archive", guarded(pack), methods=["POST"]),
        Route("/photo/{token}/before.jpg", guarded(before)),
        Route("/photo/{token}/after.jpg", guarded(after)),
        Route("/photo/{token}/download", guarded(download)),
        Route("/archive/{name}", guarded(archive)),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
    ]
    return page_app(routes, hosts, {UserError: refused, HTTPException: refused})


def serve_page(config: RetouchConfig, analyse: Analyse) -> int:
    """Serve until Ctrl-C, SIGTERM or until the terminal is closed; returns 0. Photos are deleted whichever it is."""

    def stop(*_: object) -> None:  # uvicorn finishes what is under way, and then raises the signal that it got once more
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else `nohup` wants it ignored
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    with listen(config.host, config.port) as listener, TemporaryDirectory(prefix="retouch-portrait-") as folder:
        key = None if is_loopback(config.host) else secrets.token_urlsafe(16)
        app = make_app(Studio(Path(folder), config, analyse), hosts=hosts_of(config.host), key=key)
        print(
            f"open {url_of(config.host, listener)}/{f'?key={key}' if key else ''} (Ctrl-C ends, and deletes the photos it was given)",
            flush=True,
        )
        if key:
            print("note: whoever has this link can use the page, and the connection is not encrypted", flush=True)
        with suppress(KeyboardInterrupt):
            server_of(app).run(sockets=[listener])
    return 0
