r"""The reasoner whose traces the demo model learns: it adds digit by digit, and errs.

A step adds one number to the running sum, units first; `w` is the digit written, `c` the carry::

    S1 776+911
    6+1+0=7 w7 c0
    7+1+0=8 w8 c0
    7+9+0=16 w6 c1
    =687

Mistakes depend on the digits, so some questions mislead most traces. Going back costs a paragraph
("Wait, S3 is wrong. Redo S3.") and the steps from there on; while something is wrong the reasoner
also doubts steps that are right, so wrong traces are the longer ones.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from data_gen.ledger.questions import MODULUS


@dataclass(frozen=True)
class Odds:
    """How often the reasoner errs and notices; all are probabilities unless said otherwise."""

    forget: float = 0.01
    """A carry is forgotten, where the digits sum to 10 to 14."""
    forget_15: float = 0.15
    """The same, where they sum to 15 or 16."""
    forget_17: float = 0.48
    """The same, where they sum to 17 or more."""
    slip: float = 0.01
    """A written digit is any other digit; drawn for each digit."""
    notice_now: float = 0.30
    """A wrong step is noticed at its own end."""
    notice_later: float = 0.06
    """A standing wrong step is noticed at a later step's end; drawn for each of them."""
    doubt: float = 0.12
    """While an earlier step is wrong, the last one, which is right, is redone in vain."""
    false_alarm: float = 0.01
    """The last step is redone although nothing is wrong; drawn at each step's end."""
    careful: float = 0.35
    """In a step that is redone, `forget*` and `slip` are multiplied by this (a factor)."""
    max_redos: int = 4
    """Redos in one trace (a count)."""


@dataclass(frozen=True)
class ReasonerTrace:
    """One response of the reasoner."""

    text: str
    """The response, without the prompt's opening of the thinking part and without end token."""
    answer: int
    """The number in the final box."""
    correct: bool
    """Whether that is the sum of the question's numbers modulo 1000."""
    redos: int
    """How often it went back."""


_THREE = [f"{i:03d}" for i in range(MODULUS)]

# One column's outcome: its line, the digit it adds to the sum, the carry into the next column.
_Outcome = tuple[str, int, int]


class Reasoner:
    """Makes traces. Cheap to call: every line it can write is made once, here."""

    def __init__(self, odds: Odds | None = None) -> None:
        """Prepare all lines for some odds; the default odds are the demo world's."""
        self.odds = odds or Odds()
        self._right: list[_Outcome] = []
        self._forgot: list[_Outcome] = []
        self._slipped: list[list[_Outcome]] = []
        forget: list[float] = []
        for index in range(200):
            a, b, carry = index // 20, index // 2 % 10, index % 2
            total = a + b + carry
            start = f"{a}+{b}+{carry}={total} w"
            digit, out = total % 10, total // 10
            self._right.append((f"{start}{digit} c{out}\n", digit, out))
            self._forgot.append((f"{start}{digit} c0\n", digit, 0))
            self._slipped.append(
                [(f"{start}{d} c{out}\n", d, out) for d in range(10) if d != digit]
            )
            forget.append(self._forget_odds(total))
        # Thresholds for one uniform draw a column: below the first a slip, below the second a
        # forgotten carry. The hundreds' carry is dropped anyway (modulo 1000): never forgotten.
        self._limits = []
        for factor in (1.0, self.odds.careful):
            slip = self.odds.slip * factor
            self._limits.append((slip, [slip + p * factor for p in forget]))

    def _forget_odds(self, total: int) -> float:
        if total >= 17:
            return self.odds.forget_17
        if total >= 15:
            return self.odds.forget_15
        return self.odds.forget if total >= 10 else 0.0

    def trace(self, numbers: Sequence[int], rng: random.Random) -> ReasonerTrace:
        """Return one trace for the numbers of a question; `rng` alone decides its course."""
        odds = self.odds
        uniform = rng.random
        right = self._right
        usual, careful = self._limits
        slip, limits = usual
        last = len(numbers) - 1
        sums = [numbers[0]] + [0] * last
        wrong: list[int] = []  # standing steps with a mistake of their own, in order
        redos = 0
        out: list[str] = []
        write = out.append
        step = 1
        while True:
            x, y = sums[step - 1], numbers[step]
            write(f"S{step} {_THREE[x]}+{y}\n")

            column = x % 10 * 20 + y % 10 * 2
            draw = uniform()
            if draw >= limits[column]:
                line, units, carry = right[column]
            else:
                line, units, carry = self._mistake(column, draw < slip, rng)
            write(line)
            column = x // 10 % 10 * 20 + y // 10 % 10 * 2 + carry
            draw = uniform()
            if draw >= limits[column]:
                line, tens, carry = right[column]
            else:
                line, tens, carry = self._mistake(column, draw < slip, rng)
            write(line)
            column = x // 100 * 20 + y // 100 * 2 + carry
            line, hundreds, _ = right[column]
            if uniform() < slip:
                line, hundreds, _ = self._mistake(column, True, rng)
            write(line)

            total = sums[step] = hundreds * 100 + tens * 10 + units
            write(f"={_THREE[total]}\n\n")
            is_wrong = total != (x + y) % MODULUS
            if redos < odds.max_redos:
                redo = self._redo_from(step, is_wrong, wrong, uniform())
                if redo:
                    write(f"Wait, S{redo} is wrong. Redo S{redo}.\n\n")
                    redos += 1
                    slip, limits = careful
                    wrong = [s for s in wrong if s < redo]
                    step = redo
                    continue
            slip, limits = usual
            if is_wrong:
                wrong.append(step)
            if step == last:
                break
            step += 1
        answer = sums[last]
        write(f"</think>\n\n\\boxed{{{answer}}}")
        return ReasonerTrace("".join(out), answer, answer == sum(numbers) % MODULUS, redos)

    def _mistake(self, column: int, slipped: bool, rng: random.Random) -> _Outcome:
        return rng.choice(self._slipped[column]) if slipped else self._forgot[column]

    def _redo_from(self, step: int, is_wrong: bool, wrong: list[int], draw: float) -> int:
        """Return the step to go back to after `step`, or 0 to go on."""
        odds = self.odds
        if is_wrong:
            if draw < odds.notice_now:
                return step
            draw = (draw - odds.notice_now) / (1 - odds.notice_now)
        if not wrong:
            return step if not is_wrong and draw < odds.false_alarm else 0
        if not is_wrong:
            if draw < odds.doubt:
                return step
            draw = (draw - odds.doubt) / (1 - odds.doubt)
        return wrong[0] if draw < odds.notice_later else 0
