"""SkyPilot's exceptions as our errors: what is wrong, and what to type next.

They are recognised by class name (``sky.exceptions`` of 0.14.1), so nothing of SkyPilot is imported here. What a cloud
refused is only in the text, because SkyPilot passes on the message of the cloud's client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from bafogpt.core.errors import (
    AuthError,
    BafoError,
    ConfigError,
    ConflictError,
    JobCancelledError,
    RunNotFoundError,
    UsageError,
)


class CapacityError(BafoError):
    """Every candidate was tried; none had the requested machine."""


class NotOfferedError(CapacityError):
    """No cloud has such a machine at all."""


class CloudServerError(BafoError):
    """A cloud's own servers failed: worth a retry, and not a matter of credentials."""


class MachineError(BafoError):
    """A rented machine came up, and SkyPilot could not set it up: another machine may work."""


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NOT_ENABLED = re.compile(r"requires (\S+?) which is not enabled", re.I)
_SETUP_FAILED = re.compile(r"failed to (run setup commands|set up skypilot runtime)", re.I)
_NOT_OFFERED = re.compile(r"catalog does not contain any instances|no resource satisfying|not available in any", re.I)

_REFUSALS: tuple[tuple[str, type[BafoError], str, str], ...] = (
    (
        r"\b(401|unauthori[sz]ed|invalid api key|api key is invalid|authentication failed|expired token)\b",
        AuthError,
        "the cloud rejects the credentials",
        "sky check",
    ),
    (
        r"\b(403|forbidden|access denied|permission denied|not authori[sz]ed)\b",
        AuthError,
        "the cloud's credentials lack the permission",
        "sky check",
    ),
    (
        r"\b(quota|limit exceeded|limitexceeded|spending limit)\b",
        CapacityError,
        "the account's quota is used up",
        "ask the cloud for a higher quota, or --infra another",
    ),
    (  # "expecting value": RunPod's client got an error page in place of JSON
        r"\b(50[0234]|internal server error|bad gateway|service unavailable|connection reset"
        r"|expecting value: line 1 column 1)\b",
        CloudServerError,
        "the cloud's servers fail",
        "try again in a few minutes",
    ),
)
"""Pattern in a cloud's message, error, message, hint."""

_CREDENTIALS = (AuthError, "the cloud's credentials are not usable: {text}", "sky check")
_UNSUPPORTED = (BafoError, "SkyPilot does not support this there: {text}", "bafogpt cloud launch --help")
_BUSY = (CloudServerError, "SkyPilot's API server is busy: {text}", "try again in a minute")
_TABLE: dict[str, tuple[type[BafoError], str, str]] = {
    "ApiServerConnectionError": (BafoError, "SkyPilot's API server does not answer: {text}", "sky api start"),
    "ApiServerAuthenticationError": (AuthError, "SkyPilot's API server requires a login", "sky api login"),
    "NoCloudAccessError": (AuthError, "no cloud is enabled in SkyPilot", "sky check"),
    "ClusterDoesNotExist": (RunNotFoundError, "no cluster {cluster}", "bafogpt cloud ls"),
    "ClusterNotUpError": (ConflictError, "{cluster} is not up: {text}", "bafogpt cloud status {run}"),
    "InvalidClusterNameError": (UsageError, "{text}", "--name zulu-pretrain-2"),
    "InvalidCloudCredentials": _CREDENTIALS,
    "InvalidCloudConfigs": _CREDENTIALS,
    "CloudUserIdentityError": _CREDENTIALS,
    "ClusterOwnerIdentityMismatchError": _CREDENTIALS,
    "PermissionDeniedError": _CREDENTIALS,
    "ResourcesMismatchError": (
        ConflictError,
        "{cluster} is up with other resources: {text}",
        "bafogpt cloud down {run}",
    ),
    "RequestCancelled": (JobCancelledError, "SkyPilot's request for {run} was cancelled", "bafogpt cloud ls"),
    "NotSupportedError": _UNSUPPORTED,
    "ProvisionUnsupportedError": _UNSUPPORTED,
    "InvalidSkyPilotConfigError": (
        ConfigError,
        "SkyPilot refuses the task: {text}",
        "bafogpt cloud launch JOB --dry-run",
    ),
    "ServerTemporarilyUnavailableError": _BUSY,
    "ConcurrentWorkerExhaustedError": _BUSY,
}
"""Error, message and hint for each of SkyPilot's exceptions."""
_UNAVAILABLE = ("ResourcesUnavailableError", "ManagedJobReachedMaxRetriesError", "ProvisionPrechecksError")


def strip_ansi(text: str) -> str:
    """The text without terminal colours and cursor movements."""
    return _ANSI.sub("", text)


def plain(text: object) -> str:
    """SkyPilot's text on one line, without colours."""
    return " ".join(strip_ansi(str(text)).split())


def explain(error: BaseException, run: str = "", refusals: Sequence[str] = ()) -> BafoError:
    """Our error for one of SkyPilot's.

    ``run`` is the run of the failed call; ``refusals`` are clouds' messages that SkyPilot logged during it
    (:class:`~bafogpt.launch.engines.skypilot.log_filter.LogFilter`).
    """
    text = plain(error)
    for base in type(error).__mro__:
        if base.__name__ in _UNAVAILABLE:
            return _unavailable(error, refusals)
        if base.__name__ in _TABLE:
            kind, message, hint = _TABLE[base.__name__]
            values = {"run": run, "cluster": f"cluster {run}".strip(), "text": _short(text)}
            return kind(message.format(**values), hint.format(**values).strip())
    if _SETUP_FAILED.search(text):
        return MachineError(f"SkyPilot could not set up the machine: {_short(text)}", "sky api logs")
    unknown = BafoError(f"SkyPilot: {type(error).__name__}: {_short(text)}", "sky api logs; sky check")
    return _refusal(text) or unknown


def _unavailable(error: BaseException, refusals: Sequence[str]) -> BafoError:
    """SkyPilot 0.14.1 omits the reasons of some clouds, RunPod among them, from the exception."""
    text = plain(error)
    reasons = _reasons(error) or list(dict.fromkeys(_short(plain(each)) for each in refusals))
    if disabled := _NOT_ENABLED.search(text):
        return AuthError(f"{disabled[1]} is not enabled in SkyPilot", f"sky check {disabled[1]}")
    if not reasons and _NOT_OFFERED.search(text):
        detail = _short(text.partition(" To fix:")[0])
        return NotOfferedError(f"no cloud offers this: {detail}", "bafogpt cloud launch JOB --gpus L40:4")
    found = [_refusal(each) for each in reasons or [text]]
    listing = "; ".join(reasons) or _short(text)
    first = found[0]
    if first is not None and len({type(each) for each in found}) == 1:
        return type(first)(f"{first.message.partition(':')[0]}: {listing}", first.hint)
    return CapacityError(f"no capacity: {listing}", "try again with --retry-until-up, another --gpus or --infra")


def _reasons(error: BaseException) -> list[str]:
    """Why each candidate was refused, in the order in which they were tried; each reason once."""
    texts = (plain(each) for each in _innermost(error))
    return list(dict.fromkeys(_short(each) for each in texts if each and not each.startswith("Failed to acquire")))


def _innermost(error: BaseException) -> Iterator[BaseException]:
    """The exceptions at the bottom of a failover's history."""
    for each in [*(getattr(error, "failover_history", None) or ()), *(getattr(error, "reasons", None) or ())]:
        yield from list(_innermost(each)) or [each]


def _refusal(text: str) -> BafoError | None:
    """The error for a cloud's message that is about something other than capacity."""
    for pattern, kind, message, hint in _REFUSALS:
        if re.search(pattern, text, re.I):
            return kind(f"{message}: {_short(text)}", hint)
    return None


def _short(text: str, limit: int = 240) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
