"""Find where a growing skip ratio just reaches a target, with few measurements."""

from collections.abc import Callable

MAX_GUESSES = 20


def reach(
    ratio: Callable[[float], float],
    target: float,
    tolerance: float,
    *,
    guess: float = 0.5,
    slope: float = 1.0,
) -> float:
    """Return a number in [0, 1] whose ratio is between target and target + tolerance.

    Takes secant steps, and bisects where they would leave the bracket.

    Args:
        ratio: grows with its argument and reaches the target at 1; measured a few times.
        target: the least ratio.
        tolerance: by how much it may be exceeded; where ``ratio`` jumps over that range, the
            smallest number found that reaches the target is returned.
        guess: where to begin.
        slope: about how fast ``ratio`` grows.
    """
    low, high = 0.0, 1.0
    tried: dict[float, float] = {}
    guess = min(max(guess, 0.0), 1.0)
    for _ in range(MAX_GUESSES):
        value = ratio(guess)
        if target <= value <= target + tolerance or (guess == 0 and value >= target):
            return guess
        if tried:
            last, at_last = next(reversed(tried.items()))
            slope = max((value - at_last) / (guess - last), 1e-6)
        tried[guess] = value
        low, high = (low, guess) if value >= target else (guess, high)
        step = guess + (target + tolerance / 2 - value) / slope
        guess = min(max(step, low), high)
        if guess in tried:
            guess = (low + high) / 2
    return high
