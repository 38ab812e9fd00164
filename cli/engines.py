"""Several engines of one's own, to be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from draftsmith.server.engine.command import EngineConfig
from draftsmith.server.engine.process import EngineProcess
from draftsmith.server.home import Home

KV_CACHE_BYTES = 512 * 2**20


@contextmanager
def running_engines(
    configs: Mapping[str, EngineConfig], home: Home, purpose: str
) -> Iterator[dict[str, EngineProcess]]:
    """All engines, loaded side by side and stopped together; logs are named after `purpose`.

    Raises:
        EngineError: one does not start; says why.
    """
    with ExitStack() as stack:
        engines = {
            name: EngineProcess(config, home.logs / f"{purpose}-{name}.log")
            for name, config in configs.items()
        }
        for engine in engines.values():
            stack.callback(engine.stop)
            engine.start()
        for engine in engines.values():
            engine.wait_ready()
        yield engines
