"""``bafogpt cloud doctor``: checks of everything that a launch needs.

SkyPilot, clouds, secrets, bucket, Hub, image, prices, clock. All checks run at the same time, each with its own
deadline; one that hangs is reported and delays no other. Nothing is left behind: the object that tests the bucket is
deleted."""

from __future__ import annotations

import importlib.metadata
import json
import os
import threading
import time
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

CheckState = Literal["ok", "warning", "failed"]

DEADLINE_S = 20.0
CLOUDS_DEADLINE_S = 60.0
SKEW_WARNING_S = 30.0
SKEW_FAILED_S = 600.0
"""S3 refuses requests whose signature is 15 minutes off."""
API_SERVER_PORT = "46580"
"""The default port of SkyPilot's API server."""
NETWORK_HINT = "check the network, then try again"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: CheckState
    message: str
    hint: str = ""
    """What to type next."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """The launch that is checked."""

    settings: Settings
    infra: str
    task: Mapping[str, Any]
    """The task file, with ``--gpus`` applied."""
    root: Path
    publishes: bool = False
    """Whether the job publishes its checkpoints on the Hub."""

    @property
    def rented(self) -> bool:
        return self.infra != "local"

    @property
    def problem(self) -> CheckState:
        """The state of a problem that only rented machines have."""
        return "failed" if self.rented else "warning"

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
    """One check. ``run`` may return several findings; an exception becomes a failed finding."""

    name: str
    run: Callable[[CheckContext], Sequence[Finding]]
    deadline_s: float = DEADLINE_S


def run_checks(context: CheckContext, checks: Sequence[Check] | None = None) -> Iterator[Finding]:
    """Run all checks in parallel; yields their findings in the checks' order as they arrive."""
    running = [_RunningCheck(check, context) for check in (CHECKS if checks is None else checks)]
    for each in running:
        yield from each.findings()


class _RunningCheck:
    """A check in a daemon thread, which is abandoned at its deadline."""

    def __init__(self, check: Check, context: CheckContext) -> None:
        self._check = check
        self._found: Sequence[Finding] = ()
        self._end = time.monotonic() + check.deadline_s
        self._thread = threading.Thread(target=self._run, args=(context,), name=check.name, daemon=True)
        self._thread.start()

    def findings(self) -> Sequence[Finding]:
        self._thread.join(max(0.0, self._end - time.monotonic()))
        if self._thread.is_alive():
            message = f"no answer within {self._check.deadline_s:g} s"
            return [Finding(self._check.name, "failed", message, NETWORK_HINT)]
        return self._found

    def _run(self, context: CheckContext) -> None:
        name = self._check.name
        try:
            self._found = self._check.run(context)
        except BafoError as error:
            self._found = [Finding(name, "failed", error.message, error.hint)]
        except Exception as error:  # a bug in a check: the others still count
            message = f"the check itself failed: {type(error).__name__}: {error}"
            self._found = [Finding(name, "failed", message, "report it")]


def check_skypilot(context: CheckContext) -> list[Finding]:
    """Whether SkyPilot is installed, and which version."""
    if not sky_probe.installed():
        message = "SkyPilot is not installed" + ("" if context.rented else "; a launch on this machine needs none")
        return [Finding("skypilot", context.problem, message, sky_probe.INSTALL_HINT)]
    return [Finding("skypilot", "ok", f"SkyPilot {importlib.metadata.version('skypilot')}")]


def check_api_server(context: CheckContext) -> list[Finding]:
    """Whether SkyPilot's API server answers; the first launch starts one on this machine."""
    url = api_server()
    own = urlsplit(url).hostname in ("127.0.0.1", "localhost", "0.0.0.0", "::1")  # noqa: S104 - compared, not bound
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=5) as answer:  # noqa: S310 - SkyPilot's own address
            health = json.load(answer)
    except (OSError, ValueError) as error:
        if own:
            message = f"no server at {url}; the first launch starts one"
            return [Finding("api server", "warning", message, "sky api start")]
        message = f"{url} does not answer ({getattr(error, 'reason', error)})"
        return [Finding("api server", context.problem, message, "sky api info")]
    version = health.get("version", "?") if isinstance(health, dict) else "?"
    return [Finding("api server", "ok", f"{url}, SkyPilot {version}")]


def api_server() -> str:
    """The address of SkyPilot's API server: from its variable, its configuration, or the default."""
    url = os.environ.get("SKYPILOT_API_SERVER_ENDPOINT")
    if not url:
        config = Path(os.environ.get("SKYPILOT_GLOBAL_CONFIG") or "~/.sky/config.yaml").expanduser()
        if config.is_file():
            url = (schema.load_yaml(config).get("api_server") or {}).get("endpoint")
    default = f"http://127.0.0.1:{os.environ.get('SKYPILOT_API_SERVER_LOCAL_PORT') or API_SERVER_PORT}"
    return (url or default).rstrip("/")


def check_clouds(context: CheckContext) -> list[Finding]:
    """Whether the credentials of the launch's cloud work; for a local launch, those of any cloud."""
    if not sky_probe.installed():
        return []
    cloud = context.infra.partition("/")[0] if context.rented else ""
    cloud = {"k8s": "kubernetes"}.get(cloud, cloud)
    answer = sky_probe.ask("clouds", *filter(None, [cloud]), deadline_s=CLOUDS_DEADLINE_S - 5)
    if answer is None:
        return [Finding("clouds", context.problem, "SkyPilot does not answer", "sky check")]
    enabled = sorted(name for name, each in answer["clouds"].items() if each["enabled"])
    if cloud and not enabled:
        message = f"{cloud}: {answer['clouds'][cloud]['reason'] or 'not enabled'}"
        return [Finding("clouds", "failed", message, f"sky check {cloud}")]
    if enabled:
        return [
            Finding("clouds", "ok", f"{cloud}: its credentials work" if cloud else f"enabled: {', '.join(enabled)}")
        ]
    return [Finding("clouds", "warning", "no cloud is enabled", "sky check")]


def check_secrets(context: CheckContext) -> list[Finding]:
    """Whether the task's secrets are set in this environment."""
    names = context.task.get("secrets") or {}
    missing = [name for name, value in names.items() if value is None and not os.environ.get(name)]
    needed = [name for name in missing if name != "HF_TOKEN"]  # reported by check_hub
    if not context.rented or not needed:
        return [Finding("secrets", "ok", f"{len(names) - len(missing)} of {len(names)} are set")]
    message = f"{', '.join(needed)}: not set here, and the job needs them"
    return [Finding("secrets", "failed", message, f"export {' '.join(f'{each}=…' for each in needed)}")]


def check_bucket(context: CheckContext) -> list[Finding]:
    """Whether the bucket can be reached from where the job runs, and works."""
    settings = context.settings
    is_folder = settings.bucket.startswith("file:")
    if context.rented and not quote.is_self_hosted(context.infra) and (settings.s3_endpoint == EMBEDDED or is_folder):
        message = f"{settings.bucket} is on this machine: a rented machine cannot reach it"
        return [Finding("bucket", "failed", message, "export BAFOGPT_BUCKET=s3://MY-BUCKET")]
    bucket = Bucket.open(settings.bucket, replace(settings, s3_timeout_s=min(10.0, settings.s3_timeout_s)))
    try:
        bucket.check()
    except NotFoundError as error:
        if settings.s3_endpoint != EMBEDDED:
            raise
        hint = "bafogpt data prepare starter --tokenizer bytes --out data/starter"  # creates the bucket too
        return [Finding("bucket", "failed", error.message, hint)]
    return _try_bucket(bucket, has_clock=not is_folder)


def _try_bucket(bucket: Bucket, *, has_clock: bool) -> list[Finding]:
    """Write, read, try to overwrite and delete an object; and compare its time of writing with this machine's clock."""
    path, data = f"doctor/{uuid.uuid4().hex}", uuid.uuid4().bytes
    before = time.time()
    bucket.put(path, data, create_only=True)
    try:
        after = time.time()
        if bucket.get(path) != data:
            message = f"{bucket.url}: what is read differs from what was written"
            return [Finding("bucket", "failed", message, "bafogpt config show")]
        written = bucket.info(path).modified.timestamp()
        found = [Finding("bucket", "ok", f"{bucket.url}: written, read and deleted"), _try_overwrite(bucket, path)]
    finally:
        bucket.delete(path)
    if bucket.exists(path):
        message = f"{bucket.url}/{path} still exists after its deletion"
        found.append(Finding("bucket", "warning", message, f"bafogpt storage ls {bucket.url}/doctor"))
    return [*found, _clock_skew(before, after, written)] if has_clock else found


def _try_overwrite(bucket: Bucket, path: str) -> Finding:
    try:
        bucket.put(path, b"overwritten", create_only=True)
    except ConflictError:
        return Finding("If-None-Match", "ok", "the store honours conditional writes")
    message = "the store ignores conditional writes: two supervisors could claim one run"
    return Finding("If-None-Match", "failed", message, "use a store with conditional writes")


def _clock_skew(before: float, after: float, written: float) -> Finding:
    """The difference between this machine's clock and the store's, whose times are whole seconds."""
    skew = before - written - 1 if written < before - 1 else min(0.0, after - written)
    if abs(skew) <= SKEW_WARNING_S:
        return Finding("clock", "ok", "agrees with the store's")
    side = "ahead of" if skew > 0 else "behind"
    message = f"this machine's clock is {abs(skew):,.0f} s {side} the store's"
    return Finding("clock", "failed" if abs(skew) > SKEW_FAILED_S else "warning", message, "timedatectl set-ntp true")


def check_hub(context: CheckContext) -> list[Finding]:
    """Whether the Hub accepts HF_TOKEN, and with which permissions."""
    from bafogpt.folders.hub import repository

    hint = repository.TOKEN_HINT.format(what="write").removesuffix(" it")
    problem: CheckState = "failed" if context.publishes else "warning"
    if not repository.token():
        message = "HF_TOKEN is not set: publishing and gated models are not possible"
        return [Finding("hub", problem, message, hint)]
    try:
        with repository.map_errors(repository.HubLocation.parse("hf://token/check")):
            account = repository.client().whoami()
    except AuthError:
        return [Finding("hub", "failed", "the Hub does not accept HF_TOKEN", hint)]
    except BafoError:
        return [Finding("hub", problem, f"{repository.endpoint()} cannot be reached", NETWORK_HINT)]
    token = (account.get("auth") or {}).get("accessToken") or {}
    role, owner = str(token.get("role") or "unknown"), f"HF_TOKEN of {account.get('name', '?')}"
    if role == "write":
        return [Finding("hub", "ok", f"{owner} may write")]
    scopes = _scopes(token.get("fineGrained") or {}) if role == "fineGrained" else []
    if any("write" in each for each in scopes):
        return [Finding("hub", "ok", f"{owner} is fine-grained, with {', '.join(scopes)}")]
    return [Finding("hub", problem, f"{owner} may {role} only: it cannot publish", hint)]


def _scopes(fine_grained: Mapping[str, Any]) -> list[str]:
    """All permissions of a fine-grained token."""
    scoped = [each.get("permissions") or [] for each in fine_grained.get("scoped") or []]
    return sorted({*(fine_grained.get("global") or []), *(name for names in scoped for name in names)})


def check_image(context: CheckContext) -> list[Finding]:
    """Whether every task runs in one image, named by its digest."""
    if not context.rented:
        return [Finding("image", "ok", "a job on this machine runs without a container")]
    try:
        image = images.check(images.checkout(context.root))
    except NotFoundError:  # a wheel without its checkout
        name = tasks.image_id(context.task)
        if digest_of(name):
            return [Finding("image", "ok", str(name))]
        message = f"{name or 'no image'}: not named by its digest, and a tag can move"
        return [Finding("image", "warning", message, "--image REF@sha256:…")]
    if image.digest is None:
        message = f"{image.reference} is a tag, which can move, and none has been pinned yet"
        return [Finding("image", "warning", message, f"bafogpt image pin {image.repository}@sha256:…")]
    return [Finding("image", "ok", image.reference)]


def check_gpu(context: CheckContext) -> list[Finding]:
    """Whether the task's GPUs are offered where it is to run, and at what price."""
    wanted = tasks.accelerators(context.task)
    if wanted is None or quote.is_self_hosted(context.infra):
        return [Finding("gpu", "ok", f"{context.infra}: not rented by the hour")]
    gpu, count = wanted
    try:
        prices = catalog.cached_offers(gpu, count, context.infra)
    except NotFoundError as error:
        state: CheckState = "failed" if catalog.has_prices(context.infra) else "warning"
        return [Finding("gpu", state, error.message, error.hint)]
    cheapest = {each.spot: each.usd_per_hour for each in reversed(prices.offers)}
    offers = [f"{'spot' if spot else 'on demand'} {cheapest[spot]:.2f} $/h" for spot in sorted(cheapest)]
    message = f"{gpu}:{count} at {prices.offers[0].cloud}: {', '.join(offers)} ({prices.describe()})"
    return [Finding("gpu", "ok", message)]


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
