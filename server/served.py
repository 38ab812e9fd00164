"""A model that is served: its engine, perhaps a second without the draft, and the draft side."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from draftsmith.server.deployments.deployment import Deployment
from draftsmith.server.deployments.event import DraftRef
from draftsmith.server.engine.interface import Engine
from draftsmith.server.engine.remote import RemoteEngine, RemoteModel
from draftsmith.server.engine.supervisor import Supervisor
from draftsmith.server.home import Home
from draftsmith.server.metrics import Metrics
from draftsmith.server.pair import check_pair
from draftsmith.server.registry import version_id
from draftsmith.server.settings import Settings
from draftsmith.server.speculation.routing import EngineChoice


@dataclass
class Served:
    """What clients ask for by its name."""

    name: str
    engine: Engine
    settings: Settings | None = None
    """None where the engine is another server's."""
    plain: Engine | None = None
    """The engine without the draft, when one is configured."""
    choice: EngineChoice | None = None
    """Weighs the two engines against each other, where lookahead is adaptive."""
    deployment: Deployment | None = None
    """None where no draft is served, or not by us."""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def in_flight(self) -> int:
        """Requests inside its engines."""
        return sum(one.load.in_flight for one in self.engines)

    @property
    def engines(self) -> list[Engine]:
        return [self.engine] if self.plain is None else [self.engine, self.plain]

    def role_of(self, engine: Engine) -> str:
        """What `engine`, one of these, is here: `speculative`, `plain` or `remote`."""
        if self.remote is not None:
            return "remote"
        return "speculative" if engine is self.engine and self.speculates else "plain"

    @property
    def remote(self) -> RemoteModel | None:
        return self.engine.config if isinstance(self.engine, RemoteEngine) else None

    @property
    def speculates(self) -> bool:
        """Whether a draft of ours proposes tokens."""
        return self.settings is not None and self.settings.speculates

    @property
    def draft_version(self) -> str | None:
        """The draft's id in the registry's form, None without a draft or a manifest."""
        return None if self.deployment is None else self.deployment.draft.version

    @property
    def prefers_plain(self) -> bool:
        """Whether a request that leaves it open is answered faster without the draft now."""
        ready = self.plain is not None and self.plain.client is not None
        return ready and self.choice is not None and self.choice.prefers_plain(self.in_flight)


def serve_model(model: Settings | RemoteModel, metrics: Metrics, log_name: str) -> Served:
    """Make what serves a model; nothing starts yet.

    Args:
        log_name: of the engine's log, without its ending.

    Raises:
        ValueError: target or draft are missing or do not belong together, or a key is missing.
    """
    if isinstance(model, RemoteModel):
        return Served(model.served_model_name, RemoteEngine(model))
    # A head on the target's hidden states is no model of its own: vLLM checks that it fits.
    own_model = model.speculation_method == "draft_model"
    manifest = check_pair(model.target, model.draft if own_model else None)
    logs = Home(model.home).logs
    config, timeout_s = model.engine_config(), model.start_timeout_s
    patience_s = model.stall_timeout_s
    supervisor = Supervisor(config, logs / f"{log_name}.log", timeout_s, patience_s)
    served = Served(model.served_model_name, supervisor, model)
    if (plain_config := model.plain_engine_config()) is not None:
        log = logs / f"{log_name}-plain.log"
        plain = Supervisor(plain_config, log, timeout_s, patience_s)
        served.plain = plain
        if model.lookahead_control == "adaptive":
            served.choice = EngineChoice(supervisor.step_report, plain.step_report)
    if model.draft is not None:
        served.deployment = Deployment(
            model,
            DraftRef(
                version=None if manifest is None else version_id(manifest),
                folder=str(model.draft.absolute()),
            ),
            supervisor,
            metrics,
            in_flight=lambda: supervisor.load.in_flight,
        )
    return served


def settings_of(models: Mapping[str, Served]) -> dict[str, Settings]:
    """By name: the models whose targets lie here, and so can teach."""
    return {name: one.settings for name, one in models.items() if one.settings is not None}
