"""What Python makes of msgpack payloads: the oracle for saltern's transcoder.

Reads payloads, each behind its length in four bytes (big-endian). For each it answers two texts in
the same way:

1. The JSON by the rules that src/codec/json.rs states, made from what Python's msgpack and Salt's own
   decoder give, with Python's own texts of strings and numbers.
2. What `json.dumps(value, ensure_ascii=False)` gives, where Python can encode the payload just so;
   otherwise nothing.
"""

import datetime
import json
import math
import struct
import sys

import msgpack
import salt.exceptions
import salt.payload


class Pairs(list):
    """A map: not a dict, since keys may be equal in Python, or of a type that has no hash."""


def unpack(payload, **options):
    return msgpack.unpackb(
        payload,
        raw=False,
        strict_map_key=False,
        timestamp=0,
        max_str_len=1 << 30,
        max_bin_len=1 << 30,
        **options,
    )


def salt_date(data):
    try:
        value = salt.payload.loads(msgpack.packb(msgpack.ExtType(78, data)), encoding="utf-8")
    except salt.exceptions.SaltDeserializationError:
        return data
    return value.isoformat()


def extension(code, data):
    return salt_date(data) if code == 78 else data


def timestamp(value):
    at = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=value.seconds)
    fraction = f".{value.nanoseconds:09}".rstrip("0") if value.nanoseconds else ""
    return f"{at.isoformat()}{fraction}Z"


def text(value):
    return json.dumps(value, ensure_ascii=False)


def by_rule(value):
    if isinstance(value, bytes):
        return text(value.decode("utf-8", "replace"))
    if isinstance(value, msgpack.Timestamp):
        return text(timestamp(value))
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{key(k)}: {by_rule(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(by_rule, value)) + "]"
    return text(value)


def key(value):
    if isinstance(value, (Pairs, list)):
        return text(by_rule(value))
    if isinstance(value, (bytes, msgpack.Timestamp)):
        return by_rule(value)
    # Python's own text of a key of any type that it takes.
    return text({value: 0})[1:-4]


def no_repeats(pairs):
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("keys that are equal in Python")
    return value


def no_extensions(code, data):
    raise ValueError("an extension")


def natively(payload):
    try:
        value = unpack(payload, object_pairs_hook=no_repeats, ext_hook=no_extensions)
        # Bytes and timestamps raise TypeError, NaN and infinities ValueError.
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, UnicodeDecodeError):
        return ""


def answer(texts):
    for one in texts:
        data = one.encode("utf-8")
        sys.stdout.buffer.write(struct.pack(">I", len(data)) + data)


while head := sys.stdin.buffer.read(4):
    payload = sys.stdin.buffer.read(struct.unpack(">I", head)[0])
    decoded = unpack(
        payload,
        object_pairs_hook=Pairs,
        ext_hook=extension,
        unicode_errors="replace",
    )
    answer([by_rule(decoded), natively(payload)])
