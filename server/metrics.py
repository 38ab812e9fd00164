"""Prometheus metrics: the gateway's own, and one text of them and of all engines' pages.

Labels are route templates, never raw paths.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from draftsmith.server.jobs.job import Status
from draftsmith.server.jobs.store import QueueFigures
from draftsmith.server.speculation.report import StepReport

_log = logging.getLogger("draftsmith.server")
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """One registry per application, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "draftsmith_http_requests",
            "Requests answered, by route template, method and status.",
            ("route", "method", "code"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "draftsmith_http_request_seconds",
            "Seconds from the request's first byte to the response's last.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "draftsmith_requests_in_flight",
            "Inference requests being answered.",
            registry=self.registry,
        )
        self.waiting = Gauge(
            "draftsmith_requests_waiting",
            "Inference requests that wait for a place in the engine.",
            registry=self.registry,
        )
        self.engine_up = Gauge(
            "draftsmith_engine_up", "1 while every model's engine answers.", registry=self.registry
        )
        self.engine_restarts = Gauge(
            "draftsmith_engine_restarts",
            "Times that an engine died and was started again, or came back.",
            registry=self.registry,
        )
        self.draft = Gauge(
            "draftsmith_draft_info",
            "1 for the draft that is served; its version is in the label.",
            ("model", "version"),
            registry=self.registry,
        )
        self._drafts: dict[str, str] = {}
        self.draft_changes = Counter(
            "draftsmith_draft_changes",
            "Promotions and rollbacks, by what became of them.",
            ("action", "outcome"),
            registry=self.registry,
        )
        self.lookahead = Gauge(
            "draftsmith_lookahead",
            "Tokens drafted a step, as chosen for a number of decoding requests.",
            ("model", "engine", "batch"),
            registry=self.registry,
        )
        self.step_seconds = Gauge(
            "draftsmith_step_seconds",
            "Median seconds of the engine's last steps, by decoding requests and lookahead.",
            ("model", "engine", "batch", "lookahead"),
            registry=self.registry,
        )
        self.goodput = Gauge(
            "draftsmith_goodput_tokens_per_second",
            "Tokens a second of each decoding request, by lookahead: what the choice follows.",
            ("model", "engine", "batch", "lookahead"),
            registry=self.registry,
        )

        self.jobs = Gauge(
            "draftsmith_jobs",
            "Distillation jobs, by state.",
            ("status",),
            registry=self.registry,
        )
        self.oldest_job = Gauge(
            "draftsmith_jobs_oldest_queued_seconds",
            "How long the job that waits longest could have been started already.",
            registry=self.registry,
        )
        self.worker_age = Gauge(
            "draftsmith_worker_heartbeat_age_seconds",
            "Seconds since a worker was last seen; workers that are gone for minutes are left out.",
            ("worker",),
            registry=self.registry,
        )

    def show_queue(self, figures: QueueFigures) -> None:
        for status in Status:
            self.jobs.labels(status).set(figures.jobs.get(status, 0))
        self.oldest_job.set(figures.oldest_queued_s)
        self.worker_age.clear()
        for worker, seconds in figures.heartbeats_s.items():
            self.worker_age.labels(worker).set(seconds)

    def show_draft(self, model: str, version: str | None) -> None:
        """`version`: None for a draft that carries no manifest."""
        shown = version or "unregistered"
        before = self._drafts.get(model)
        if before is not None and before != shown:
            self.draft.remove(model, before)
        self._drafts[model] = shown
        self.draft.labels(model, shown).set(1)

    def show_steps(self, model: str, engine: str, report: StepReport) -> None:
        """Take over what the scheduler of `engine` reports; legend in `speculation/report.py`."""
        for batch, lookahead in report.chosen.items():
            self.lookahead.labels(model, engine, batch).set(lookahead)
        for batch, row in report.seconds.items():
            for lookahead, seconds in row.items():
                self.step_seconds.labels(model, engine, batch, lookahead).set(seconds)
            for lookahead, goodput in report.goodput(batch).items():
                self.goodput.labels(model, engine, batch, lookahead).set(goodput)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


@dataclass(frozen=True)
class EnginePage:
    """What one engine says of itself, in Prometheus' text format."""

    model: str
    role: str
    """`speculative`, `plain` or `remote`: a model may have two engines."""
    text: str


def merged_text(own: str, pages: Iterable[EnginePage]) -> str:
    """One text of the gateway's `own` and all pages, each family's HELP and TYPE once.

    Engines use the same names, and vLLM's label `engine` only counts the copies inside one. So each
    sample of a page gets the labels `model` and `role`; labels that are called so already become
    `exported_model` and `exported_role`, as Prometheus itself does it. A page that is no such
    text, and a family that another page shows with another type, are left out with a warning:
    either would make the whole text worthless.
    """
    merged = _families(own)
    for page in pages:
        try:
            theirs = _families(page.text, (("model", page.model), ("role", page.role)))
        except ValueError as error:
            _log.warning("The metrics of %s (%s) are left out: %s", page.model, page.role, error)
            continue
        for name, family in theirs.items():
            kept = merged.setdefault(name, family)
            if kept.kind != family.kind:
                _log.warning("%s of %s is left out: it is no %s", name, page.model, kept.kind)
            elif kept is not family:
                kept.samples += family.samples
    return "".join(line + "\n" for name, family in merged.items() for line in family.lines(name))


@dataclass
class _Family:
    help: str | None = None
    kind: str = "untyped"
    samples: list[str] = field(default_factory=list)

    def lines(self, name: str) -> list[str]:
        head = [] if self.help is None else [self.help]
        return [*head, f"# TYPE {name} {self.kind}", *self.samples]


_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{(.*)\})?\s*(?<=[\s}])(\S+(?:\s+-?\d+)?)", re.ASCII)
_LABEL = re.compile(r'([a-zA-Z_]\w*)\s*=\s*("(?:[^"\\]|\\.)*")', re.ASCII)
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("", "_sum", "_count")}


def _families(text: str, labels: Iterable[tuple[str, str]] = ()) -> dict[str, _Family]:
    """The families of a text, in its order, with `labels` added to each sample.

    Read line by line: a parser that takes every label apart would hold up the streams.

    Raises:
        ValueError: a line is neither a comment nor a sample.
    """
    ours = [name for name, _ in labels]
    added = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    found: dict[str, _Family] = {}
    names: frozenset[str] = frozenset()
    family = _Family()
    for line in filter(None, map(str.strip, text.split("\n"))):
        words = line.split(None, 3)
        if line.startswith("#"):
            if len(words) == 4 and words[1] in ("HELP", "TYPE"):
                family = found.setdefault(words[2], _Family())
                if words[1] == "HELP":
                    family.help = line
                else:
                    family.kind = words[3]
                names = frozenset(words[2] + end for end in _SUFFIXES.get(family.kind, ("",)))
            continue
        sample = _SAMPLE.fullmatch(line)
        if sample is None:
            raise ValueError(f"'{line[:80]}' is no sample")
        name, inside, value = sample.groups("")
        float(value.split()[0])
        if name not in names:
            family, names = found.setdefault(name, _Family()), frozenset({name})
        if any(one in inside for one in ours):
            inside = _LABEL.sub(lambda pair: _renamed(pair, ours), inside)
        inside = ",".join(filter(None, (inside.rstrip(", "), added)))
        family.samples.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")
    return found


def _renamed(pair: re.Match[str], taken: list[str]) -> str:
    return f"exported_{pair[0]}" if pair[1] in taken else pair[0]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
