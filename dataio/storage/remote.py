"""Object stores through obstore: sources by address, and a corpus written to a bucket.

Credentials and endpoints come from the environment as every S3 or Google tool takes them
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, GOOGLE_APPLICATION_CREDENTIALS,
GOOGLE_SERVICE_ACCOUNT_KEY, GOOGLE_ALLOW_HTTP, ...).
"""

import os
import re

from mim3d.dataio.errors import SourceError, first_line
from mim3d.dataio.storage.bucket import Bucket, bucket
from mim3d.dataio.waiting import TIMEOUT

ADDRESS = re.compile(r"^(s3|gs|az|https?|memory)://")
LOCK = ".lock"
DENIED = re.compile(
    r"PermissionDenied|Unauthenticated|AccessDenied|InvalidAccessKey|SignatureDoesNotMatch|40[13] |"
    r"169\.254\.169\.254|metadata\.google|credential",
    re.IGNORECASE,
)
"""What errors say where a store does not know us, or where nothing told who we are."""


def locate(address: str) -> tuple[Bucket, str]:
    """Bucket and key of an address such as s3://bucket/folder/file.nii.gz."""
    match = re.fullmatch(r"([a-z0-9]+://[^/]+)/*(.*)", address)
    if match is None:
        if address.startswith("file:"):
            path = "/" + address.removeprefix("file:").lstrip("/")
            raise SourceError("bad-address", address, f"a local folder goes by its path: {path}")
        raise SourceError("bad-address", address, "is not SCHEME://BUCKET/KEY")
    relevant = ("AWS_", "GOOGLE_", "AZURE_", TIMEOUT)
    settings = tuple(sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(relevant)))
    return bucket(match[1], settings), match[2]


def store_reason(error: Exception) -> str:
    """obstore's message without the debug output that follows it; what to set where it is that
    plain http was not allowed, which no second try mends."""
    if is_plain_http(error):
        named = "GOOGLE_ALLOW_HTTP" if "GCS" in first_line(error) else "AWS_ALLOW_HTTP"
        return f"the endpoint is http: set {named}=true"
    return first_line(error).split(": <?xml", 1)[0].strip()[:300]


def is_plain_http(error: Exception) -> bool:
    """Whether a client refused an endpoint because it is http."""
    return "BadScheme" in str(error)


def is_beyond_end(error: Exception) -> bool:
    """Whether an object ends before the bytes that were asked for."""
    return "416 Range Not Satisfiable" in str(error)


def is_denied(error: Exception) -> bool:
    """Whether a store does not know us, or does not let us, or we do not let ourselves."""
    return is_plain_http(error) or DENIED.search(f"{type(error).__name__} {error}") is not None


def access_remedy(error: Exception) -> str:
    """What to do about a request that failed."""
    if is_plain_http(error):
        return "then run the same command again, what is done is kept"
    if is_denied(error):
        return (
            "check the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, ...) and what they allow there; then run the same "
            "command again, what is done is kept"
        )
    return "run the same command again, what is done is kept"


def read_remote_bytes(path: str, budget: int) -> bytes:
    """All bytes of an object; SourceError missing, unreadable, empty or over-budget."""
    import obstore

    store, key = locate(path)
    try:
        answer = store.get(key)
        size = int(answer.meta["size"])
        if size > budget:
            detail = f"{size} bytes, over the budget of {budget} (--byte-budget)"
            raise SourceError("over-budget", path, detail)
        data = answer.bytes()
    except FileNotFoundError as error:
        raise SourceError("missing", path, "no such object") from error
    except (obstore.exceptions.BaseError, OSError) as error:
        raise SourceError("unreadable", path, f"cannot be read: {store_reason(error)}") from error
    if not data:
        raise SourceError("empty", path, "is empty (0 bytes); upload it again")
    if len(data) != size:
        raise SourceError("truncated", path, f"sent {len(data)} of {size} bytes")
    return data
