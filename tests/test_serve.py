"""The service, asked over loopback: a real server on a free port for every test."""

import asyncio
import concurrent.futures
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from imgsafety import Scanner, SetupError
from imgsafety.cli import main
from tests.toy import write_toy_model

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
httpx = pytest.importorskip("httpx", reason="the extra [dev] is not installed")

import uvicorn  # noqa: E402  after the skips
from starlette.formparsers import MultiPartParser  # noqa: E402

from imgsafety.integrations.serve import ServiceLimits, create_app  # noqa: E402

PATIENCE = 30  # seconds; only a hang reaches it
TOKEN = {"Authorization": "Bearer opensesame"}


@pytest.fixture
def open_service(toy_path, toy_policy):
    """Start a service with these limits and yield a client of it; what `Scanner` takes goes to a scanner of its own."""

    @contextmanager
    def opened(token=None, limits=None, **settings):
        app = create_app(Scanner(toy_path, toy_policy, **settings), limits or ServiceLimits(), token)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(PATIENCE)

    return opened


@pytest.fixture
def client(open_service):
    with open_service() as client:
        yield client


@pytest.fixture
def file_of(draw):
    """The bytes of a picture file of one kind."""

    def encoded(kind, size=(64, 48)):
        file = io.BytesIO()
        draw(kind, size).save(file, "PNG")
        return file.getvalue()

    return encoded


def metric(client, name):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)[1])


# --- answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "verdict"), [("minimal", "review"), ("clothed", "allow")])
def test_bytes_of_a_picture_get_the_scanner_s_own_result(client, scanner, file_of, kind, verdict):
    answer = client.post("/check", content=file_of(kind), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200 and answer.json()["verdict"] == verdict
    assert answer.json()["scores"] == scanner.check(file_of(kind)).to_dict()["scores"]


def test_a_flagged_picture_comes_with_its_reasons(client, file_of):
    reasons = client.post("/check", content=file_of("minimal")).json()["reasons"]
    assert [reason["rule"] for reason in reasons] == ["minimal-attire"] and reasons[0]["scores"]["minimal_attire"] > 0.5


def test_a_multipart_file_keeps_its_name(client, file_of):
    answer = client.post("/check", files={"file": ("straße.png", file_of("minimal"))}).json()
    assert (answer["path"], answer["verdict"]) == ("straße.png", "review")


def test_a_batch_is_answered_in_order_and_a_broken_picture_spoils_nothing(client, file_of):
    parts = [file_of("minimal"), b"not a picture", file_of("clothed")]
    answer = client.post("/check-batch", files=[("files", (str(index), part)) for index, part in enumerate(parts)]).json()
    assert [(one["path"], one["verdict"]) for one in answer["results"]] == [("0", "review"), ("1", "undecided"), ("2", "allow")]


@pytest.mark.parametrize(("before", "verdict"), [("clothed", "block"), ("minimal", "review")])
def test_an_edit_that_undresses_is_blocked(client, file_of, before, verdict):
    answer = client.post("/check-edit", files={"after": file_of("minimal"), "before": file_of(before)}).json()
    assert answer["verdict"] == verdict


def test_an_edit_of_an_unreadable_picture_is_undecided(client, file_of):
    answer = client.post("/check-edit", files={"before": b"?", "after": file_of("clothed")}).json()
    assert answer["verdict"] == "undecided" and "came in" in answer["error"]


@pytest.mark.parametrize("body", [b"", b"not a picture"])
def test_what_cannot_be_read_is_undecided(client, body):
    answer = client.post("/check", content=body)
    assert answer.status_code == 200 and answer.json()["verdict"] == "undecided" and answer.json()["error"]


def test_many_callers_at_once_each_get_their_own_answer(client, file_of):
    kinds = ["minimal", "clothed"] * 32
    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        answers = list(threads.map(lambda kind: client.post("/check", content=file_of(kind)).json()["verdict"], kinds))
    assert answers == ["review", "allow"] * 32


def test_pictures_can_be_decoded_in_processes_of_their_own(open_service, file_of):
    with open_service(isolate=True) as client:
        answers = [client.post("/check", content=body).json()["verdict"] for body in (file_of("minimal"), b"not a picture")]
    assert answers == ["review", "undecided"]


# --- limits -------------------------------------------------------------------------------------------------------------


def test_a_picture_over_the_pixel_limit_is_undecided(open_service, file_of):
    with open_service(max_pixels=2000) as client:
        assert "over the limit" in client.post("/check", content=file_of("clothed")).json()["error"]


@pytest.mark.parametrize("multipart", [True, False])
def test_a_body_over_the_limit_is_refused(open_service, multipart):
    with open_service(limits=ServiceLimits(max_bytes=1000)) as client:
        body = {"files": {"file": b"x" * 2000}} if multipart else {"content": b"x" * 2000}
        assert client.post("/check", **body).status_code == 413


def test_a_body_that_does_not_say_its_length_is_limited_all_the_same(open_service):
    with open_service(limits=ServiceLimits(max_bytes=1000)) as client:
        assert client.post("/check", content=iter([b"x" * 600] * 3)).status_code == 413


def test_more_files_than_a_batch_may_hold_are_refused(open_service, file_of):
    with open_service(limits=ServiceLimits(max_files=2)) as client:
        answer = client.post("/check-batch", files=[("files", file_of("clothed"))] * 3)
    assert answer.status_code == 400 and "Maximum number of files is 2" in answer.json()["detail"]


def test_a_picture_that_takes_too_long_is_undecided_and_counted(open_service, file_of):
    with open_service(limits=ServiceLimits(timeout=0.2), max_wait=1) as client:
        answer = client.post("/check", content=file_of("clothed"))
        assert answer.status_code == 200 and answer.json()["verdict"] == "undecided" and "0.2 seconds" in answer.json()["error"]
        assert metric(client, "imgsafety_timeouts_total") == 1


def test_a_body_that_takes_too_long_is_refused(open_service):
    with (
        open_service(limits=ServiceLimits(timeout=0.2)) as client,
        socket.create_connection((client.base_url.host, client.base_url.port)) as slow,
    ):
        slow.settimeout(PATIENCE)
        slow.sendall(b"POST /check HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("path", "request_", "status"),
    [
        ("/check-batch", {"content": b"x"}, 415),
        ("/check-edit", {"json": {}}, 415),
        ("/check", {"files": {"other": b"x"}}, 400),
        ("/check-edit", {"files": {"before": b"x"}}, 400),
        ("/check-edit", {"files": [("before", b"x"), ("before", b"x")]}, 400),
        ("/check-batch", {"files": {"file": b"x"}, "data": {"field": "x"}}, 400),
        ("/check", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400),
        ("/check", {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400),
    ],
)
def test_a_body_of_another_form_is_refused_with_a_reason(client, path, request_, status):
    answer = client.post(path, **request_)
    assert answer.status_code == status and answer.json()["detail"]


# --- pixels stay in memory ------------------------------------------------------------------------------------------------


@pytest.fixture
def large_file():
    """A picture of noise, larger than what multipart libraries keep in memory."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert len(file.getvalue()) > 2_000_000
    return file.getvalue()


@pytest.fixture
def no_disk(monkeypatch, tmp_path):
    """Temporary files cannot be made: whoever tries fails."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))


@pytest.mark.usefixtures("no_disk")
def test_a_large_multipart_picture_never_touches_the_disk(client, large_file):
    answer = client.post("/check", files={"file": large_file})
    assert answer.status_code == 200 and answer.json()["verdict"] == "allow"


@pytest.mark.usefixtures("no_disk")
def test_the_library_s_own_parser_would_have_touched_it(large_file):
    request = httpx.Request("POST", "http://x", files={"file": large_file})

    async def body():
        yield request.read()

    with pytest.raises(FileNotFoundError):
        asyncio.run(MultiPartParser(request.headers, body()).parse())


# --- token, health, metrics, description ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic opensesame"}, {"Authorization": "Bearer ü".encode("latin-1")}],
)
@pytest.mark.parametrize("path", ["/check", "/check-batch", "/check-edit"])
def test_without_the_token_nothing_is_judged(open_service, file_of, path, headers):
    with open_service(token="opensesame") as client:
        answer = client.post(path, content=file_of("clothed"), headers=headers)
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"


def test_with_the_token_pictures_are_judged_and_metrics_shown(open_service, file_of):
    with open_service(token="opensesame") as client:
        assert client.post("/check", content=file_of("clothed"), headers=TOKEN).json()["verdict"] == "allow"
        assert client.get("/metrics").status_code == 401 and client.get("/metrics", headers=TOKEN).status_code == 200


def test_health_needs_no_token(open_service):
    with open_service(token="opensesame") as client:
        assert client.get("/healthz").json()["status"] == "ok"


def test_health_runs_the_self_test(client):
    answer = client.get("/healthz").json()
    assert answer["model"] == "toy 1" and len(answer["steps"]) == 8 and all(step["passed"] for step in answer["steps"])


def test_health_fails_when_the_model_file_has_changed(tmp_path, toy_policy):
    scanner = Scanner(write_toy_model(tmp_path / "model.onnx"), toy_policy)
    app = create_app(scanner)
    write_toy_model(tmp_path / "model.onnx", factor=2.0)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/healthz")

    answer = asyncio.run(ask())
    assert answer.status_code == 503 and answer.json()["status"] == "failed"


def test_a_service_that_fails_its_self_test_does_not_start(tmp_path, toy_policy):
    app = create_app(Scanner(write_toy_model(tmp_path / "nan.onnx", factor=float("nan")), toy_policy))

    async def start():
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(SetupError, match="self-test failed"):
        asyncio.run(start())


def test_metrics_count_images_verdicts_and_latency(client, file_of):
    client.post("/check-batch", files=[("files", part) for part in (file_of("minimal"), file_of("clothed"), b"?")])
    assert metric(client, "imgsafety_images_total") == metric(client, "imgsafety_latency_seconds_count") == 3
    counts = {
        verdict: metric(client, f'imgsafety_verdicts_total{{verdict="{verdict}"}}')
        for verdict in ("allow", "review", "block", "undecided")
    }
    assert counts == {"allow": 1, "review": 1, "block": 0, "undecided": 1}


def test_two_services_in_one_process_count_apart(open_service, file_of):
    with open_service() as first, open_service() as second:
        first.post("/check", content=file_of("clothed"))
        assert (metric(first, "imgsafety_images_total"), metric(second, "imgsafety_images_total")) == (1, 0)


def test_the_description_has_every_endpoint_and_a_page(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {"/check", "/check-batch", "/check-edit", "/healthz", "/metrics"}
    assert "swagger" in client.get("/docs").text


def test_schemathesis_finds_no_answer_that_the_description_does_not_promise(client, tmp_path):
    pytest.importorskip("schemathesis", reason="the extra [dev] is not installed")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ["--checks", checks, "--max-examples", "20", "--seed", "1", "--no-color", "--phases", "coverage,fuzzing"]
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    found = subprocess.run(
        [*command, f"{client.base_url}/openapi.json", *options],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert found.returncode == 0 and "5 selected / 5 total" in found.stdout, found.stdout


# --- the command ------------------------------------------------------------------------------------------------------------


@contextmanager
def running(toy_path, toy_policy_path, *options):
    command = [
        sys.executable,
        "-m",
        "imgsafety",
        "serve",
        "--model",
        str(toy_path),
        "--policy",
        str(toy_policy_path),
        "--port",
        "0",
    ]
    with subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, "IMGSAFETY_TOKEN": ""}
    ) as process:
        try:
            lines = []
            while "running on" not in (line := process.stderr.readline()):
                assert line, "".join(lines)
                lines.append(line)
            yield process, re.search(r"http://\S+", line)[0]
        finally:
            process.kill()


def test_the_command_binds_loopback_answers_and_logs_nothing_of_a_picture(toy_path, toy_policy_path, file_of):
    with running(toy_path, toy_policy_path) as (process, url):
        assert url.startswith("http://127.0.0.1:")
        httpx.post(f"{url}/check", files={"file": ("private-name.png", file_of("minimal"))})
        httpx.post(f"{url}/check", files={"file": ("private-name.png", b"private-bytes")})
        process.send_signal(signal.SIGTERM)
        assert "private" not in process.stderr.read() and process.wait(PATIENCE) == 0


def test_a_stop_lets_a_request_in_work_finish(toy_path, toy_policy_path, file_of):
    with (
        running(toy_path, toy_policy_path, "--max-wait", "1") as (process, url),
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        answer = threads.submit(httpx.post, f"{url}/check", content=file_of("minimal"), timeout=PATIENCE)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert answer.result(PATIENCE).json()["verdict"] == "review" and process.wait(PATIENCE) == 0


def test_the_command_refuses_other_machines_without_a_token(toy_path, toy_policy_path, capsys, monkeypatch):
    monkeypatch.delenv("IMGSAFETY_TOKEN", raising=False)
    assert main(["serve", "--host", "0.0.0.0", "--model", str(toy_path), "--policy", str(toy_policy_path)]) == 2
    assert "IMGSAFETY_TOKEN" in capsys.readouterr().err


def test_the_command_does_not_start_with_a_damaged_model(tmp_path, toy_policy_path, capsys):
    path = write_toy_model(tmp_path / "nan.onnx", factor=float("nan"))
    assert main(["serve", "--port", "0", "--model", str(path), "--policy", str(toy_policy_path)]) == 2
    assert "self-test failed" in capsys.readouterr().err


def test_a_connection_that_sends_no_whole_header_is_closed(toy_path, toy_policy_path):
    whole = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(toy_path, toy_policy_path, "--timeout", "1", "--max-connections", "4") as (_, url):
        place = httpx.URL(url)
        idle = [socket.create_connection((place.host, place.port), timeout=PATIENCE) for _ in range(4)]
        for connection, sent in zip(idle, (b"", b"", whole[:-2], whole + whole[:20]), strict=True):
            connection.sendall(sent)
        for connection in idle:
            with connection:
                while connection.recv(65_536):  # to its end, which must come
                    pass
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_body_that_takes_too_long_is_told_so_on_a_connection_that_is_watched(toy_path, toy_policy_path):
    with running(toy_path, toy_policy_path, "--timeout", "1") as (_, url):
        place = httpx.URL(url)
        with socket.create_connection((place.host, place.port), timeout=PATIENCE) as slow:
            slow.sendall(b"POST /check HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
            assert slow.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("charset", ["undefined", "utf-7", "unicode_escape"])
def test_names_in_any_charset_are_no_server_error(client, file_of, charset):
    head = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="+2AA-\\ud800\xe9.png"\r\n\r\n'
    body = head + file_of("clothed") + b"\r\n--XX--\r\n"
    answer = client.post("/check", content=body, headers={"content-type": f"multipart/form-data; boundary=XX; charset={charset}"})
    assert answer.status_code in (200, 400)


def test_a_batch_that_breaks_off_is_refused(client, file_of):
    parts = [b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + file_of("clothed") + b"\r\n"] * 3
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    whole = client.post("/check-batch", content=b"".join(parts) + b"--x--\r\n", headers=headers)
    cut = client.post("/check-batch", content=b"".join(parts), headers=headers)
    assert whole.status_code == 200 and len(whole.json()["results"]) == 3 and cut.status_code == 400


@pytest.mark.parametrize("size", [1, 7, 64 * 1024])
def test_pictures_behind_the_closing_boundary_are_not_passed_over(client, file_of, size):
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n' + file_of("clothed") + b"\r\n"
    statuses = {}
    for behind in (b"", b"\r\n", b" \r\n\t\r\n", b"\r\n" + part + b"--x--\r\n", b"x"):
        body = part + b"--x--" + behind
        pieces = (body[start : start + size] for start in range(0, len(body), size))
        answer = client.post("/check-batch", content=pieces, headers={"Content-Type": "multipart/form-data; boundary=x"})
        statuses[behind] = answer.status_code
    assert list(statuses.values()) == [200, 200, 200, 400, 400]


def test_a_picture_that_holds_the_closing_boundary_is_one_picture(client, file_of):
    head = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
    body = head + file_of("clothed") + b"--x--" + b"\r\n--x--\r\n"
    answer = client.post("/check-batch", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert [result["verdict"] for result in answer.json()["results"]] == ["allow"]
