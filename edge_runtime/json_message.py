"""Base of the JSON messages, and the checks with which a message states its fields.

    @dataclass(frozen=True, slots=True)
    class Greeting(Message):
        name: Annotated[str, text(64)]
        count: Annotated[int, integer(0, 100)]

The checks run in the constructor, so a message that exists is a valid one, sent or received. A
reader ignores fields that it does not know: a newer sender may add some.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Self, get_args, get_type_hints

from sparsyfed.edge_runtime.errors import FormatError

MAX_CONTROL_BYTES = 64 * 1024

# Name and value of a field -> the value to keep; raises FormatError.
Check = Callable[[str, object], object]

# What was got may be nested as deep as the parser goes: plain repr() could run out of stack.
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80


def refuse(name: str, got: object, wanted: str) -> FormatError:
    """The error that a field raises: its name, what was got, what was wanted."""
    return FormatError(f"{name}: got {_SHOWN.repr(got)}, wanted {wanted}")


def integer(low: int, high: int) -> Check:
    """Check for an integer from `low` to `high`, both included."""

    def check(name: str, value: object) -> object:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise refuse(name, value, f"an integer from {low} to {high}")
        return value

    return check


def number(
    low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Check:
    """Finite number in [low, high], without its lower or upper end where `above` or `below` is set."""
    wanted = f"a finite number {'>' if above else '>='} {low:g}"
    if high < math.inf:
        wanted += f" and {'<' if below else '<='} {high:g}"

    def check(name: str, value: object) -> object:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise refuse(name, value, wanted)
        inside = (
            low <= value <= high and not (above and value == low) and not (below and value == high)
        )
        if not inside or abs(value) > 1e300:
            raise refuse(name, value, wanted)
        return float(value)

    return check


def text(limit: int) -> Check:
    """Check for a printable text of at most `limit` characters."""

    def check(name: str, value: object) -> object:
        # Printable only: these texts reach logs and terminals.
        if not isinstance(value, str) or len(value) > limit or not value.isprintable():
            raise refuse(name, value, f"printable text of at most {limit} characters")
        return value

    return check


def matching(pattern: re.Pattern[str], wanted: str) -> Check:
    """Check for a text that the pattern matches as a whole."""

    def check(name: str, value: object) -> object:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise refuse(name, value, wanted)
        return value

    return check


def choice(*choices: str) -> Check:
    """Check for one of these texts."""

    def check(name: str, value: object) -> object:
        if not isinstance(value, str) or value not in choices:
            raise refuse(name, value, "one of " + ", ".join(choices))
        return value

    return check


def flag(name: str, value: object) -> object:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise refuse(name, value, "true or false")
    return value


def optional(inner: Check) -> Check:
    """Check that lets None pass and gives all else to `inner`."""

    def check(name: str, value: object) -> object:
        return None if value is None else inner(name, value)

    return check


def indices(limit: int, inner: Check, *, least: int = 0) -> Check:
    """Check for a list of `least` to `limit` items, each checked by `inner`; kept as a tuple."""

    def check(name: str, value: object) -> object:
        if not isinstance(value, list | tuple) or not least <= len(value) <= limit:
            raise refuse(name, value, f"a list of {least} to {limit} items")
        return tuple(inner(f"{name}[{i}]", item) for i, item in enumerate(value))

    return check


def messages(kind: "type[Message]", limit: int) -> Check:
    """Check for a list of at most `limit` messages of one kind; kept as a tuple."""

    def check(name: str, value: object) -> object:
        if not isinstance(value, list | tuple) or len(value) > limit:
            raise refuse(name, value, f"a list of at most {limit} {kind.__name__}")
        return tuple(
            item if isinstance(item, kind) else kind.read(f"{name}[{place}]", item)
            for place, item in enumerate(value)
        )

    return check


class Message:
    """Base of the control messages: JSON in, JSON out, fields checked on construction."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]
    _schema: ClassVar[dict[str, tuple["type[Message] | None", Check]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        hints = get_type_hints(cls, include_extras=True)
        cls._schema = {name: _field_schema(hints[name]) for name in cls.__annotations__}

    def __post_init__(self) -> None:
        for name, (_, check) in self._schema.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))

    def to_json(self) -> bytes:
        """Compact JSON with sorted keys: equal messages give equal bytes.

        Raises FormatError if the message takes more than MAX_CONTROL_BYTES.
        """
        text = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        if len(text) > MAX_CONTROL_BYTES:
            raise FormatError(
                f"{type(self).__name__}: got {len(text)} bytes of JSON, wanted <= {MAX_CONTROL_BYTES}"
            )
        return text.encode("ascii")

    @classmethod
    def from_json(cls, data: bytes | bytearray | memoryview) -> Self:
        """The message that `data` holds.

        Raises FormatError naming the field, what was got and what was wanted.
        """
        if len(data) > MAX_CONTROL_BYTES:
            raise FormatError(
                f"{cls.__name__}: got {len(data)} bytes, wanted <= {MAX_CONTROL_BYTES}"
            )
        try:
            content = json.loads(bytes(data).decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{cls.__name__}: got no JSON text ({error}), wanted one JSON object"
            ) from error
        return cls.read(cls.__name__, content)

    def plain(self) -> dict[str, object]:
        """The fields as plain values, nested messages as mappings."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def read(cls, where: str, content: object) -> Self:
        """The message of a JSON object; `where` begins the text of errors."""
        if not isinstance(content, dict):
            raise refuse(where, content, "a JSON object")
        values: dict[str, Any] = {}
        for field in fields(cls):
            if field.name not in content:
                if field.default is MISSING:
                    raise FormatError(f"{where}.{field.name}: the field is missing")
                continue
            value, nested = content[field.name], cls._schema[field.name][0]
            if nested is not None and value is not None:
                value = nested.read(f"{where}.{field.name}", value)
            values[field.name] = value
        try:
            return cls(**values)
        except FormatError as error:
            raise FormatError(f"{where}.{error}") from error


def _plain(value: object) -> object:
    if isinstance(value, Message):
        return value.plain()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _field_schema(hint: object) -> tuple[type[Message] | None, Check]:
    """The message class that a field nests, or None, and the check of its value."""
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, Message):
            return kind, _instance(kind, or_none=type(None) in get_args(hint))
    (check,) = (item for item in getattr(hint, "__metadata__", ()) if callable(item))
    return None, check


def _instance(kind: type[Message], *, or_none: bool) -> Check:
    def check(name: str, value: object) -> object:
        if not isinstance(value, kind) and not (or_none and value is None):
            raise refuse(name, value, f"a {kind.__name__}")
        return value

    return check
