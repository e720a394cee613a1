"""The annotation page's server: loopback, no accounts, opaque names for pairs and pictures, judgements on disk at once."""

import errno
import hashlib
import json
import secrets
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from portraitkit.errors import DataError, ImageError, RunFolderError
from portraitkit.pictures.images import image_size, read_image, to_pil, within
from portraitkit.serving import hosts_of, listen, page_app, read_body, server_of, url_of, warn_of_others
from preference_data.annotations import FOLDER, Judgement, append_judgement, both_orders, conflicts, file_of, judgement_of, read_judgements
from preference_data.commands.options import AnnotateConfig
from preference_data.schema import ASPECTS, DIMENSIONS, QUESTIONS, TITLES, Pair
from preference_data.verdict import Order

HERE = Path(__file__).parent
MAX_BODY, MAX_NAME = 64 * 1024, 60
SCREEN = 1280
"""Longest side in pixels of a picture as the page shows it first; it fetches larger ones whole when they are zoomed."""
Shown = dict[str, str]  # dimension (and "overall") -> "1", "2" or "tie": what is on the screen, not what the file is called


class Desk:
    """The pairs of one set that are to be judged, and what has been said about them."""

    def __init__(self, folder: Path, pairs: list[Pair]) -> None:
        self.folder, self.lock = folder, Lock()
        salt = folder / FOLDER / ".salt"  # a secret of the set: names of pairs and pictures tell nothing, and stay the same after a restart
        salt.parent.mkdir(parents=True, exist_ok=True)
        if not salt.is_file():
            salt.write_text(secrets.token_hex(16), encoding="utf-8")
        self.salt = salt.read_text(encoding="utf-8").strip()
        self.pairs = {self._token("pair", pair.id): pair for pair in pairs}
        self.files = {self._token("file", file): file for pair in pairs for file in (pair.input, pair.a, pair.b)}
        self.judgements = {(row.pair, row.annotator, row.role): row for row in both_orders(read_judgements(folder)[0])}

    def _token(self, kind: str, text: str) -> str:
        return hashlib.sha256(f"{self.salt} {kind} {text}".encode()).hexdigest()[:20]

    def order(self, pair: Pair, name: str) -> Order:
        """Which candidate this annotator sees as Image 1: half of the pairs each, and the same one after a reload."""
        return "ab" if hashlib.sha256(f"{self.salt} {pair.id} {name}".encode()).digest()[0] % 2 else "ba"

    def queue(self, name: str, role: str) -> list[dict[str, Any]]:
        """What this annotator is to judge: every pair, or for a senior the conflicts, settled ones included."""
        disputed = conflicts(list(self.judgements.values())) if role == "senior" else {}
        settled_pairs = {pair for pair, _, said_by in self.judgements if said_by == "senior"}
        rows = []
        for token, pair in self.pairs.items():
            done, settled = (pair.id, name, role) in self.judgements, pair.id in settled_pairs
            if role == "annotator" or pair.id in disputed or settled:
                rows.append({"pair": token, "done": done or settled if role == "senior" else done, "disputed": disputed.get(pair.id, [])})
        return rows

    def view(self, token: str, name: str, role: str) -> dict[str, Any]:
        """A pair as this annotator sees it; nothing tells which file is which."""
        pair = self.pairs[token]
        order = self.order(pair, name)
        first, second = (pair.a, pair.b) if order == "ab" else (pair.b, pair.a)
        mine = self.judgements.get((pair.id, name, role))
        files = {"photo": pair.input, "1": first, "2": second}
        pictures = {kind: f"/picture/{self._token('file', file)}" for kind, file in files.items()}
        whole = pictures
        with suppress(ImageError):
            if any(max(image_size(self.folder / file)) > SCREEN for file in files.values()):
                whole = {kind: f"{url}?whole=1" for kind, url in pictures.items()}
        said = {"answers": _shown(mine, order) if mine else {}, "note": mine.reasoning if mine else ""}
        return {"pair": token, "pictures": pictures, "whole": whole, **said}

    def save(self, token: str, name: str, role: str, answers: Shown, note: str, seconds: float | None) -> bool:
        """Store a judgement; returns whether it was new. The same judgement again changes nothing.

        Raises:
            DataError: an answer is missing or is not 1, 2 or tie.
        """
        pair = self.pairs[token]
        order = self.order(pair, name)
        names = {"1": order[0], "2": order[1], "tie": "tie"}
        if set(answers) != set(ASPECTS) or any(answer not in names for answer in answers.values()):
            raise DataError("answers: 1, 2 or tie is needed on each dimension and overall")
        row: dict[str, Any] = {"pair": pair.id, "annotator": name, "role": role, "order": order}
        row |= {"verdicts": {key: names[answers[key]] for key in DIMENSIONS}, "overall": names[answers["overall"]]}
        judgement = judgement_of(row | {"scores": None, "reasoning": note, "seconds": seconds})
        with self.lock:
            before = self.judgements.get((pair.id, name, role))
            if before is not None and (before.named, before.reasoning) == (judgement.named, judgement.reasoning):
                return False
            append_judgement(self.folder, judgement)
            self.judgements[pair.id, name, role] = judgement
        return True


def make_app(desk: Desk, *, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> Starlette:
    """The ASGI application; it may be asked for by the names `hosts`, others are refused (DNS rebinding)."""

    def state(request: Request) -> Response:
        name, role = _who(request.query_params)
        queue = desk.queue(name, role)
        facts = {"titles": TITLES | {"overall": "Overall"}, "questions": QUESTIONS | {"overall": "Which retouch would you hand over?"}}
        return JSONResponse({"queue": queue, "dimensions": ASPECTS, "set": desk.folder.resolve().name} | facts)

    def pair(request: Request) -> Response:
        name, role = _who(request.query_params)
        return JSONResponse(desk.view(_known(request.path_params["token"]), name, role))

    def _known(token: str) -> str:
        if token not in desk.pairs:
            raise HTTPException(404, "no such pair")
        return token

    async def judge(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            raise HTTPException(415, "JSON is needed")
        body = await read_body(request.stream(), MAX_BODY)
        try:
            row = json.loads(body)
            name, role = _who(row)
            token, answers, note, seconds = _known(row["pair"]), row["answers"], row.get("note", ""), row.get("seconds")
            new = await run_in_threadpool(desk.save, token, name, role, answers, note, seconds)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise HTTPException(400, f"malformed judgement ({type(error).__name__})") from error
        return JSONResponse({"saved": True, "new": new})

    def picture(request: Request) -> Response:
        file = desk.files.get(request.path_params["token"])
        if file is None:
            raise HTTPException(404, "no such picture")
        try:
            out, pixels = BytesIO(), read_image(desk.folder / file).pixels
            to_pil(pixels if "whole" in request.query_params else within(pixels, SCREEN)).save(out, "PNG", compress_level=1)
        except ImageError as error:
            raise HTTPException(410, str(error).replace(str(desk.folder), "")) from error
        return Response(out.getvalue(), media_type="image/png", headers={"cache-control": "private, max-age=3600"})

    def export(request: Request) -> Response:
        name, _ = _who(request.query_params)
        path = file_of(desk.folder, name)
        if not path.is_file():
            raise HTTPException(404, "nothing judged yet")
        return FileResponse(path, filename=path.name, media_type="application/jsonl")

    def refused(request: Request, error: Exception) -> Response:
        known = error if isinstance(error, HTTPException) else HTTPException(400, str(error))
        return JSONResponse({"error": known.detail}, known.status_code, headers=known.headers)

    def not_stored(request: Request, error: Exception) -> Response:
        cause = error.__cause__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return JSONResponse({"error": f"not stored: {'disk full' if full else getattr(cause, 'strerror', None) or 'cannot write'}"}, 507)

    def static(request: Request) -> Response:
        return FileResponse(HERE / (request.url.path[1:] or "page.html"))

    routes = [
        *(Route(path, static) for path in ("/", "/page.css", "/page.js", "/view.js")),
        Route("/api/state", state),
        Route("/api/pair/{token}", pair),
        Route("/api/judgement", judge, methods=["POST"]),
        Route("/picture/{token}", picture),
        Route("/export", export),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
    ]
    return page_app(routes, hosts, {DataError: refused, HTTPException: refused, RunFolderError: not_stored})


def _who(values: Any) -> tuple[str, str]:
    name, role = values.get("name"), values.get("role", "annotator")
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise DataError(f"name: must be 1 to {MAX_NAME} printable characters")
    if role not in ("annotator", "senior"):
        raise DataError("role: must be annotator or senior")
    return name.strip(), role


def _shown(judgement: Judgement, order: Order) -> Shown:
    names = {order[0]: "1", order[1]: "2", "tie": "tie"}
    return {name: names[verdict] for name, verdict in judgement.named.items()}


def serve_page(config: AnnotateConfig, pairs: list[Pair]) -> int:
    """Serve the pairs; returns 0 after Ctrl-C."""
    with listen(config.host, config.port) as listener:
        app = make_app(Desk(Path(config.data), pairs), hosts=hosts_of(config.host))
        url = url_of(config.host, listener)
        print(f"{len(pairs)} pairs at {url}/ (Ctrl-C ends; judgements are on disk as they come)", flush=True)
        warn_of_others(config.host, "can see the photos and judge them")
        with suppress(KeyboardInterrupt):
            server_of(app).run(sockets=[listener])
    return 0
