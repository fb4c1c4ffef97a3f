"""Rewards of a finished completion; plain functions of text."""

from ollm_rl.verify import verify


def correctness(completion: str, answer: str) -> float:
    """1 if the completion's final answer equals the problem's, else 0.

    A checker that breaks or runs out of time says nothing about the answer; it counts as 0 here, and
    ``ollm_rl.verify.verify`` tells the cases apart.
    """
    return float(verify(completion, answer).correct)
