"""Errors of the hub in plain words. No message holds a token or a signed address, whatever the server sends."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from vwm.core.bundle_folder import BundleError
from vwm.hub.hub_name import HubName

LOGIN = "log in with hf auth login, or set HF_TOKEN"


class HubError(BundleError):
    """The hub does not give or take a bundle; the message says why and what helps."""


class HubUnreachableError(HubError):
    """The hub cannot be asked: no network, no answer, or offline mode."""


@contextmanager
def hub_errors(name: HubName, writing: bool = False) -> Iterator[None]:
    """Raise errors of huggingface_hub as HubError, and keep secrets out of what it logs meanwhile.

    Args:
        name: of the repository that is read or written.
        writing: whether it is written.

    Raises:
        HubUnreachableError: the hub cannot be asked.
        HubError: it refuses, or answers with an error.
    """
    logger = logging.getLogger("huggingface_hub.file_download")
    logger.addFilter(_redact_record)
    try:
        yield
    except BundleError:
        raise
    except JSONDecodeError:
        raise HubError(f"{hub_endpoint()} does not answer as a hub does: check HF_ENDPOINT, and the network") from None
    except Exception as error:
        reason = _find_reason(error)
        if reason is None:
            raise
        if is_unreachable(reason):
            raise HubUnreachableError(_describe_unreachable(reason)) from None
        raise HubError(describe_hub_error(reason, name, writing)) from None
    finally:
        logger.removeFilter(_redact_record)


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that no server answered."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return False
    return isinstance(error, OfflineModeIsEnabled | ConnectionError | TimeoutError) or _is_of_http_client(error)


def describe_hub_error(error: BaseException, name: HubName, writing: bool = False) -> str:
    """Return what an error of huggingface_hub means for a repository, with the remedy."""
    from huggingface_hub import errors

    where = f"{name.repository} at {hub_endpoint()}"
    if isinstance(error, errors.GatedRepoError):
        return f"{where} asks its readers to accept its conditions: open its page, accept them, and {LOGIN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{where} has no revision {name.revision!r}: give one of its branches, tags or commits"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{where} lists a file that it does not give: {_file_of(error)}; tell its owner"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no {where}, or it is private: check the name, and if it is private, {LOGIN}"
    if status == 401:
        return f"the hub does not accept the token for {where}: it is revoked, expired or mistyped; {LOGIN} again"
    if status == 403:
        access = "write to" if writing else "read"
        return f"the token may not {access} {where}: use one whose role allows it, or ask an owner; {LOGIN}"
    if status is not None:
        said = redact(str(getattr(error, "server_message", None) or "")).strip()
        return f"the hub answered {status} for {where}{said and f' ({said[:300]})'}: try again later"
    return f"{where}: {redact(str(error))[:500]}"


def hub_endpoint() -> str:
    """Return the address of the hub, from HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def redact(text: str) -> str:
    """Return a text without tokens, and without the queries of addresses, which may sign them."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "[token]") if token else text
    text = re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1?...", text)
    text = re.sub(r"(https?://)[^\s/@]+@", r"\1...@", text)
    text = re.sub(r"\b(?:hf|api)_[A-Za-z0-9_]{6,}", "[token]", text)
    return re.sub(r"(?i)(bearer|basic)\s+[^\s'\"]+", r"\1 [token]", text)


def _redact_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = redact(record.getMessage()), ()
    return True


def _describe_unreachable(error: BaseException) -> str:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that the hub is not asked"
    return f"{hub_endpoint()} does not answer ({type(error).__name__}: {redact(str(error))[:200]})"


def _find_reason(error: BaseException) -> BaseException | None:
    """Return the error of the hub that an error stems from; uploads and lost connections are raised as other errors."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        return _find_reason(error.__cause__)
    return error if _is_of_hub(error) or is_unreachable(error) else None


def _is_of_http_client(error: BaseException) -> bool:
    """Whether an error is one of the HTTP client of huggingface_hub, whose package changes with its version."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore")


def _is_of_hub(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] == "huggingface_hub"


def _file_of(error: BaseException) -> str:
    matched = re.search(r"/resolve/[^/\s]+/(\S+)", str(error))
    return "one" if matched is None else redact(matched[1].rstrip("."))
