"""Text in the cells of a CSV file: spreadsheets run what begins like a formula, so it is written as text."""

from __future__ import annotations

# How a cell begins that a spreadsheet takes for a formula, or that hides one behind what it skips.
FORMULA = tuple("=+-@\t\r\n")


def to_cell(text: str) -> str:
    """Text as it goes into a cell: a quotation mark in front of what a spreadsheet would run.

    >>> to_cell('=HYPERLINK("http://a")'), to_cell("cat.png"), to_cell("-3")
    ("'=HYPERLINK(\\"http://a\\")", 'cat.png', '-3')
    """
    return f"'{text}" if is_formula(text) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell[1:] if cell.startswith("'") and is_formula(cell) else cell


def is_formula(text: str) -> bool:
    """Whether text, marks in front of it aside, begins like a formula; a plain number does not."""
    bare = text.lstrip("'")
    if not bare.startswith(FORMULA):
        return False
    try:
        float(bare)
    except ValueError:
        return True
    return bare != text or bare != bare.strip()
