"""Checks of values that a user or a JSON file gives: TypeError for another type, ValueError out of range.

Python takes True for 1, and any text that is not empty for true: these functions do not. They return numbers of NumPy,
and whole ones of torch, as Python's own, so what has passed travels as JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Real
from operator import index
from typing import Any, TypeVar

Kind = TypeVar("Kind")
Number = TypeVar("Number", int, float)


def integer(name: str, value: object, expected: str, *, least: int | None = None, most: int | None = None) -> int:
    """A whole number; `expected` says in the error which ones are.

    Examples:
        >>> integer("stride", 2, "a positive number", least=1)
        2
        >>> integer("stride", 1.5, "a positive number", least=1)
        Traceback (most recent call last):
        TypeError: stride is 1.5; expected a positive number
    """
    return _convert(name, value, (value,), expected, _to_int, least, most)[0]


def integers(
    name: str, value: object, expected: str, *, least: int | None = None, lengths: Sequence[int] = ()
) -> tuple[int, ...]:
    """Whole numbers, of one of these lengths if there are any.

    Examples:
        >>> integers("steps", [0, 8], "step numbers from 0", least=0)
        (0, 8)
    """
    return _convert(name, value, items(name, value, expected, lengths), expected, _to_int, least, None)


def number(name: str, value: object, expected: str, *, least: float, most: float | None = None) -> float:
    """A number, which NaN is not.

    Examples:
        >>> number("threshold", 0.7, "a cosine similarity", least=-1)
        0.7
    """
    return _convert(name, value, (value,), expected, _to_float, least, most)[0]


def numbers(
    name: str, value: object, expected: str, *, least: float, most: float | None = None, lengths: Sequence[int] = ()
) -> tuple[float, ...]:
    """Numbers, of one of these lengths if there are any."""
    return _convert(name, value, items(name, value, expected, lengths), expected, _to_float, least, most)


def capacity(value: object) -> float | None:
    """Kept slots as a fraction of the tokens; None means one for every source."""
    expected = "a fraction of the tokens from 0 to 1, or None: a slot for every source"
    return None if value is None else number("capacity", value, expected, least=0, most=1)


def flag(name: str, value: object) -> bool:
    """True or False."""
    return instance(name, value, bool, "True or False")


def instance(name: str, value: object, kind: type[Kind] | tuple[type[Kind], ...], expected: str) -> Kind:
    """An object of this class, or of one of these."""
    if not isinstance(value, kind):
        raise TypeError(_message(name, value, expected))
    return value


def one_of(name: str, value: object, known: Sequence[str], otherwise: str = "") -> None:
    """One of these names; `otherwise` says in the error what else there is."""
    if value not in known:
        raise ValueError(_message(name, value, f"one of {known}{otherwise}"))


def make(kind: type[Kind], values: object, path: str, required: Sequence[str] = ()) -> Kind:
    """The dataclass of a JSON object, whose errors begin with the path of the field that is wrong."""
    of_kind = fields_of(kind, values, path, required)
    try:
        return kind(**of_kind)
    except (TypeError, ValueError) as error:
        raise located(f"{path}.", error) from error


def fields_of(kind: type[Any], values: Any, path: str, required: Sequence[str]) -> dict[str, Any]:
    """A JSON object that has the required fields, and no other than those of the dataclass."""
    known = [field.name for field in fields(kind)]
    if not isinstance(values, dict):
        raise TypeError(_message(path or kind.__name__, values, f"a JSON object with the fields {known}"))
    prefix = f"{path}." if path else ""
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{prefix}{missing[0]} is missing; expected the object that to_json writes")
    unknown = [name for name in values if name not in known]
    if unknown:
        raise TypeError(f"{prefix}{unknown[0]} is unknown; the fields are {known}")
    return values


def located(prefix: str, error: TypeError | ValueError) -> TypeError | ValueError:
    """The same error, whose message begins with where it is."""
    return (TypeError if isinstance(error, TypeError) else ValueError)(f"{prefix}{error}")


def items(name: str, value: Any, expected: str, lengths: Sequence[int] = ()) -> tuple[Any, ...]:
    """The values of a sequence or an array, of one of these lengths, if any are given."""
    if not hasattr(value, "__len__") or isinstance(value, (str, Mapping)):
        raise TypeError(_message(name, value, expected))
    found: tuple[Any, ...] = tuple(value)
    if lengths and len(found) not in lengths:
        raise ValueError(_message(name, value, expected))
    return found


def _convert(
    name: str,
    value: object,
    parts: Sequence[object],
    expected: str,
    to_number: Callable[[Any], Number | None],
    least: Number | None,
    most: Number | None,
) -> tuple[Number, ...]:
    found: list[Number] = []
    for part in parts:
        converted = to_number(part)
        if converted is None:
            raise TypeError(_message(name, value, expected))
        # In this order NaN is refused.
        if not ((least is None or converted >= least) and (most is None or converted <= most)):
            raise ValueError(_message(name, value, expected))
        found.append(converted)
    return tuple(found)


def _to_int(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    try:
        return index(value)
    except TypeError:
        return None


def _to_float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    # NumPy's float64 is a float as well.
    if type(value) in (int, float):
        return value
    return float(value) if isinstance(value, Real) else None


def _message(name: str, value: object, expected: str) -> str:
    return f"{name} is {value!r}; expected {expected}"
