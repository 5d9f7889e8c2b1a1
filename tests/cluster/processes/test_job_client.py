"""Ray's own client against an HTTP server that takes jobs as Ray's dashboard does: what it uploads, how it follows a log."""

import asyncio
import io
import signal
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from aiohttp import WSCloseCode, web

from cluster.errors import ConfigError, RunInterruptedError
from cluster.processes import jobs
from cluster.processes.jobs import connect_to_jobs, submit_job

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
UPLOADED = ("rayward/__init__.py", "configs/tiny.yaml", "my_rewards.py", "data/runs/prompts.jsonl")
LEFT_HERE = (
    ".git/config", "runs/night/summary.json", "rayward/__pycache__/options.pyc", ".mypy_cache/a", ".venv-trl/bin/python",
    ".env", "tls/host.key", "large.bin",
)  # fmt: skip
LOG = "run directory /mnt/runs/tiny\nstep 1\n"


class JobServer:
    """Keeps one package and one job. The log's first connection breaks off, unless the job runs until it is stopped."""

    def __init__(self) -> None:
        self.package = b""
        self.submitted: dict[str, Any] = {}
        self.status = "RUNNING"
        self.needs_token = False
        self.ends_by_itself = True
        self.stopped = asyncio.Event()
        self.num_followed = 0
        self.url = ""

    @property
    def uploaded(self) -> set[str]:
        return set(zipfile.ZipFile(io.BytesIO(self.package)).namelist())

    async def version(self, request: web.Request) -> web.StreamResponse:
        if self.needs_token:
            return web.Response(status=401, text="no token")
        return web.json_response({"version": "4", "ray_version": ray.__version__})

    async def has_package(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if self.package else 404)

    async def take_package(self, request: web.Request) -> web.StreamResponse:
        self.package = await request.read()
        return web.Response()

    async def submit(self, request: web.Request) -> web.StreamResponse:
        self.submitted = await request.json()
        return web.json_response({"job_id": self.submitted["submission_id"], "submission_id": self.submitted["submission_id"]})

    async def job(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"type": "SUBMISSION", "entrypoint": self.submitted["entrypoint"], "status": self.status})

    async def stop(self, request: web.Request) -> web.StreamResponse:
        self.status = "STOPPED"
        self.stopped.set()
        return web.json_response({"stopped": True})

    async def log(self, request: web.Request) -> web.StreamResponse:
        self.num_followed += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str(LOG)
        if not self.ends_by_itself:
            await self.stopped.wait()
        elif self.num_followed == 1 and request.transport is not None:
            request.transport.abort()
        else:
            await socket.send_str("step 2\n")
            self.status = "SUCCEEDED"
        await socket.close(code=WSCloseCode.OK)
        return socket

    async def listen(self, is_up: threading.Event, is_over: asyncio.Event) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/packages/{protocol}/{name}", self.has_package)
        app.router.add_put("/api/packages/{protocol}/{name}", self.take_package)
        app.router.add_post("/api/jobs/", self.submit)
        app.router.add_get("/api/jobs/{id}", self.job)
        app.router.add_post("/api/jobs/{id}/stop", self.stop)
        app.router.add_get("/api/jobs/{id}/logs/tail", self.log)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*runner.addresses[0])
        is_up.set()
        await is_over.wait()
        await runner.cleanup()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray's client would ask there
    server, is_up, is_over = JobServer(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server.listen(is_up, is_over),))
    thread.start()
    assert is_up.wait(timeout=60)
    yield server
    loop.call_soon_threadsafe(is_over.set)
    thread.join()
    loop.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder as people have it."""
    folder, elsewhere = tmp_path / "work", tmp_path / "elsewhere"
    for name in (*UPLOADED, *LEFT_HERE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / ".gitignore").write_text("*.bin\n")
    elsewhere.mkdir()
    (elsewhere / "python").write_text("x")
    (folder / ".venv").symlink_to(elsewhere)
    return folder


def test_the_code_is_uploaded_and_the_log_is_followed_over_a_broken_connection(server: JobServer, folder: Path) -> None:
    job = submit_job(connect_to_jobs(server.url), ["python", "-m", "rayward", "train"], name="tiny", working_dir=folder)
    written: list[str] = []
    report = job.follow(written.append)
    assert "".join(written) == LOG + "step 2\n"
    assert (report.status, report.run, report.address) == ("SUCCEEDED", "/mnt/runs/tiny", server.url)
    assert {name for name in server.uploaded if not name.endswith("/")} == {*UPLOADED, ".gitignore"}
    assert server.submitted["entrypoint"] == "exec python -m rayward train"
    assert server.submitted["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
    assert server.num_followed == 2


@pytest.mark.usefixtures("ctrl_c_reaches_children")
def test_ctrl_c_asks_the_cluster_to_stop_the_job(server: JobServer, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = submit_job(connect_to_jobs(server.url), ["true"], name="tiny", working_dir=folder)
    server.ends_by_itself = False
    written: list[str] = []

    def write_and_interrupt(text: str) -> None:
        written.append(text)
        if len(written) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(RunInterruptedError, match=f"go on with: rayward submit --resume /mnt/runs/tiny --address {server.url}"):
        job.follow(write_and_interrupt)
    assert server.status == "STOPPED"
    assert "".join(written) == LOG
    assert caplog.text == ""  # no task of asyncio is left behind


def test_a_missing_token_is_one_line_with_the_way_out(server: JobServer) -> None:
    server.needs_token = True
    with pytest.raises(ConfigError, match="the cluster asks for its token; set RAY_AUTH_MODE=token"):
        connect_to_jobs(server.url)
