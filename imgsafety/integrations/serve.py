"""The check as a service: FastAPI in front of one shared `Scanner`.

In: pictures in request bodies. Out: `Result`s as JSON, with status 200 whatever the verdict is: read `verdict`. What a
reader would get wrong: multipart libraries put large parts into temporary files. This one must not: pixels stay in memory.
Requests are judged together in micro-batches; what takes longer than `timeout` is answered `undecided`.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import prometheus_client
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from imgsafety import __version__
from imgsafety.errors import SetupError
from imgsafety.result import SEVERITY, Result
from imgsafety.scan import Scanner
from imgsafety.selftest import SelfTest, Step, run_selftest

HEALTH_IS_NEWS_FOR = 5.0  # seconds; probes more often than this are answered from memory, so that they cannot be a load
LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """max_bytes: of one request body. max_files: pictures in one batch. timeout: seconds for a body to arrive, and
    again for its pictures to be judged; a connection that takes as long for a header is closed. max_connections: at once; more
    are answered 503.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_files: int = 64
    timeout: float = 10.0
    max_connections: int = 128


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request could not be answered with results."""

    detail: str


@dataclass(frozen=True, slots=True)
class Batch:
    """One result per picture, in the order of the parts."""

    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """`ok` when every step of the self-test passed."""

    status: Literal["ok", "failed"]
    model: str
    policy: str
    steps: tuple[Step, ...]


def create_app(scanner: Scanner, limits: ServiceLimits | None = None, token: str | None = None) -> FastAPI:
    """Make the application. It takes the scanner over: at start it runs the self-test, at the end it closes it.

    token: when given, every endpoint but `/healthz` and the description wants it as `Authorization: Bearer …`.
    """
    service = _Service(scanner, limits or ServiceLimits())
    app = FastAPI(title="imgsafety", version=__version__, description=_DESCRIPTION, lifespan=service.lifespan)
    guarded: dict[str, Any] = {"dependencies": [Depends(_require(token))] if token else []}
    problems = {status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items() if token or status != 401}
    judged: dict[str, Any] = {**guarded, "methods": ["POST"], "responses": problems}
    app.add_api_route("/check", service.check, response_model=Result, openapi_extra=_body(_ANY_PICTURE, _parts("file")), **judged)
    app.add_api_route("/check-batch", service.check_batch, response_model=Batch, openapi_extra=_body(_MANY_PARTS), **judged)
    app.add_api_route(
        "/check-edit", service.check_edit, response_model=Result, openapi_extra=_body(_parts("before", "after")), **judged
    )
    app.add_api_route(
        "/healthz", service.healthz, response_model=Health, responses={503: {"model": Health, "description": "Self-test failed"}}
    )
    app.add_api_route(
        "/metrics",
        service.metrics,
        response_class=Response,
        responses=_METRICS | {401: problems[401]} if token else _METRICS,
        **guarded,
    )
    return app


def serve(app: FastAPI, host: str, port: int, limits: ServiceLimits) -> None:
    """Answer until SIGINT or SIGTERM; then take no more, finish what was begun, and return.

    Raises `SetupError` when the service cannot start.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_impatient(limits.timeout),
        access_log=False,
        limit_concurrency=limits.max_connections,
        timeout_graceful_shutdown=int(2 * limits.timeout) + 1,
        server_header=False,
    )
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        raise SetupError(f"the service could not start on {host} port {port}; see above")


def _impatient(timeout: float) -> type[H11Protocol]:
    """Make uvicorn's protocol close what sends no whole header in time: it waits for ever, and counts it as a connection."""

    class Impatient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
            super().connection_made(transport)
            self._look_later()

        def _look_later(self) -> None:
            self.loop.call_later(timeout, self._look, self.cycle, self._waits())

        def _look(self, cycle: object, waited: bool) -> None:
            if waited and self.cycle is cycle:
                self.transport.close()
            elif not self.transport.is_closing():
                self._look_later()

        def _waits(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

    return Impatient


class _Service:
    """The endpoints, with the one scanner and the counters that they share."""

    def __init__(self, scanner: Scanner, limits: ServiceLimits) -> None:
        self.scanner, self.limits = scanner, limits
        self.registry = prometheus_client.CollectorRegistry()
        self.images = prometheus_client.Counter("imgsafety_images", "Pictures judged.", registry=self.registry)
        self.verdicts = prometheus_client.Counter("imgsafety_verdicts", "Verdicts given.", ["verdict"], registry=self.registry)
        self.timeouts = prometheus_client.Counter(
            "imgsafety_timeouts", "Pictures undecided for lack of time.", registry=self.registry
        )
        self.latency = prometheus_client.Histogram(
            "imgsafety_latency_seconds", "From complete body to verdict.", registry=self.registry, buckets=LATENCY_BUCKETS
        )
        for verdict in SEVERITY:  # a counter that is absent until it happens cannot be alerted on
            self.verdicts.labels(verdict)
        self._health: tuple[float, SelfTest] | None = None
        self._health_lock = asyncio.Lock()

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(self.scanner.selftest)  # raises, and then the server does not start
        yield
        await asyncio.to_thread(self.scanner.close)

    async def check(self, request: Request) -> Response:
        """Judge one picture: the body is the file itself, or multipart with one part `file`."""
        if not _is_multipart(request):
            return _json(await self._judge(await self._read(request)))
        (file,) = await self._files(request, ("file",))
        return _json(await self._judge(file.data, file.name))

    async def check_batch(self, request: Request) -> Response:
        """Judge many pictures: multipart, one part per picture, whatever its name."""
        files = await self._files(request, None)
        results = await asyncio.gather(*(self._judge(file.data, file.name) for file in files))
        return JSONResponse({"results": [result.to_dict() for result in results]})

    async def check_edit(self, request: Request) -> Response:
        """Judge `after`, an edit of `before`: was somebody undressed? Multipart with these two parts."""
        before, after = await self._files(request, ("before", "after"))
        work = asyncio.to_thread(self.scanner.check_edit, before.data, after.data)
        return _json(await self._in_time(work, after.name))

    async def healthz(self) -> Response:
        """Run the self-test: drawn frames through model, runtime and policy."""
        report = await self._fresh_health()
        identity = {"model": self.scanner.session.spec.identity, "policy": self.scanner.policy.name}
        body = {"status": "ok" if report.passed else "failed", **identity, "steps": [asdict(step) for step in report.steps]}
        return JSONResponse(body, 200 if report.passed else 503)

    async def metrics(self) -> Response:
        """Counters for Prometheus."""
        return Response(prometheus_client.generate_latest(self.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def _judge(self, data: bytes, name: str | None = None) -> Result:
        return await self._in_time(self.scanner.acheck(data), name)

    async def _in_time(self, work: Awaitable[Result], name: str | None) -> Result:
        start = time.perf_counter()
        try:
            result = await asyncio.wait_for(work, self.limits.timeout)
        except TimeoutError:
            self.timeouts.inc()
            result = Result(None, "undecided", error=f"not judged within {self.limits.timeout:g} seconds")
        self.latency.observe(time.perf_counter() - start)
        self.images.inc()
        self.verdicts.labels(result.verdict).inc()
        return replace(result, path=name)

    async def _fresh_health(self) -> SelfTest:
        async with self._health_lock:
            if self._health is None or time.monotonic() - self._health[0] > HEALTH_IS_NEWS_FOR:
                scanner = self.scanner
                report = await asyncio.to_thread(run_selftest, scanner.session, scanner.policy, scanner.check, scanner.check_edit)
                self._health = (time.monotonic(), report)
            return self._health[1]

    async def _read(self, request: Request) -> bytes:
        return b"".join([chunk async for chunk in self._bounded(request)])

    async def _files(self, request: Request, names: Sequence[str] | None) -> list["_File"]:
        """Parts of a multipart body: those with these names, each once, or any from one to `max_files`."""
        if not _is_multipart(request):
            raise HTTPException(415, "the body must be multipart/form-data")
        most = self.limits.max_files if names is None else len(names)
        parser = _InMemory(request.headers, self._bounded(request), max_files=most, max_fields=0)
        try:
            form = await parser.parse()
        except (MultiPartException, FormParserError, UnicodeError) as problem:  # older Starlettes let the second pass
            raise HTTPException(400, f"the multipart body cannot be read: {problem}") from problem
        try:
            files = [(name, file) for name, file in form.multi_items() if isinstance(file, UploadFile)]
            if names is not None and sorted(name for name, _ in files) != sorted(names):
                raise HTTPException(400, f"the body must have one file named each of: {', '.join(names)}")
            if not files:
                raise HTTPException(400, "the body has no files")
            if names is not None:
                files.sort(key=lambda part: names.index(part[0]))
            return [_File(await file.read(), _name(file)) for _, file in files]
        finally:
            await form.close()

    async def _bounded(self, request: Request) -> AsyncGenerator[bytes, None]:
        """The body in chunks. Answers 413 when it is too large, 408 when it takes too long."""
        total = 0
        try:
            async with asyncio.timeout(self.limits.timeout):
                async for chunk in request.stream():
                    total += len(chunk)
                    if total > self.limits.max_bytes:
                        raise HTTPException(413, f"the body is over the limit of {self.limits.max_bytes:,} bytes")
                    yield chunk
        except TimeoutError as problem:
            raise HTTPException(408, f"the body did not arrive within {self.limits.timeout:g} seconds") from problem
        except ClientDisconnect as problem:
            raise HTTPException(400, "the sender hung up before the body's end") from problem


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    name: str | None


def _name(file: UploadFile) -> str | None:
    # The sender chooses the charset of names, and JSON cannot hold half a character.
    return file.filename.encode("utf-8", "backslashreplace").decode() if file.filename else None


class _InMemory(MultiPartParser):
    """Starlette's parser, told to keep every part in memory; its default moves parts over 1 MB to disk."""

    spool_max_size = 0  # for a spooled file, 0 means never
    ended = False

    def on_end(self) -> None:
        """Note that the closing boundary came."""
        self.ended = True

    async def parse(self) -> FormData:
        """Parse a body to its closing boundary: without it the last part would be nowhere, as would what stands behind it.

        Raises `MultiPartException`.
        """
        self.stream = self._whole(self.stream)
        return await super().parse()

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        boundary = parse_options_header(self.headers["Content-Type"])[1].get(b"boundary", b"")
        closing, seen = b"\r\n--" + boundary + b"--", b"\r\n"  # so that it can be the first line
        async for chunk in stream:
            behind = chunk if self.ended else b""
            yield chunk  # which the parser has read when it asks for the next
            seen = seen[-len(closing) :] + chunk
            if self.ended and (behind or seen.partition(closing)[2]).strip():
                raise MultiPartException("there is more behind its closing boundary")
        if not self.ended:
            raise MultiPartException("its closing boundary is missing")


def _require(token: str) -> Callable[..., None]:
    promised = token.encode()
    scheme = HTTPBearer(auto_error=False)

    def compare(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        # Constant time: how long it takes must not tell how much of a guess was right.
        if given is None or not hmac.compare_digest(given.credentials.encode(), promised):
            raise HTTPException(401, "needs the bearer token of this service", {"WWW-Authenticate": "Bearer"})

    return compare


def _is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _json(result: Result) -> Response:
    return JSONResponse(result.to_dict())


# --- the description of the interface: what bodies look like, which FastAPI cannot see where we read the stream -----------

_DESCRIPTION = "Output check for image generators. Status is 200 whatever the verdict is; `undecided` is not `allow`."
_PROBLEMS = {
    400: "The multipart body is malformed, or has other parts than it should",
    401: "The bearer token is missing or wrong",
    408: "The body took too long to arrive",
    413: "The body is too large",
    415: "The body is not multipart/form-data",
}
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
_BINARY = {"type": "string", "format": "binary"}
_ANY_PICTURE = {"image/*": {"schema": _BINARY}, "application/octet-stream": {"schema": _BINARY}}
_MANY_PARTS = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"files": {"type": "array", "items": _BINARY, "minItems": 1}},
            "required": ["files"],
        }
    }
}


def _parts(*names: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": dict.fromkeys(names, _BINARY), "required": list(names), "additionalProperties": False}
    return {"multipart/form-data": {"schema": schema}}


def _body(*content: dict[str, Any]) -> dict[str, Any]:
    merged = {media: schema for one in content for media, schema in one.items()}
    return {"requestBody": {"required": True, "content": merged}}
