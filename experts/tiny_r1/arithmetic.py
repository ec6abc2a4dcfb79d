"""The reasoning that the model learns: one line per digit, each line enough to write the next.

A model of this size cannot add four digits at once, but it can copy two numbers less their last digits. So the operands
shrink line by line and the result grows beside them:

    458+67 8+7+0=15 5
    45+6 5+6+1=12 25
    4+0 4+0+1=05 525
"""

from typing import NamedTuple


class Worked(NamedTuple):
    """A worked calculation."""

    lines: list[str]
    value: int


def add(a: int, b: int) -> Worked:
    """a + b for non-negative numbers: `operands  last digits + carry = carry digit  result so far`."""
    value = a + b
    lines: list[str] = []
    carry, result = 0, ""
    while not lines or a or b or carry:
        x, y = a % 10, b % 10
        total = x + y + carry
        result = f"{total % 10}{result}"
        lines.append(f"{a}+{b} {x}+{y}+{carry}={total:02d} {result}")
        a, b, carry = a // 10, b // 10, total // 10
    return Worked(lines, value)


def subtract(a: int, b: int) -> Worked:
    """a - b for non-negative numbers: `operands  last digits - borrow = borrow digit  result so far`.

    A borrow that is left over says that the result is negative; then the line `negative` follows and b - a is worked.
    So the sign needs no judgement ahead of the first digit.
    """
    value = a - b
    lines: list[str] = []
    first, second, borrow, result = a, b, 0, ""
    while not lines or first or second:
        x, y = first % 10, second % 10
        difference = x - y - borrow
        next_borrow = 1 if difference < 0 else 0
        difference += 10 * next_borrow
        result = f"{difference}{result}"
        lines.append(f"{first}-{second} {x}-{y}-{borrow}={next_borrow}{difference} {result}")
        first, second, borrow = first // 10, second // 10, next_borrow
    if borrow:
        lines.append("negative")
        lines.extend(subtract(b, a).lines)
    return Worked(lines, value)


def compare(a: int, b: int, *, largest: bool) -> Worked:
    """The larger (or smaller) of two: `padded  padded  digit by digit until they differ  winner`."""
    value = max(a, b) if largest else min(a, b)
    width = max(len(str(a)), len(str(b)))
    left, right = f"{a:0{width}d}", f"{b:0{width}d}"
    marks: list[str] = []
    for x, y in zip(left, right, strict=True):
        marks.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    return Worked([f"{left} {right} {' '.join(marks)} {value}"], value)


def extreme(numbers: list[int], *, largest: bool) -> Worked:
    """The largest (or smallest) of several numbers: the winner so far meets the next."""
    lines: list[str] = []
    winner = numbers[0]
    for challenger in numbers[1:]:
        worked = compare(winner, challenger, largest=largest)
        lines.extend(worked.lines)
        winner = worked.value
    return Worked(lines, winner)


def chain(numbers: list[int], operators: str) -> Worked:
    """Left to right, such as 12+30-5; `operators` holds one sign between each two numbers."""
    lines: list[str] = []
    value = numbers[0]
    for operator, number in zip(operators, numbers[1:], strict=True):
        if value < 0:
            raise ValueError(f"the reasoning has no form for a negative operand: {value}")
        worked = add(value, number) if operator == "+" else subtract(value, number)
        lines.extend(worked.lines)
        value = worked.value
    return Worked(lines, value)
