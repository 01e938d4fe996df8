"""A session as a document of MongoDB.

Its values are under `state`: as BSON's own types where BSON gives them back exactly, else tagged.
What actorbot must know again is beside `state`.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final
from uuid import UUID

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from bson.decimal128 import Decimal128
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from actorbot._state.codec import decode_state, encode_state
from actorbot._state.document import from_document, to_document
from actorbot._state.record import Record
from actorbot._state.values import UndecodableError
from actorbot.errors import CorruptSessionError, NotEncodableError, SessionTooLargeError

__all__ = [
    "FORMAT",
    "GRACE",
    "LENIENT",
    "MAX_BYTES",
    "OPTIONS",
    "RAW",
    "decode_record",
    "encode_record",
    "literal_id",
]

FORMAT: Final = 1
GRACE: Final = 120.0  # seconds that the server keeps a record longer: its next write may be on its way
MAX_BYTES: Final = 16 * 1024**2
MAX_LEVELS: Final = 90  # of documents and arrays; a deeper value is kept as text. MongoDB takes 100
LATEST: Final = 253_402_300_799.0  # the end of the year 9999, the last that a date can say

# Documents are read strictly, to notice damage. The lenient way is only for learning whose record
# it is.
OPTIONS: Final = CodecOptions[dict[str, Any]](
    tz_aware=True, tzinfo=UTC, uuid_representation=UuidRepresentation.STANDARD
)
LENIENT: Final = CodecOptions[dict[str, Any]](
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_MS
)
RAW: Final = CodecOptions(document_class=RawBSONDocument, uuid_representation=UuidRepresentation.STANDARD)


def encode_record(record: Record, *, store: str) -> bytes:
    """Return the document of *record* as BSON.

    Raises: CorruptSessionError, NotEncodableError, SessionTooLargeError.
    """
    document: dict[str, Any] = {"_id": record.session_id}
    try:
        if record.state is None:
            document["deleted"] = True
        else:
            # Part by part: the session itself is no tagged value, whatever its only key is called.
            parts = to_document(decode_state(record.state)).items()
            document["state"] = {_to_key(key): _to_bson(part, 3) for key, part in parts}
        document |= {
            "format": FORMAT,
            "version": record.version,
            "write_ids": [record.write_ids[i : i + 8] for i in range(0, len(record.write_ids), 8)],
            "event_ids": record.event_ids,
            "last_activity": float(record.last_activity),
            "expires_at": float(record.expires_at),
            "expireAt": DatetimeMS(round(min(max(record.expires_at, 0.0) + GRACE, LATEST) * 1000)),
        }
        raw = bson.encode(document, codec_options=OPTIONS)
    except UndecodableError as error:
        raise CorruptSessionError(store, record.session_id, str(error)) from error
    except (BSONError, ArithmeticError, ValueError) as error:  # their texts may quote the session
        reason = f"BSON cannot hold it ({type(error).__name__})"
        raise NotEncodableError("session", reason, session_id=record.session_id) from None
    if len(raw) > MAX_BYTES:
        reason = f"takes {len(raw)} bytes as BSON, more than the {MAX_BYTES} of MongoDB"
        raise SessionTooLargeError("session", reason, limit=MAX_BYTES, session_id=record.session_id)
    return raw


def decode_record(
    raw: bytes | memoryview, *, store: str, now: float, expires_in: float
) -> tuple[str, Record | CorruptSessionError]:
    """Return the session id of a document, and its record.

    An adopted session was active *now*, and ends *expires_in* seconds later.
    """
    try:
        document = bson.decode(raw, OPTIONS)
    except (BSONError, ArithmeticError, ValueError) as error:
        lenient = bson.decode(raw, LENIENT)["_id"]
        session_id = lenient if type(lenient) is str else repr(lenient)
        return session_id, CorruptSessionError(store, session_id, f"its BSON is malformed: {error}")
    session_id = document.pop("_id")
    if type(session_id) is not str:
        reason = f"its _id is no text, but of type {type(session_id).__name__}: no session of actorbot"
        return repr(session_id), CorruptSessionError(store, repr(session_id), reason)
    try:
        return session_id, _to_record(session_id, document, now, expires_in)
    except (UndecodableError, NotEncodableError, SessionTooLargeError) as error:
        return session_id, CorruptSessionError(store, session_id, str(error))


def literal_id(raw: bytes) -> Mapping[str, Any]:
    """Return the `_id` of a document, byte by byte, as a constant in a query's expression.

    It may be of any type, and no valid text. A server keeps it as a document's first field.
    """
    kind, begin = raw[4], 4 + len(b"?_id\0")
    size = _SIZES.get(kind)
    if size is None:  # it begins with its length, which counts itself in some types
        size = int.from_bytes(raw[begin : begin + 4], "little") + _MORE.get(kind, 0)
    element = raw[4:5] + b"$literal\0" + raw[begin : begin + size]
    return RawBSONDocument((len(element) + 5).to_bytes(4, "little") + element + b"\0")


# How many bytes a value of each type takes; of others, how many more than its length says.
_SIZES: Final = {
    0x01: 8, 0x06: 0, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16, 0x7F: 0, 0xFF: 0,
}  # fmt: skip
_MORE: Final = {0x02: 4, 0x05: 5, 0x0C: 16, 0x0D: 4, 0x0E: 4}


def _exact_decimal(text: str) -> Decimal128 | None:
    try:
        value = Decimal128(text)
    except ArithmeticError:
        return None
    return value if str(value.to_decimal()) == text else None  # a large exponent would be folded into zeros


# The tags of `_state/document.py` that BSON has a type for, and how their text becomes it.
_NATIVE: Final[Mapping[str, Callable[[str], Any]]] = {
    "$bytes": b64decode,
    "$uuid": UUID,
    "$decimal": _exact_decimal,
}
_TEXT: Final = "$json"
# In front of a key that BSON or the driver would not give back; after it, `%00` means NUL.
_ODD: Final = "$key:"
_TAKEN: Final = frozenset({_TEXT, "$ref", "$id", "$db"})  # the driver takes the last three for a reference


def _to_bson(value: Any, level: int) -> Any:
    """Return a part of a JSON-safe document as BSON keeps it, in BSON's types where exact."""
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            ((key, only),) = value.items()
            if key in _NATIVE and (native := _NATIVE[key](only)) is not None:
                return native
        if level <= MAX_LEVELS:
            return {_to_key(key): _to_bson(part, level + 1) for key, part in value.items()}
    elif kind is list:
        if level <= MAX_LEVELS:
            return [_to_bson(part, level + 1) for part in value]
    else:
        return value
    return {_TEXT: json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))}


def _from_bson(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        if len(value) == 1 and type(text := value.get(_TEXT)) is str:
            return json.loads(text)
        return {_from_key(key): _from_bson(part) for key, part in value.items()}
    if kind is list:
        return [_from_bson(part) for part in value]
    return value.to_decimal() if kind is Decimal128 else value


def _to_key(key: str) -> str:
    if "\0" in key or key in _TAKEN or key.startswith(_ODD):
        return _ODD + key.replace("%", "%25").replace("\0", "%00")
    return key


def _from_key(key: str) -> str:
    return key[len(_ODD) :].replace("%00", "\0").replace("%25", "%") if key.startswith(_ODD) else key


def _to_record(session_id: str, document: dict[str, Any], now: float, expires_in: float) -> Record:
    """Return the record of a document without its `_id`.

    Raises: UndecodableError, NotEncodableError, SessionTooLargeError.
    """
    state = None
    if document.get("deleted") is not True:
        if type(document.get("state")) is not dict:
            raise UndecodableError("it has no state")
        try:
            values = _from_bson(document["state"])
        except (RecursionError, ValueError) as error:
            raise UndecodableError(f"malformed text: {type(error).__name__}") from None
        state = encode_state(from_document(values), 2 * MAX_BYTES)  # bytes are smaller than BSON
    elif "state" in document:
        raise UndecodableError("it is deleted and has a state")
    if document.keys() == {"state"}:
        return Record(session_id, 0, state, b"", b"", now, now + expires_in)
    return Record(session_id, *_read_rest(document, state))


def _read_rest(
    document: Mapping[str, Any], state: bytes | None
) -> tuple[int, bytes | None, bytes, bytes, float, float]:
    """Return all fields after the session id. Raises: UndecodableError."""
    if _to_number(document.get("format")) != FORMAT:
        raise UndecodableError(f"its format version is {document.get('format')!r}, and this release reads {FORMAT}")
    try:
        version = _to_number(document["version"])
        write_ids, event_ids = document["write_ids"], document["event_ids"]
        last_activity, expires_at = (_to_number(document[name]) for name in ("last_activity", "expires_at"))
    except KeyError as error:
        raise UndecodableError(f"it has no {error}") from None
    if version is None or version != int(version) or not 0 <= version < 2**63:
        raise UndecodableError("its version is out of range")
    if type(write_ids) is not list or any(type(one) is not bytes or len(one) != 8 for one in write_ids):
        raise UndecodableError("its write_ids are not ids of 8 bytes")
    if type(event_ids) is not bytes or len(event_ids) % 8:
        raise UndecodableError("its event_ids are not ids of 8 bytes")
    if last_activity is None or expires_at is None:
        raise UndecodableError("one of its times is no finite number")
    return int(version), state, b"".join(write_ids), event_ids, float(last_activity), float(expires_at)


def _to_number(value: Any) -> int | float | None:
    """Return a number as any tool may have stored it, and a date in seconds; `None`: it is neither.

    mongosh stores a whole number in 32 bits, and the result of a calculation as a double.
    """
    if type(value) is Decimal128:
        value = float(value.to_decimal())
    elif type(value) is datetime:
        value = value.timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
        return value
    return None
