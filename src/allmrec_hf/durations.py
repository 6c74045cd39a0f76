"""Times as a person reads them."""


def duration(seconds: float) -> str:
    """Return a time in the two units that tell it.

    Example:
        >>> duration(42), duration(754), duration(7500)
        ('42 s', '12 min 34 s', '2 h 05 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
