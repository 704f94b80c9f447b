"""What dataclasses that check themselves have in common."""

from collections.abc import Callable
from dataclasses import fields

__all__ = ["checker"]


def checker(instance: object, what: str, error: type[ValueError]) -> Callable[[str, bool, str], None]:
    """A function of (field, condition, requirement) that raises `error`, naming `what` and the field of the dataclass, if the condition does not hold.

    Before that every field must be of the type it is annotated with: str, int, bool, or float, which any number is.
    """
    def check(field, condition, requirement):
        if not condition:
            raise error(f"{what}: {field} must be {requirement}, not {getattr(instance, field)!r}")

    for field in fields(instance):
        value = getattr(instance, field.name)
        number = field.type in (int, float)
        fits = isinstance(value, (int, float) if field.type is float else field.type) and not (number and isinstance(value, bool))
        check(field.name, fits, "a number" if field.type is float else field.type.__name__)
    return check
