"""SkyPilot's exceptions as two lines: what is wrong, what to type next.

They are told apart by the names of their classes (``sky.exceptions`` of 0.14.1), so that nothing of SkyPilot has to be
imported to explain it. What a cloud refused is in the texts only: SkyPilot passes on what the cloud's client said.
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
    """Every candidate was tried, and none had what was asked for."""


class CloudServerError(BafoError):
    """A cloud's own servers failed: worth another try, and nobody's credentials are to blame."""


class MachineError(BafoError):
    """A machine was rented and came up, and SkyPilot could not make it ready: another may do."""


_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_AUTH = re.compile(
    r"\b(401|unauthori[sz]ed|invalid api key|api key is invalid|authentication failed|expired token)\b", re.I
)
_FORBIDDEN = re.compile(r"\b(403|forbidden|access denied|permission denied|not authori[sz]ed)\b", re.I)
_SERVER = re.compile(
    r"\b(50[0234]|internal server error|bad gateway|service unavailable|connection reset"
    r"|expecting value: line 1 column 1)\b",  # what RunPod's client makes of an error page: it is no JSON
    re.I,
)
_QUOTA = re.compile(r"\b(quota|limit exceeded|limitexceeded|spending limit)\b", re.I)
_NOT_ENABLED = re.compile(r"requires (\S+?) which is not enabled", re.I)
_UNREADY = re.compile(r"failed to (run setup commands|set up skypilot runtime)", re.I)
_NOWHERE = re.compile(r"catalog does not contain any instances|no resource satisfying|not available in any", re.I)


def strip_ansi(text: str) -> str:
    """The text without terminal colours and cursor movements."""
    return _ANSI.sub("", text)


def plain(text: object) -> str:
    """SkyPilot's text on one line, without colours."""
    return " ".join(strip_ansi(str(text)).split())


def explain(error: BaseException, run: str = "", heard: Sequence[str] = ()) -> BafoError:
    """What an exception of SkyPilot means to the user.

    ``run`` is the run that the call was about, ``heard`` what SkyPilot's own account of it said that clouds answered
    (:class:`~bafogpt.launch.engines.skypilot.log_filter.LogFilter`).
    """
    for kind in type(error).__mro__:
        if kind.__name__ in _UNAVAILABLE:
            return _unavailable(error, heard)
        if kind.__name__ in _TABLE:
            return _TABLE[kind.__name__](error, run)
    if _UNREADY.search(plain(error)):
        return MachineError(f"SkyPilot could not make the machine ready: {_short(plain(error))}", "sky api logs")
    refused = _refused(plain(error))
    return refused or BafoError(f"SkyPilot: {type(error).__name__}: {_short(plain(error))}", "sky api logs; sky check")


def reasons(error: BaseException) -> list[str]:
    """Why each candidate was refused, in the order in which they were tried; each reason once."""
    found: dict[str, None] = {}
    for each in _history(error):
        text = plain(each)
        if text and not text.startswith("Failed to acquire resources"):
            found[_short(text)] = None
    return list(found)


def _history(error: BaseException) -> Iterator[BaseException]:
    """The exceptions below a failover, the innermost ones."""
    for each in [*(getattr(error, "failover_history", None) or ()), *(getattr(error, "reasons", None) or ())]:
        inner = list(_history(each))
        yield from inner or [each]


def _unavailable(error: BaseException, heard: Sequence[str]) -> BafoError:
    """SkyPilot 0.14.1 leaves the reasons of some clouds, RunPod's among them, out of the exception."""
    text, why = plain(error), reasons(error) or list(dict.fromkeys(_short(plain(each)) for each in heard))
    disabled = _NOT_ENABLED.search(text)
    if disabled:
        return AuthError(f"{disabled[1]} is not enabled in SkyPilot", f"sky check {disabled[1]}")
    if not why and _NOWHERE.search(text):
        return CapacityError(
            f"nobody offers that: {_short(text.partition(' To fix:')[0])}", "bafogpt cloud launch JOB --gpus L40:4"
        )
    refused = [_refused(each) for each in why] or [_refused(text)]
    kinds = {type(each) for each in refused}
    listing = "; ".join(why) or _short(text)
    if len(kinds) == 1 and refused[0] is not None:
        first = refused[0]
        return type(first)(f"{first.message.partition(':')[0]}: {listing}", first.hint)
    return CapacityError(
        f"no machine to be had: {listing}", "try again with --retry-until-up, another --gpus or --infra"
    )


def _refused(text: str) -> BafoError | None:
    """What a cloud's words are about, where they are about something else than capacity."""
    if _AUTH.search(text):
        return AuthError(f"the cloud does not accept the credentials: {_short(text)}", "sky check")
    if _FORBIDDEN.search(text):
        return AuthError(f"the cloud's credentials may not do this: {_short(text)}", "sky check")
    if _QUOTA.search(text):
        return CapacityError(
            f"the account's quota is used up: {_short(text)}", "ask the cloud for more, or --infra another"
        )
    if _SERVER.search(text):
        return CloudServerError(f"the cloud's servers fail: {_short(text)}", "try again in a few minutes")
    return None


def _unreachable(error: BaseException, run: str) -> BafoError:
    return BafoError(f"SkyPilot's API server does not answer: {_short(plain(error))}", "sky api start")


def _not_logged_in(error: BaseException, run: str) -> BafoError:
    return AuthError("SkyPilot's API server wants a login", "sky api login")


def _no_cloud(error: BaseException, run: str) -> BafoError:
    return AuthError("no cloud is enabled in SkyPilot", "sky check")


def _unknown(error: BaseException, run: str) -> BafoError:
    return RunNotFoundError(f"no cluster of run '{run}'" if run else _short(plain(error)), "bafogpt cloud ls")


def _not_up(error: BaseException, run: str) -> BafoError:
    return ConflictError(
        f"{run or 'the cluster'} is not up: {_short(plain(error))}", f"bafogpt cloud status {run}".strip()
    )


def _bad_name(error: BaseException, run: str) -> BafoError:
    return UsageError(_short(plain(error)), "--name zulu-pretrain-2")


def _credentials(error: BaseException, run: str) -> BafoError:
    return AuthError(f"the cloud's credentials are not usable: {_short(plain(error))}", "sky check")


def _mismatch(error: BaseException, run: str) -> BafoError:
    return ConflictError(f"{run} is up with other resources: {_short(plain(error))}", f"bafogpt cloud down {run}")


def _cancelled(error: BaseException, run: str) -> BafoError:
    return JobCancelledError(f"SkyPilot's request for {run} was cancelled", "bafogpt cloud ls")


def _unsupported(error: BaseException, run: str) -> BafoError:
    return BafoError(f"SkyPilot cannot do this there: {_short(plain(error))}", "bafogpt cloud launch --help")


def _invalid(error: BaseException, run: str) -> BafoError:
    return ConfigError(f"SkyPilot refuses the task: {_short(plain(error))}", "bafogpt cloud launch JOB --dry-run")


def _busy(error: BaseException, run: str) -> BafoError:
    return CloudServerError(f"SkyPilot's API server is busy: {_short(plain(error))}", "try again in a minute")


_UNAVAILABLE = ("ResourcesUnavailableError", "ManagedJobReachedMaxRetriesError", "ProvisionPrechecksError")
_TABLE = {
    "ApiServerConnectionError": _unreachable,
    "ApiServerAuthenticationError": _not_logged_in,
    "NoCloudAccessError": _no_cloud,
    "ClusterDoesNotExist": _unknown,
    "ClusterNotUpError": _not_up,
    "InvalidClusterNameError": _bad_name,
    "InvalidCloudCredentials": _credentials,
    "InvalidCloudConfigs": _credentials,
    "CloudUserIdentityError": _credentials,
    "ClusterOwnerIdentityMismatchError": _credentials,
    "PermissionDeniedError": _credentials,
    "ResourcesMismatchError": _mismatch,
    "RequestCancelled": _cancelled,
    "NotSupportedError": _unsupported,
    "ProvisionUnsupportedError": _unsupported,
    "InvalidSkyPilotConfigError": _invalid,
    "ServerTemporarilyUnavailableError": _busy,
    "ConcurrentWorkerExhaustedError": _busy,
}


def _short(text: str, limit: int = 240) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
