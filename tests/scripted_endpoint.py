"""An OpenAI-compatible chat endpoint on this machine whose answers a function gives: for tests and rehearsals without a model."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

Script = Callable[[dict[str, Any]], "str | tuple[int, str] | tuple[int, str, dict[str, str]]"]


class ScriptedEndpoint:
    """While active, answers POST /v1/chat/completions on a free port of the loopback interface.

    Args:
        script: request body -> the answer's text, or (HTTP status, raw body, perhaps headers) to misbehave.
        usage: tokens in and out that each answer is said to have taken; nothing is said if None.

    Attributes:
        url: what a client takes, up to and including /v1.
        requests: the bodies that came, in order.
        headers: their headers, with names in lower case.
    """

    def __init__(self, script: Script, *, usage: tuple[int, int] | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        owner, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    owner.requests.append(body)
                    owner.headers.append({name.lower(): value for name, value in self.headers.items()})
                    answer = script(body)
                if isinstance(answer, str):
                    said: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": answer}}]}
                    if usage is not None:
                        said["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
                    answer = 200, json.dumps(said)
                if self.path != "/v1/chat/completions":
                    answer = 404, "no such path"
                data = answer[1].encode()
                self.send_response(answer[0])
                for name, value in {**(answer[2] if len(answer) == 3 else {}), "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
