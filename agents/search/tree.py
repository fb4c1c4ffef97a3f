"""A tree of completions, and the interface of a search over it.

A node is a position where the policy has a choice between at least two tokens. Between two nodes all options agree, and
the tokens are decoded without a node.
"""

from collections.abc import Generator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Node:
    """A position with a choice, the end of a completion, or a completion that the budget cut.

    Attributes:
        tokens: The completion so far.
        log_prob: Its log-probability in nats, with probabilities summed over the options of a token.
        decisions: Number of nodes before this one on its path.
        value: The value head's estimate at the last h_t computed on its path.
        moves: Tokens that may follow, the most probable first; empty at an end.
        log_probs: Log-probabilities of the moves, in nats.
        cut: Whether the budget was spent before the next node or end.
        places: Where the `TokenStore` has its tokens, to continue from them.
        children: Child nodes by the move that leads to them.
        visits: Simulations through this node, running ones included (tree search).
        total: Sum of the values of these simulations.
        pending: Moves that a simulation is trying now.
        exhausted: Whether every completion below it is known.
    """

    tokens: list[int]
    log_prob: float
    decisions: int
    value: float
    moves: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    cut: bool = False
    places: list[int] = field(default_factory=list)
    children: dict[int, "Node"] = field(default_factory=dict)
    visits: int = 0
    total: float = 0.0
    pending: set[int] = field(default_factory=set)
    exhausted: bool = False


@dataclass(eq=False)
class Tree:
    """The known completions of one prompt.

    Attributes:
        prompt: Token ids.
        budget: Maximum generated tokens.
        root: The first position with a choice, or an end if there is none.
        spent: Tokens generated so far.
        ends: Finished completions in order, each with the tokens spent until then.
        solved: Whether a completion is good enough to stop.
    """

    prompt: list[int]
    budget: int
    root: Node = field(default_factory=lambda: Node([], 0.0, 0, 0.0))
    spent: int = 0
    ends: list[tuple[Node, int]] = field(default_factory=list)
    solved: bool = False


Move = tuple[Node, int]
# Yields moves and is sent the nodes they lead to, in the same order. Yielding none waits for one step of the others.
Search = Generator[list[Move], list[Node], None]
