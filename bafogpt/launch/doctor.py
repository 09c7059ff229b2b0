"""What a launch needs, tried one by one: SkyPilot, clouds, secrets, bucket, Hub, image, prices, clock.

Every check runs at the same time as the others, with a deadline of its own: one that hangs is reported as such and
holds nobody up. Nothing is left behind: the object written to try the bucket is removed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from bafogpt.core import schema
from bafogpt.core.errors import AuthError, BafoError, ConflictError, NotFoundError
from bafogpt.core.settings import EMBEDDED, Settings
from bafogpt.jobs import resolve, tracking
from bafogpt.jobs import task as tasks
from bafogpt.jobs.image_ref import digest_of
from bafogpt.launch import catalog, images, quote, sky_probe
from bafogpt.storage.bucket import Bucket

State = Literal["ok", "warning", "failed"]

DEADLINE_S = 20.0
CLOUDS_DEADLINE_S = 60.0
SKEW_WARNING_S = 30.0
SKEW_FAILED_S = 600.0
"""S3 refuses requests that are signed a quarter of an hour off."""
API_SERVER_PORT = "46580"
"""Where SkyPilot's API server is unless it is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    name: str
    state: State
    words: str
    mend: str = ""
    """What to type next."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """The launch that is looked at."""

    settings: Settings
    infra: str
    task: Mapping[str, Any]
    """As its file has it, with ``--gpus`` laid on it."""
    root: Path
    publishes: bool = False
    """Whether the job sends its checkpoints to the Hub."""

    @property
    def rented(self) -> bool:
        return self.infra != "local"

    @classmethod
    def of(cls, job: str, settings: Settings, *, gpus: str | None = None, infra: str | None = None) -> CheckContext:
        """Raises :class:`~bafogpt.core.errors.ConfigError` for a job that cannot be read."""
        source = resolve.find(job, settings)
        task = tasks.load(source.root / "sky" / f"{source.job.task}.yaml")
        task = schema.merge(task, {"secrets": dict.fromkeys(tracking.required_env(source.job.tracking))})
        if gpus is not None:
            kind, count = tasks.parse_gpus(gpus)
            task = schema.merge(task, {"resources": {"accelerators": f"{kind}:{count}"}})
        return cls(
            settings=settings,
            infra=infra or settings.infra,
            task=task,
            root=source.root,
            publishes=source.job.supervisor.publish_to is not None,
        )


@dataclass(frozen=True)
class Check:
    """One thing to try. It may return several findings, and may raise what it meets."""

    name: str
    run: Callable[[CheckContext], Sequence[Finding]]
    deadline_s: float = DEADLINE_S


def run_checks(patient: CheckContext, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """Run all checks at once; their findings in the checks' order, each as soon as it and those before are there."""
    running = [_Running(check, patient) for check in (CHECKS if checks is None else checks)]
    for each in running:
        yield from each.findings()


class _Running:
    """A check at work in a thread that nobody waits for beyond its deadline."""

    def __init__(self, check: Check, patient: CheckContext) -> None:
        self._check = check
        self._found: Sequence[Finding] = ()
        self._end = time.monotonic() + check.deadline_s
        self._thread = threading.Thread(target=self._run, args=(patient,), name=check.name, daemon=True)
        self._thread.start()

    def findings(self) -> Sequence[Finding]:
        self._thread.join(max(0.0, self._end - time.monotonic()))
        if self._thread.is_alive():
            words = f"no answer within {self._check.deadline_s:g} s"
            return [
                Finding(name=self._check.name, state="failed", words=words, mend="check the network, then try again")
            ]
        return self._found

    def _run(self, patient: CheckContext) -> None:
        name = self._check.name
        try:
            self._found = self._check.run(patient)
        except BafoError as error:
            self._found = [Finding(name=name, state="failed", words=error.message, mend=error.hint)]
        except Exception as error:  # a defect in a check: the others still count
            words = f"the check itself failed: {type(error).__name__}: {error}"
            self._found = [Finding(name=name, state="failed", words=words, mend="report it")]


def check_skypilot(patient: CheckContext) -> list[Finding]:
    """Whether SkyPilot is here, and which."""
    if not sky_probe.installed():
        words = "SkyPilot is not installed" + ("" if patient.rented else "; a launch on this machine needs none")
        state: State = "failed" if patient.rented else "warning"
        return [Finding(name="skypilot", state=state, words=words, mend=sky_probe.INSTALL_HINT)]
    return [Finding(name="skypilot", state="ok", words=f"SkyPilot {importlib.metadata.version('skypilot')}")]


def check_api_server(patient: CheckContext) -> list[Finding]:
    """Whether SkyPilot's API server answers; one of this machine's own is started by the first launch."""
    url = api_server()
    own = urlsplit(url).hostname in ("127.0.0.1", "localhost", "0.0.0.0", "::1")  # noqa: S104 - compared, not bound
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=5) as answer:  # noqa: S310 - SkyPilot's own address
            told = json.load(answer)
    except (OSError, ValueError, urllib.error.URLError) as error:
        if own:
            words = f"no server at {url}; the first launch starts one"
            return [Finding(name="api server", state="warning", words=words, mend="sky api start")]
        state: State = "failed" if patient.rented else "warning"
        reason = getattr(error, "reason", error)
        return [Finding(name="api server", state=state, words=f"{url} does not answer ({reason})", mend="sky api info")]
    version = told.get("version", "?") if isinstance(told, dict) else "?"
    return [Finding(name="api server", state="ok", words=f"{url}, SkyPilot {version}")]


def api_server() -> str:
    """The address of SkyPilot's API server: its variable, its configuration, or this machine, at SkyPilot's port."""
    named = os.environ.get("SKYPILOT_API_SERVER_ENDPOINT")
    if not named:
        config = Path(os.environ.get("SKYPILOT_GLOBAL_CONFIG") or "~/.sky/config.yaml").expanduser()
        if config.is_file():
            named = (schema.load_yaml(config).get("api_server") or {}).get("endpoint")
    here = f"http://127.0.0.1:{os.environ.get('SKYPILOT_API_SERVER_LOCAL_PORT') or API_SERVER_PORT}"
    return (named or here).rstrip("/")


def check_clouds(patient: CheckContext) -> list[Finding]:
    """Whether the credentials of the wanted cloud work; without one, of any."""
    cloud = patient.infra.partition("/")[0] if patient.rented else None
    cloud = {"k8s": "kubernetes"}.get(cloud, cloud) if cloud else None
    if not sky_probe.installed():
        return []
    answer = sky_probe.ask("clouds", *([cloud] if cloud else []), deadline_s=CLOUDS_DEADLINE_S - 5)
    if answer is None:
        state: State = "failed" if patient.rented else "warning"
        return [Finding(name="clouds", state=state, words="SkyPilot gives no answer", mend="sky check")]
    found = answer["clouds"]
    enabled = sorted(name for name, each in found.items() if each["enabled"])
    if cloud:
        if enabled:
            return [Finding(name="clouds", state="ok", words=f"{cloud}: its credentials work")]
        words = f"{cloud}: {found[cloud]['reason'] or 'not enabled'}"
        return [Finding(name="clouds", state="failed", words=words, mend=f"sky check {cloud}")]
    if enabled:
        return [Finding(name="clouds", state="ok", words=f"enabled: {', '.join(enabled)}")]
    return [Finding(name="clouds", state="warning", words="no cloud is enabled", mend="sky check")]


def check_secrets(patient: CheckContext) -> list[Finding]:
    """Whether the variables whose values the task is given have one here."""
    named = patient.task.get("secrets") or {}
    missing = [name for name, value in named.items() if value is None and not os.environ.get(name)]
    needed = [name for name in missing if name != "HF_TOKEN"]  # the Hub has a line of its own
    if not patient.rented or not needed:
        return [Finding(name="secrets", state="ok", words=f"{len(named) - len(missing)} of {len(named)} are set")]
    words = f"{', '.join(needed)}: not set here, so the job would not have them"
    return [
        Finding(name="secrets", state="failed", words=words, mend=f"export {' '.join(f'{each}=…' for each in needed)}")
    ]


def check_bucket(patient: CheckContext) -> list[Finding]:
    """Write, read, refuse to overwrite, remove; and what the store's clock says, by the time it gives the object."""
    settings = patient.settings
    if patient.rented and (settings.s3_endpoint == EMBEDDED or settings.bucket.startswith("file:")):
        words = f"{settings.bucket} is on this machine: a rented one cannot reach it"
        if not quote.is_own(patient.infra):
            return [Finding(name="bucket", state="failed", words=words, mend="export BAFOGPT_BUCKET=s3://MY-BUCKET")]
    bucket = Bucket.open(settings.bucket, replace(settings, s3_timeout_s=min(10.0, settings.s3_timeout_s)))
    try:
        bucket.check()
    except NotFoundError as error:
        if settings.s3_endpoint != EMBEDDED:
            raise
        mend = "bafogpt data prepare starter --tokenizer bytes --out data/starter"  # which makes the bucket, too
        return [Finding(name="bucket", state="failed", words=error.message, mend=mend)]
    path, data = f"doctor/{uuid.uuid4().hex}", uuid.uuid4().bytes
    before = time.time()
    bucket.put(path, data, create_only=True)
    try:
        after = time.time()
        if bucket.get(path) != data:
            words = f"{bucket.url}: what is read is not what was written"
            return [Finding(name="bucket", state="failed", words=words, mend="bafogpt config show")]
        stamp = bucket.info(path).modified.timestamp()
        guarded = _refuses_to_overwrite(bucket, path)
    finally:
        bucket.delete(path)
    found = [Finding(name="bucket", state="ok", words=f"{bucket.url}: written, read and removed")]
    if guarded:
        found.append(
            Finding(name="If-None-Match", state="ok", words="the store refuses to overwrite when it is told to")
        )
    else:
        words = "the store overwrites although it is told not to: two supervisors could hold one run"
        found.append(
            Finding(name="If-None-Match", state="failed", words=words, mend="use a store with conditional writes")
        )
    if bucket.exists(path):
        words, mend = f"{bucket.url}/{path} is still there after its removal", f"bafogpt storage ls {bucket.url}/doctor"
        found.append(Finding(name="bucket", state="warning", words=words, mend=mend))
    return [*found, *([] if settings.bucket.startswith("file:") else [_skew(before, after, stamp)])]


def _refuses_to_overwrite(bucket: Bucket, path: str) -> bool:
    try:
        bucket.put(path, b"overwritten", create_only=True)
    except ConflictError:
        return True
    return False


def _skew(before: float, after: float, stamp: float) -> Finding:
    """How far this machine's clock is from the store's, which counts in whole seconds."""
    off = before - stamp - 1 if stamp < before - 1 else min(0.0, after - stamp)
    state: State = "failed" if abs(off) > SKEW_FAILED_S else "warning" if abs(off) > SKEW_WARNING_S else "ok"
    if state == "ok":
        return Finding(name="clock", state=state, words="agrees with the store's")
    side = "ahead of" if off > 0 else "behind"
    words = f"this machine's clock is {abs(off):,.0f} s {side} the store's"
    return Finding(name="clock", state=state, words=words, mend="timedatectl set-ntp true")


def check_hub(patient: CheckContext) -> list[Finding]:
    """Whether HF_TOKEN is accepted, and what it may do."""
    from bafogpt.storage.hub import repository

    mend = repository.TOKEN_HINT.format(what="write").removesuffix(" it")
    wanted: State = "failed" if patient.publishes else "warning"
    if not repository.token():
        words = "HF_TOKEN is not set: nothing can be published, and no gated model read"
        return [Finding(name="hub", state=wanted, words=words, mend=mend)]
    location = repository.HubLocation.parse("hf://token/check")
    try:
        with repository.map_errors(location):
            told = repository.client().whoami()
    except AuthError:
        return [Finding(name="hub", state="failed", words="the Hub does not accept HF_TOKEN", mend=mend)]
    except BafoError:
        words = f"{repository.endpoint()} cannot be reached"
        return [Finding(name="hub", state=wanted, words=words, mend="check the network, then try again")]
    role = str(((told.get("auth") or {}).get("accessToken") or {}).get("role") or "unknown")
    words = f"HF_TOKEN of {told.get('name', '?')} may {role}"
    if role == "write":
        return [Finding(name="hub", state="ok", words=words)]
    if role == "fineGrained":
        scopes = _scopes(told)
        if any("write" in each for each in scopes):
            words = f"HF_TOKEN of {told.get('name', '?')} is fine-grained, with {', '.join(scopes)}"
            return [Finding(name="hub", state="ok", words=words)]
    return [Finding(name="hub", state=wanted, words=f"{words} only: nothing can be published", mend=mend)]


def _scopes(told: Mapping[str, Any]) -> list[str]:
    """What a fine-grained token may do, anywhere."""
    grained = ((told.get("auth") or {}).get("accessToken") or {}).get("fineGrained") or {}
    scoped = [each.get("permissions") or [] for each in grained.get("scoped") or []]
    return sorted({*(grained.get("global") or []), *(name for names in scoped for name in names)})


def check_image(patient: CheckContext) -> list[Finding]:
    """Whether every task runs in one image, by its digest."""
    if not patient.rented:
        return [Finding(name="image", state="ok", words="a job on this machine runs in no image")]
    try:
        image = images.check(images.checkout(patient.root))
    except NotFoundError:  # a wheel without its checkout
        named = tasks.image_id(patient.task)
        if digest_of(named):
            return [Finding(name="image", state="ok", words=str(named))]
        words = f"{named or 'no image'}: not named by its digest, and a tag can move"
        return [Finding(name="image", state="warning", words=words, mend="--image REF@sha256:…")]
    if image.digest is None:
        words = f"{image.reference} is a tag, which can move, and none has been pinned yet"
        mend = f"bafogpt image pin {image.repository}@sha256:…"
        return [Finding(name="image", state="warning", words=words, mend=mend)]
    return [Finding(name="image", state="ok", words=image.reference)]


def check_gpu(patient: CheckContext) -> list[Finding]:
    """Whether the task's GPU is offered where it is to run, and at what price."""
    asked = tasks.accelerators(patient.task)
    if asked is None or quote.is_own(patient.infra):
        return [Finding(name="gpu", state="ok", words=f"{patient.infra}: nobody sends a bill")]
    gpu, count = asked
    try:
        found = catalog.cached_offers(gpu, count, patient.infra)
    except NotFoundError as error:
        state: State = "failed" if catalog.has_prices(patient.infra) else "warning"
        return [Finding(name="gpu", state=state, words=error.message, mend=error.hint)]
    kinds = {each.spot: each for each in reversed(found.offers)}
    offers = [f"{'spot' if spot else 'on demand'} {kinds[spot].usd_per_hour:.2f} $/h" for spot in sorted(kinds)]
    words = f"{gpu}:{count} at {found.offers[0].cloud}: {', '.join(offers)} ({found.words})"
    return [Finding(name="gpu", state="ok", words=words)]


CHECKS = (
    Check("skypilot", check_skypilot),
    Check("api server", check_api_server),
    Check("clouds", check_clouds, CLOUDS_DEADLINE_S),
    Check("secrets", check_secrets),
    Check("bucket", check_bucket, 60.0),
    Check("hub", check_hub),
    Check("image", check_image),
    Check("gpu", check_gpu),
)
