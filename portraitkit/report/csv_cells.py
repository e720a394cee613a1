"""Text in CSV files that people open in a spreadsheet."""


def safe_cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula, with an apostrophe before it, which makes it text there; all else as it is.

    Args:
        value: of a cell. Numbers are no text: a negative one stays a number.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
