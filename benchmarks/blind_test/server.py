"""`blind-test serve`: one process, one study, a few pages, a small JSON interface, and pictures under opaque tokens.

What a browser learns: the question, the rater's own progress, and for every comparison the addresses of its two pictures. Those are made
of the comparison's own random token and the side, and answer to its rater alone: they stay the same when the page is loaded again, and tell
neither the method nor that a picture was seen before. Method names, photo names and paths stay here. Every answer carries a strict content
security policy; bodies are bounded; other hosts' pages cannot post.
"""

import contextlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
from filelock import FileLock, Timeout
from rich.console import Console
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from benchmarks.blind_test.options import ServeConfig
from benchmarks.blind_test.study import CONSENT, VOTES, Study, read_study
from benchmarks.blind_test.vote_store import CHOICES, Trial, VoteStore
from portraitkit.errors import RunFolderError
from portraitkit.report.page import page_environment
from portraitkit.serving import hosts_of, listen, page_app, read_body, server_of, url_of, warn_of_others

MAX_BODY = 4096
COOKIE = "rater"
COOKIE_DAYS = 60
PREFETCH = 2
KEEP_ALIVE = 300
"""Seconds that a connection stays open without a request: longer than people look at a pair, so that no answer meets a closing one."""
HERE = Path(__file__).parent
STATIC = {"page.css": "text/css", "vote.js": "text/javascript", "icon.svg": "image/svg+xml"}


def serve_study(config: ServeConfig) -> int:
    """Serve until interrupted; returns 0 after a clean stop."""
    console = Console(stderr=True, highlight=False)
    study = read_study(config.folder)
    try:
        lock = FileLock(config.folder / ".serve.lock").acquire(timeout=0)
    except Timeout as error:
        raise RunFolderError(f"{config.folder}: another process serves this study; stop it first") from error
    except PermissionError as error:
        raise RunFolderError(f"{config.folder}: cannot be written ({error.strerror}); votes need a folder of your own") from error
    with lock, contextlib.closing(VoteStore(config.folder / VOTES, study)) as store, listen(config.host, config.port) as listener:
        app = build_app(study, store, allowed_hosts=hosts_of(config.host, config.allowed_hosts), max_raters=config.max_raters)
        console.print(f"{config.folder}: {store.count_raters()} raters so far", markup=False, soft_wrap=True)
        warn_of_others(config.host, "can see the pictures and vote")
        console.print(f"open {url_of(config.host, listener)}/ ; Ctrl-C stops, nothing is lost", markup=False, soft_wrap=True)
        server_of(app, timeout_graceful_shutdown=3, timeout_keep_alive=KEEP_ALIVE).run(sockets=[listener])
    return 0


def build_app(study: Study, store: VoteStore, *, allowed_hosts: Sequence[str] = ("*",), max_raters: int = 10_000) -> Starlette:
    """The application; votes go to `store`, which is used from the event loop's thread only. Only `allowed_hosts` in the Host header are
    answered.
    """
    pages = _Pages(study, store, max_raters)
    routes = [
        Route("/", pages.consent),
        Route("/start", pages.start, methods=["POST"]),
        Route("/vote", pages.vote),
        Route("/later", pages.later),
        Route("/done", pages.done),
        Route("/r/{token}", pages.resume),
        Route("/api/trial", pages.api_trial),
        Route("/api/vote", pages.api_vote, methods=["POST"]),
        Route("/picture/{token}/{side}", pages.picture),
        Route("/static/{name}", pages.static),
    ]
    return page_app(routes, allowed_hosts, {HTTPException: pages.refuse, sqlite3.OperationalError: pages.not_stored})


class _Pages:
    """The handlers, one a route."""

    def __init__(self, study: Study, store: VoteStore, max_raters: int) -> None:
        self.study, self.store, self.max_raters = study, store, max_raters
        self._templates = page_environment(HERE / "templates")
        self._length = study.photos_per_rater + study.attention_checks
        self._has_reference = any(photo.reference for photo in study.photos)

    # ---- pages

    async def consent(self, request: Request) -> Response:
        text = (self.study.folder / CONSENT).read_text(encoding="utf-8", errors="replace")
        paragraphs = [" ".join(part.split()) for part in text.replace("\r", "").split("\n\n") if part.strip()]
        trials = self._trials_or_none(request)
        answered = sum(trial.choice is not None for trial in trials or [])
        return self._page("consent.html.j2", paragraphs=paragraphs, started=trials is not None, answered=answered)

    async def start(self, request: Request) -> Response:
        _refuse_other_sites(request)
        form = parse_qs((await read_body(request.stream(), MAX_BODY)).decode("utf-8", "replace"))
        if self._trials_or_none(request) is not None:
            return RedirectResponse("/vote", status_code=303)
        if form.get("agree") != ["yes"]:
            raise HTTPException(400, "Please tick the box to say that you take part.")
        if self.store.count_raters() >= self.max_raters:
            raise HTTPException(503, "Enough people have taken part already. Thank you!")
        return self._enter(request, self.store.add_rater())

    async def resume(self, request: Request) -> Response:
        token = request.path_params["token"]
        if self.store.find_rater(token) is None:
            raise HTTPException(404, "This link belongs to no one here. Was it copied as a whole?")
        return self._enter(request, token)

    async def vote(self, request: Request) -> Response:
        trials = self._trials_or_none(request)
        if trials is None:
            return RedirectResponse("/", status_code=303)
        if all(trial.choice for trial in trials):
            return RedirectResponse("/done", status_code=303)
        return self._page("vote.html.j2", question=self.study.question, has_reference=self._has_reference)

    async def later(self, request: Request) -> Response:
        trials = self._trials_or_none(request)
        if trials is None:
            return RedirectResponse("/", status_code=303)
        link = str(request.base_url.replace(path=f"/r/{request.cookies[COOKIE]}"))
        return self._page("later.html.j2", link=link, answered=sum(trial.choice is not None for trial in trials))

    async def done(self, request: Request) -> Response:
        trials = self._trials_or_none(request)
        if trials is None or not all(trial.choice for trial in trials):
            return RedirectResponse("/vote", status_code=303)
        return self._page(
            "message.html.j2", title="Thank you", text=f"All {len(trials)} answers are stored. You can close this page.", link=None
        )

    # ---- JSON

    async def api_trial(self, request: Request) -> Response:
        trials = self._trials_or_none(request)
        if trials is None:
            return JSONResponse({"error": "no session"}, status_code=401)
        return JSONResponse(self._state(trials, request.query_params.get("position")))

    async def api_vote(self, request: Request) -> Response:
        _refuse_other_sites(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return JSONResponse({"error": "send application/json"}, status_code=415)
        body = await read_body(request.stream(), MAX_BODY)
        rater = self._rater(request)
        if rater is None:
            return JSONResponse({"error": "no session"}, status_code=401)
        try:
            vote = json.loads(body)
            token, choice, revise = vote["trial"], vote["choice"], vote.get("revise", False)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return JSONResponse({"error": "needs trial and choice"}, status_code=400)
        if not isinstance(token, str) or not token.isascii():
            return JSONResponse({"error": "trial must be the token of a comparison"}, status_code=400)
        if choice not in CHOICES or not isinstance(revise, bool):
            return JSONResponse({"error": f"choice must be one of {', '.join(CHOICES)}"}, status_code=400)
        stored = self.store.vote(rater, token, choice, revise=revise)
        if stored is None:
            return JSONResponse({"error": "no such comparison"}, status_code=404)
        return JSONResponse({"stored": stored} | self._state(self.store.trials(rater), None))

    def _state(self, trials: list[Trial], position: str | None) -> dict[str, Any]:
        """The comparison to show: the first one without an answer, or an earlier one that was asked for."""
        open_ones = [trial for trial in trials if trial.choice is None]
        current = open_ones[0] if open_ones else None
        reached = current.position if current else len(trials)
        if position is not None and position.isascii() and position.isdigit() and len(position) < 6 and int(position) < reached:
            current = trials[int(position)]
        if current is not None and current.choice is None:
            self.store.mark_shown(current)
        ahead = [url for trial in open_ones[: PREFETCH + 1] if trial is not current for url in self._pictures(trial).values() if url]
        state: dict[str, Any] = {"total": len(trials), "answered": len(trials) - len(open_ones), "ahead": ahead, "trial": None}
        if current is not None:
            state["trial"] = {"token": current.token, "position": current.position, "choice": current.choice} | self._pictures(current)
        return state

    def _pictures(self, trial: Trial) -> dict[str, str | None]:
        sides = ["left", "right", *(["reference"] if self.study.photos[trial.cell.photo].reference else [])]
        return {"reference": None} | {side: f"/picture/{trial.token}/{side}" for side in sides}

    # ---- files

    async def picture(self, request: Request) -> Response:
        rater, side = self._rater(request), request.path_params["side"]
        trial = None if rater is None else self.store.find_trial(rater, request.path_params["token"])
        if trial is None or side not in ("left", "right", "reference"):
            raise HTTPException(404, "No such picture.")
        cell = trial.cell
        left, right = self.study.shown(cell.photo, cell.pair, cell.swapped)
        token = {"left": left, "right": right, "reference": self.study.photos[cell.photo].reference}[side]
        if token is None:
            raise HTTPException(404, "No such picture.")
        path = self.study.pictures[token]
        data = await anyio.Path(path).read_bytes()
        kind = "image/png" if self.study.image_format == "png" else "image/jpeg"
        return Response(data, media_type=kind, headers={"cache-control": "private, max-age=86400, immutable"})

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404, "No such file.")
        data = (HERE / "static" / name).read_bytes()
        return Response(data, media_type=STATIC[name], headers={"cache-control": "no-cache"})

    # ---- refusals

    async def refuse(self, request: Request, error: HTTPException) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)
        words = "There is no such page." if error.detail == "Not Found" else error.detail
        page = self._page("message.html.j2", title="Not here" if error.status_code == 404 else "One moment", text=words, link="/")
        page.status_code = error.status_code
        return page

    async def not_stored(self, request: Request, error: sqlite3.OperationalError) -> Response:
        return JSONResponse({"error": f"not stored: {error}"}, status_code=503, headers={"retry-after": "2"})

    # ---- small parts

    def _page(self, template: str, **values: object) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(template).render(study=self.study, length=self._length, **values))

    def _rater(self, request: Request) -> int | None:
        token = request.cookies.get(COOKIE)
        return self.store.find_rater(token) if token else None

    def _trials_or_none(self, request: Request) -> list[Trial] | None:
        rater = self._rater(request)
        return None if rater is None else self.store.trials(rater)

    def _enter(self, request: Request, token: str) -> Response:
        response = RedirectResponse("/vote", status_code=303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, token, max_age=COOKIE_DAYS * 86400, httponly=True, samesite="lax", secure=secure)
        return response


def _refuse_other_sites(request: Request) -> None:
    """A form on another site may not act for a rater."""
    origin = request.headers.get("origin")
    if request.headers.get("sec-fetch-site") == "cross-site" or (origin and urlsplit(origin).netloc != request.headers.get("host")):
        raise HTTPException(403, "This came from another site.")
