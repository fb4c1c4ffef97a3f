from .extraction import extract_answer as extract_answer
from .pool import Verdict as Verdict
from .pool import VerifierPool as VerifierPool
from .pool import verify as verify

__all__ = [
    "extract_answer",
    "Verdict",
    "VerifierPool",
    "verify",
]
