"""Quantities with units, as text for people."""


def format_number(value: float, digits: int = 3) -> str:
    """``0.0123``, ``12.3``, ``1,234``: so many digits, or the whole number where it has more."""
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text


def format_count(count: int, noun: str) -> str:
    """``1 device``, ``1,000 devices``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def format_bytes(num_bytes: float) -> str:
    """``1234567`` -> ``1.23 MB`` (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 999.5 or unit == "GB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{format_number(num_bytes)} {unit}"


def format_duration(seconds: float) -> str:
    """``0.3 s``, ``42 s``, ``7 min``, ``3 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_energy(joules: float) -> str:
    """``950 J``, ``1.23 kJ``, ``1,230 kJ``."""
    return f"{joules:.3g} J" if joules < 999.5 else f"{format_number(joules / 1e3)} kJ"
