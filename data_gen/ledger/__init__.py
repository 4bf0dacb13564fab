"""The demo world: sums of 3-digit numbers, and a reasoner that makes and mends mistakes.

No real reasoning model can be shipped or downloaded in a test. The 5M-parameter model that the
repository ships instead was trained on this world, and behaves like a reasoning model: it errs,
sometimes notices, and goes back.
"""
