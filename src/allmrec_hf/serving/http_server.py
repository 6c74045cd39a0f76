"""The process of the service: its address, its folder of state, its models, its end."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ALLMRecError
from ..pipeline_recommendation import RecommendationPipeline
from .bearer_tokens import BearerTokens, read_tokens
from .http_app import MAX_BODY, create_app
from .item_journal import ItemJournal
from .micro_batches import QueueSettings
from .recommender_service import RecommenderService
from .served_model import ServedModel
from .service_metrics import ServiceMetrics
from .user_histories import open_histories

logger = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
        source: Folder or Hub id.
        load: Loads its pipeline.
    """

    source: str
    load: Callable[[], RecommendationPipeline]


@dataclass(frozen=True)
class ServiceSettings:
    """How the service runs.

    Attributes:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        state: The folder of added items and stored histories.
        store: `sqlite`, or the address of Redis.
        token_file: Tokens for reading.
        write_token_file: Tokens for writing.
        anonymous: Listen to other machines without tokens.
        queue: How requests wait.
        max_body: Bytes of a request's body.
        log_histories: Put the bodies of requests into the log.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    state: Path = Path("allmrec-state")
    store: str | None = None
    token_file: Path | None = None
    write_token_file: Path | None = None
    anonymous: bool = False
    queue: QueueSettings = field(default_factory=QueueSettings)
    max_body: int = MAX_BODY
    log_histories: bool = False


def check_model_name(name: str) -> None:
    """Check the name of a model, which is part of a file's name and of addresses.

    Raises:
        ALLMRecError: when it is another than letters, digits, dots, dashes and underscores.
    """
    if not _NAME.fullmatch(name):
        raise ALLMRecError(f"a served model's name is 1 to 64 letters, digits and . _ -, not {name!r}")


def locked_state(state: Path) -> FileLock:
    """Make the folder of the state and keep it for this process.

    Raises:
        ALLMRecError: when it cannot be written, or another process serves from it.
    """
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(state, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "no permission to write")
        lock = FileLock(state / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise ALLMRecError(f"another service uses the folder {state}; give each its own with --state") from error
    except OSError as error:
        raise ALLMRecError(
            f"the folder of the service's state {state} cannot be written: {error}; give another one with --state"
        ) from error
    return lock


def build_service(models: Mapping[str, ModelSource], settings: ServiceSettings) -> RecommenderService:
    """Return a service with its models loaded; `settings.state` is this process's own.

    Raises:
        ALLMRecError: when a model cannot be loaded, or the state cannot be read.
    """
    served: list[ServedModel] = []
    metrics = ServiceMetrics(lambda: [(one.name, len(one.batcher), len(one.catalog)) for one in served])
    histories = open_histories(settings.store, settings.state)
    for name, model in models.items():
        check_model_name(name)
        journal = ItemJournal(settings.state / f"items-{name}.jsonl")
        served.append(
            ServedModel(name, model.source, model.load, journal, settings.queue, observe=metrics.observe_batch)
        )
    return RecommenderService(served, histories, metrics)


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ALLMRecError: when the port is in use, the address is not of this machine or may not be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        opened = socket.socket(found[0], found[1])
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(found[4])
            opened.listen(2048)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ALLMRecError(
                f"port {port} of {host} is in use; choose another with --port, or 0 for a free one"
            ) from error
        if error.errno == errno.EACCES:
            raise ALLMRecError(f"port {port} of {host} may not be used by this user; choose one above 1023") from error
        raise ALLMRecError(f"cannot listen on {host} port {port}: {error}") from error
    return opened


def access(settings: ServiceSettings) -> BearerTokens:
    """Return who may read and write.

    Raises:
        ALLMRecError: when a token file is not fit, or other machines could ask without a token.
    """
    read = [] if settings.token_file is None else read_tokens(settings.token_file)
    write = [] if settings.write_token_file is None else read_tokens(settings.write_token_file)
    if set(read) & set(write):
        raise ALLMRecError("the tokens for reading and for writing are the same; a token for writing is one of its own")
    if write and not read:
        raise ALLMRecError("with tokens for writing there are tokens for reading: give --token-file too")
    if not read and settings.host not in LOOPBACK and not settings.anonymous:
        raise ALLMRecError(
            f"without tokens the service listens on this machine only, not on {settings.host}; give --token-file (and "
            "--write-token-file), or --anonymous where something before it checks who asks"
        )
    return BearerTokens(read, write)


def serve_http(models: Mapping[str, ModelSource], settings: ServiceSettings) -> None:
    """Serve until the process is told to end; requests that were accepted are answered first.

    Raises:
        ALLMRecError: before anything is served, when it cannot be.
    """
    import uvicorn

    tokens = access(settings)
    listening = bound_socket(settings.host, settings.port)
    with listening, locked_state(settings.state):
        service = build_service(models, settings)
        is_open = tokens.open and not settings.anonymous
        hosts = frozenset({*LOOPBACK, settings.host}) if is_open else None
        app = create_app(service, tokens, settings.max_body, hosts, settings.log_histories)
        options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False}
        config = uvicorn.Config(
            app,
            timeout_graceful_shutdown=int(settings.queue.timeout) + 5,
            proxy_headers=False,
            lifespan="on",
            **options,
        )
        host, port = listening.getsockname()[:2]
        fields = {"host": host, "port": port, "models": list(service.models), "tokens": not tokens.open}
        logger.info("serving", extra={"fields": fields})
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when all is done
            uvicorn.Server(config).run(sockets=[listening])
