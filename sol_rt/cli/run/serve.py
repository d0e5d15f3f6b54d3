"""`sol-rt serve` lets programs that speak OpenAI's, Anthropic's or Ollama's protocol use a model."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

from sol_rt.cli import options
from sol_rt.cli.console import note
from sol_rt.cli.lists import parts
from sol_rt.errors import SolError, UsageError, one_line
from sol_rt.read_file import read_bytes

if TYPE_CHECKING:
    from sol_rt.budget.governor import Reading
    from sol_rt.generate.model import SolModel
    from sol_rt.serve.load import LoadSettings
    from sol_rt.serve.prefix_cache import PrefixCache

_KEY = "SOL_RT_API_KEY"
_LONGEST_KEY = 4096  # bytes
_FOLDER_BYTES, _TEMPORARY_BYTES = 4 << 30, 512 << 20
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SERVER, LOAD, CACHES = "Server", "Budgets by load", "Caches"


def serve(
    model: options.Model = None,
    host: Annotated[
        str,
        options.option(
            "--host", help="Address to listen at; another one than this machine's needs a key.", panel=SERVER
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, options.option("--port", min=0, max=65535, help="Port; 0 takes a free one.", panel=SERVER)
    ] = 8080,
    sessions: Annotated[
        int,
        options.option(
            "--sessions", min=1, max=64, help="Answers that run at a time, each with its own cache.", panel=SERVER
        ),
    ] = 4,
    queue: Annotated[
        int,
        options.option(
            "--queue", min=0, help="Answers that may wait beside them; others get status 429.", panel=SERVER
        ),
    ] = 64,
    name: Annotated[
        str | None,
        options.option("--name", env=False, help="The model's name for clients; default: the bundle's.", panel=SERVER),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        options.option("--api-key-file", env=False, help="File with a key that every request must give.", panel=SERVER),
    ] = None,
    target_latency: Annotated[
        float | None,
        options.option(
            "--target-latency",
            min=0.001,
            help="Milliseconds between two tokens of an answer that budgets fall for, as more answers run.",
            panel=LOAD,
        ),
    ] = None,
    target_queue: Annotated[
        int | None,
        options.option(
            "--target-queue",
            min=0,
            help="Answers that may wait before budgets fall; with twice as many the lowest one holds.",
            panel=LOAD,
        ),
    ] = None,
    budget_min: Annotated[
        float | None,
        options.option(
            "--budget-min",
            min=0.0,
            max=1.0,
            help="Budget that load, deadlines and the governor keep; default: the least that loses at most 10%.",
            panel=LOAD,
        ),
    ] = None,
    budget_max: Annotated[
        float, options.option("--budget-max", min=0.0, max=1.0, help="Budget that no answer goes above.", panel=LOAD)
    ] = 1.0,
    governor: Annotated[
        bool,
        options.option(
            "--governor", help="Let battery and heat move all budgets between the bounds. Needs psutil.", panel=LOAD
        ),
    ] = False,
    effort: Annotated[
        list[str] | None,
        options.option(
            "--effort",
            env=False,
            metavar="NAME=BUDGET",
            help="Budget of a reasoning_effort, as low=0.4; may be repeated.",
            panel=LOAD,
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        options.option(
            "--cache-dir",
            env=False,
            help="Folder that keeps the caches of prompts, also after a restart; default: one that ends with the "
            "server. They hold what users wrote.",
            panel=CACHES,
        ),
    ] = None,
    cache_bytes: Annotated[
        int | None,
        options.option(
            "--cache-bytes",
            min=0,
            help="Bytes that the folder may take; default: 4 GiB with --cache-dir, else 512 MiB. 0 keeps none.",
            panel=CACHES,
        ),
    ] = None,
    ctx_size: options.ContextSize = None,
    prefill: options.Prefill = None,
    provider: options.Provider = "auto",
    device: options.Device = 0,
    threads: options.Threads = None,
    native_ops: options.NativeOps = True,
    verify: options.Verify = True,
    debug: options.Debug = False,
) -> None:
    """Serve a model to programs that speak OpenAI's, Anthropic's or Ollama's protocol, with the dial in every request.

    The page at / chats with the model. A key that every request must give comes from --api-key-file or $SOL_RT_API_KEY.
    """
    from sol_rt.cli.loading import load, require_packages

    require_packages("serve")
    import uvicorn

    from sol_rt.serve.app import Server, Settings
    from sol_rt.serve.effort import parse_effort

    class _Ending(uvicorn.Server):
        """Ends all answers before the connections, so that clients learn why."""

        def __init__(self, config: uvicorn.Config, server: Server) -> None:
            super().__init__(config)
            self._server = server

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await asyncio.to_thread(self._server.scheduler.close)
            await super().shutdown(sockets)

    key = _key(api_key_file)
    if not key and not _is_loopback(host):
        raise UsageError(f"--host {host}: others could use this model; set a key, by ${_KEY} or --api-key-file")
    efforts = dict(map(parse_effort, parts(effort)))
    sensors = _sensors() if governor else None
    machine: dict[str, Any] = {"provider": provider, "threads": threads, "native_ops": native_ops, "device": device}
    with _listening(host, port) as listener, ExitStack() as stack:
        loaded = load(model, **machine, ctx_size=ctx_size, prefill=prefill, verify=verify)
        if loaded.provider.gpu is not None and sessions > 1:
            note(f"--sessions {sessions}: the GPU has one cache, so answers run one after another")
            sessions = 1
        load_settings = _load_settings(loaded, budget_min, budget_max, target_latency, target_queue)
        prefixes = stack.enter_context(_prefixes(loaded, cache_dir, cache_bytes))
        called = name or loaded.bundle.path.name
        address = listener.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        hosts = (
            () if key else (*_LOOPBACK, shown)
        )  # a page of another name could otherwise reach this machine's address
        settings = Settings(
            called, sessions, queue, key, hosts, load=load_settings, sensors=sensors, efforts=efforts, prefixes=prefixes
        )
        server = Server(loaded, settings)
        here = f"http://{shown}:{address[1]}"
        note(f"serving {called} at {here}/v1 and a playground at {here}/ (Ctrl-C ends it)")
        config = uvicorn.Config(
            server.app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5,
            limit_concurrency=1024, h11_max_incomplete_event_size=64 << 10,
        )  # fmt: skip
        _Ending(config, server).run([listener])


def _key(file: Path | None) -> str:
    """The key that requests must give; empty for none. Raises UsageError for a file without one."""
    if file is None:
        return os.environ.get(_KEY, "").strip()
    try:
        key = read_bytes(file, _LONGEST_KEY, pipes=True).decode().strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--api-key-file {file}: {one_line(error)}; name a file that has the key as text") from None
    if not key:
        raise UsageError(f"--api-key-file {file}: got an empty file, expected a key")
    return key


def _load_settings(
    model: SolModel, lowest: float | None, highest: float, target_latency: float | None, target_queue: int | None
) -> LoadSettings:
    """Bounds and targets of budgets. Raises UsageError."""
    from sol_rt.serve.budget_control import least_budget
    from sol_rt.serve.load import LoadSettings

    lowest = min(least_budget(model), highest) if lowest is None else lowest
    return LoadSettings(lowest, highest, target_latency, target_queue)


def _sensors() -> Callable[[], Reading]:
    """Reads battery and heat. Raises UsageError where this machine tells neither, or psutil is missing."""
    from sol_rt.budget.governor import Reading
    from sol_rt.cli.run.sensors import Sensors

    sensors = Sensors()
    if sensors.battery()[0] is None and sensors.headroom() is None:
        raise UsageError("--governor: this machine tells neither battery nor temperature; leave it out")

    def read() -> Reading:
        battery, charging = sensors.battery()
        return Reading(battery, charging, sensors.headroom())

    return read


@contextmanager
def _prefixes(model: SolModel, folder: Path | None, most_bytes: int | None) -> Iterator[PrefixCache | None]:
    """The saved caches of prompts; None where none are kept. Without a folder they end with the context.

    Raises SolError.
    """
    from sol_rt.serve.prefix_cache import PrefixCache

    identity, kv = model.bundle.identity, model.bundle.config.kv
    if model.provider.gpu is not None:
        if folder is not None:
            note(f"--cache-dir {folder}: caches on a GPU are not saved")
        yield None
    elif folder is not None:
        most_bytes = _FOLDER_BYTES if most_bytes is None else most_bytes
        yield PrefixCache(folder, most_bytes, identity, kv, note)
    elif most_bytes == 0:
        yield None
    else:
        try:
            temporary = TemporaryDirectory(prefix="sol-rt-caches-", ignore_cleanup_errors=True)  # its owner's alone
        except OSError as error:
            note(f"no caches of earlier prompts are kept: {one_line(error)}; give --cache-dir")
            yield None
            return
        with temporary as name:
            most_bytes = most_bytes or _TEMPORARY_BYTES
            yield PrefixCache(Path(name), most_bytes, identity, kv, note, lasting=False)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens, before the model is loaded. Raises SolError."""
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        raise SolError(f"--host {host} --port {port}: {one_line(error)}; choose another address") from None
    return listener
