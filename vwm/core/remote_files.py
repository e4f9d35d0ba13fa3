"""Reach files of object stores and web servers (fsspec addresses such as ``s3://``), with retries and named errors.

What may pass by itself (errors 5xx, 408 and 429, lost or stalled connections, bodies that are too short or are not what
was written) is tried again, with waits that double. What does not (no such object or bucket, refused credentials, an
object that was replaced) is an error that names the address, the cause and the remedy.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

Result = TypeVar("Result")


class StoreError(OSError):
    """A file of a store could not be read or written, in spite of retries."""


class ChangedShardError(StoreError):
    """An object was replaced while it was in use."""


class DamagedBytesError(ValueError):
    """Bytes that came are not those that were written or asked for."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to try again.

    Attributes:
        attempts: at most, of one read or write.
        requests: at most, of one attempt, for each part: a part of a large file is sent again without the rest.
        patience: seconds after which no further attempt begins.
        first_wait, longest_wait: seconds before the second attempt, and at most; each wait is twice the one before.
        connect_timeout: seconds to wait for a connection.
        stall_timeout: seconds without a byte after which an attempt is given up.
        slowest: bytes per second below which an attempt is given up, in addition to ``stall_timeout``.
    """

    attempts: int = 12
    requests: int = 3
    patience: float = 240.0
    first_wait: float = 0.2
    longest_wait: float = 10.0
    connect_timeout: float = 10.0
    stall_timeout: float = 30.0
    slowest: float = 20_000.0

    def wait(self, attempt: int) -> float:
        """Return the seconds to wait after a failed attempt; processes that failed together do not return together."""
        jitter = (time.monotonic_ns() // 1000 + os.getpid() * 7919) % 1000 / 1000
        return min(self.first_wait * 2**attempt, self.longest_wait) * (0.5 + 0.5 * jitter)


RETRY_POLICY = RetryPolicy()


def is_remote(path: str) -> bool:
    """Whether a path is an address of a store or server."""
    return "://" in path


def retry(address: str, what: str, attempt_it: Callable[[], Result], verb: str = "read") -> Result:
    """Call ``attempt_it`` until it succeeds.

    Args:
        address: of the file, for errors.
        what: what is read, for errors: ``bytes 0 to 100``.
        attempt_it: the attempt.
        verb: what is attempted, for errors: ``read`` or ``written``.

    Raises:
        FileNotFoundError: there is no such file, folder or bucket.
        StoreError: the store refuses, or all attempts failed.
    """
    policy, began = RETRY_POLICY, time.monotonic()
    error: Exception
    for attempt in range(policy.attempts):
        try:
            return attempt_it()
        except ChangedShardError:
            raise
        except Exception as raised:
            if not isinstance(raised, (OSError, DamagedBytesError, *_client_errors())):
                raise
            error = raised
            lasting = describe_lasting_error(error)
            if isinstance(lasting, FileNotFoundError):
                raise FileNotFoundError(f"{address}: {lasting}") from error
            if lasting is not None:
                raise StoreError(f"{address}: {what}: {lasting}") from error
            seconds = time.monotonic() - began
            if attempt + 1 == policy.attempts or seconds > policy.patience:
                raise StoreError(
                    f"{address}: {what} could not be {verb} in {attempt + 1} attempts over {seconds:.0f} s; the last "
                    f"error: {describe_error(error)}. A run that is started again resumes where it was"
                ) from error
        time.sleep(policy.wait(attempt))
    raise AssertionError("the last attempt returns or raises")


def _client_errors() -> tuple[type[Exception], ...]:
    """The base classes of the errors of clients, which need not be imported before one of them failed."""
    names = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"))
    return tuple(getattr(sys.modules[module], name) for module, name in names if module in sys.modules)


def error_code(error: BaseException) -> tuple[int, str]:
    """Return the HTTP status and the code of a store (``SlowDown``) behind an error; 0 and "" where there are none."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status or 0), str(response["Error"].get("Code", ""))
        status = getattr(seen, "status", None)
        if isinstance(status, int):
            return status, ""
        seen = seen.__cause__ or seen.__context__
    return 0, ""


def describe_error(error: BaseException) -> str:
    """Return an error in one line, with the codes of the store."""
    status, code = error_code(error)
    text = " ".join(str(error).split()) or type(error).__name__
    codes = " ".join(filter(None, (f"HTTP {status}" if status else "", code if code not in text else "")))
    return f"{text[:300]} ({codes})" if codes and codes not in text else text[:300]


CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and AWS_ENDPOINT_URL for a store that is not AWS"
)


def describe_lasting_error(error: BaseException) -> BaseException | str | None:
    """Return what another attempt would not change, with its remedy; None for an error that may pass."""
    status, code = error_code(error)
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"):
        return f"no credentials were found ({error}): {CREDENTIALS}"
    if code == "NoSuchBucket":
        return FileNotFoundError("there is no such bucket: check its name and AWS_ENDPOINT_URL")
    if status == 404 or code in ("NoSuchKey", "404") or isinstance(error, FileNotFoundError):
        return FileNotFoundError("there is no such file or folder (or it was deleted)")
    if code in ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"):
        return f"the credentials have expired ({code}): renew them, and start the run again; it resumes where it was"
    if code == "RequestTimeTooSkewed":
        return f"the clock of this machine differs from the store's ({code}): set it"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"):
        return f"the store does not accept the credentials ({code}): {CREDENTIALS}"
    if status in (401, 403) or isinstance(error, PermissionError) or code in ("AccessDenied", "403"):
        return f"the store refuses access ({describe_error(error)}): check the rights of the credentials; {CREDENTIALS}"
    if status in (301, 307) or code in ("PermanentRedirect", "IllegalLocationConstraintException"):
        return f"the bucket is in another region ({code or status}): set AWS_DEFAULT_REGION to it"
    if code in ("InvalidBucketName", "InvalidObjectState", "KeyTooLongError"):
        return f"the store refuses the address ({code}: {error})"
    if type(error).__name__ in ("ParamValidationError", "InvalidURL", "NonHttpUrlClientError"):
        return f"the address is invalid ({' '.join(str(error).split())})"
    return None


_FILE_SYSTEMS: dict[tuple[int, str], Any] = {}
_LOCK = threading.Lock()


def open_file_system(address: str) -> Any:
    """Return the fsspec file system of an address: one for all threads of this process.

    Raises:
        ImportError: its package is not installed.
    """
    protocol = fsspec.core.split_protocol(address)[0]
    key = os.getpid(), protocol
    if key not in _FILE_SYSTEMS:
        with _LOCK:
            if key not in _FILE_SYSTEMS:
                _FILE_SYSTEMS[key] = _make_file_system(protocol)
    return _FILE_SYSTEMS[key]


def _make_file_system(protocol: str) -> Any:
    if protocol not in ("s3", "s3a"):
        return fsspec.filesystem(protocol, use_listings_cache=False, skip_instance_cache=True)  # others write, too
    policy = RETRY_POLICY
    try:
        import s3fs
    except ImportError as error:
        raise ImportError(f"addresses of {protocol}:// need s3fs: pip install 'vwm[s3]'") from error
    # Retries are this module's: those of the two clients below it would hide what happens, and multiply.
    client = {
        "retries": {"total_max_attempts": 1},
        "connect_timeout": policy.connect_timeout,
        "read_timeout": policy.stall_timeout,
        "max_pool_connections": 64,
    }
    file_system = s3fs.S3FileSystem(config_kwargs=client, use_listings_cache=False, skip_instance_cache=True)
    file_system.retries = policy.requests
    return file_system


def _reset_after_fork() -> None:
    """Give a forked process a lock that no thread of its parent holds."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


@dataclass(frozen=True)
class FileState:
    """A file of a store as it was at one time.

    Attributes:
        size: in bytes; None where the store does not say it.
        tag: the ETag; empty where the store has none.
    """

    size: int | None
    tag: str


def file_state(address: str) -> FileState:
    """Ask once for the state of a file."""
    info = open_file_system(address).info(address)
    tag = next((str(info[key]) for key in ("ETag", "etag") if info.get(key)), "")
    return FileState(info.get("size"), tag)


def file_info(address: str) -> dict[str, Any]:
    """Return what the store says about a file. Raises FileNotFoundError and StoreError, see ``retry``."""
    found: dict[str, Any] = retry(address, "its size", lambda: open_file_system(address).info(address))
    return found


def list_folder(address: str) -> list[str]:
    """Return the addresses of the files in a folder of a store; none where there is no such folder.

    Raises:
        FileNotFoundError: there is no such bucket.
        StoreError: see ``retry``.
    """
    fs = open_file_system(address)
    try:
        names = retry(address, "the list of its files", lambda: fs.ls(fs._strip_protocol(address), detail=False))
    except FileNotFoundError as error:
        if "no such bucket" in str(error):
            raise
        return []
    return [str(fs.unstrip_protocol(name)) for name in names]


def read_file(address: str) -> bytes:
    """Return a whole small file. Raises FileNotFoundError and StoreError, see ``retry``."""
    fs = open_file_system(address)
    data: bytes = retry(address, "the file", lambda: fs.cat_file(fs._strip_protocol(address), start=0))
    return data


def read_range(address: str, start: int, stop: int, tag: str = "") -> bytes:
    """Try once to read bytes of a file.

    Args:
        address: fsspec address.
        start, stop: of the bytes.
        tag: ETag that the file must still have.

    Returns:
        At least the bytes from ``start`` to ``stop``, or the whole file where the server ignores ranges.

    Raises:
        ChangedShardError: the file has another ETag now.
        DamagedBytesError: other bytes than those asked for.
    """
    fs = open_file_system(address)
    policy = RETRY_POLICY
    timeout = policy.connect_timeout + policy.stall_timeout + (stop - start) / policy.slowest
    if "s3" in fs.protocol:
        data: bytes = sync(fs.loop, _read_s3_range, fs, address, start, stop, tag, timeout=timeout)
    else:
        inner = fs._strip_protocol(address)
        if isinstance(fs, AsyncFileSystem) and not fs.asynchronous:
            data = sync(fs.loop, fs._cat_file, inner, start=start, end=stop, timeout=timeout)
        else:
            data = bytes(fs.cat_file(inner, start=start, end=stop))
    if len(data) < stop - start:
        raise DamagedBytesError(f"{len(data)} bytes came instead of {stop - start}")
    return data


async def _read_s3_range(fs: Any, address: str, start: int, stop: int, tag: str) -> bytes:
    bucket, key, version = fs.split_path(address)
    arguments = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{stop - 1}"}
    if version:
        arguments["VersionId"] = version
    if tag:
        arguments["IfMatch"] = tag
    try:
        answer = await fs._call_s3("get_object", **arguments)
    except OSError as error:
        if error_code(error)[0] == 412:
            raise changed_error(address) from error
        raise
    try:
        if tag and answer.get("ETag", tag) != tag:  # a store that knows no IfMatch
            raise changed_error(address)
        sent = answer.get("ContentRange")
        if sent is not None and not str(sent).startswith(f"bytes {start}-{stop - 1}/"):
            raise DamagedBytesError(f"the store sent {sent} instead of bytes {start}-{stop - 1}")
        data: bytes = await answer["Body"].read()
        return data
    finally:
        answer["Body"].close()


def changed_error(address: str) -> ChangedShardError:
    """Return the error of a file that was replaced."""
    return ChangedShardError(
        f"{address} was replaced while it was in use, so that clips would come from other data. Write new data under "
        "new names; to train on what is there now, start a new run"
    )
