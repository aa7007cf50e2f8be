from .errors import UserError


def parse_number(value: float | str) -> float:
    """Parse a number as users write it: `0.1`, `"0.1"`, `"8/255"`. Raises `UserError` for anything else."""
    try:
        above, _, below = str(value).partition("/")
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise UserError(f"{value!r} is no number: write 0.1 or 8/255") from None
