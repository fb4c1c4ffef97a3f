"""A tree of completions, and what a search over it is.

A node is a position where the policy has a choice: at least two tokens that options lead to. Between two nodes all
options agree, and the stretch is decoded without a node.
"""

from collections.abc import Generator
from dataclasses import dataclass, field

from ollm_rl.decode.row_cache import Snapshot


@dataclass(eq=False)
class Node:
    """A position with a choice, an end, or a stretch that the budget cut.

    Attributes:
        tokens: The completion so far.
        log_prob: Its log-probability in nats, options added up by token.
        decisions: Nodes on the way here.
        value: The value head's estimate at the last h_t that was computed on the way here.
        moves: Tokens to go on with, the most probable first; empty at an end.
        log_probs: Of the moves, in nats.
        cut: Whether the budget was spent before the next node or end.
        state: Snapshot and row to go on from.
        children: By the move that leads there.
        visits: Simulations through this node, those under way included (tree search).
        total: Sum of the values they brought back.
        pending: Moves that a simulation is just trying.
        exhausted: Whether every completion below it is known.
    """

    tokens: list[int]
    log_prob: float
    decisions: int
    value: float
    moves: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    cut: bool = False
    state: tuple[Snapshot, int] | None = None
    children: dict[int, "Node"] = field(default_factory=dict)
    visits: int = 0
    total: float = 0.0
    pending: set[int] = field(default_factory=set)
    exhausted: bool = False


@dataclass(eq=False)
class Tree:
    """The completions of one prompt as far as they are known.

    Attributes:
        prompt: Token ids.
        budget: Most tokens that may be generated.
        spent: Tokens generated.
        ends: Finished completions in their order, each with the tokens spent until then.
        solved: Whether a completion is good enough to stop.
    """

    prompt: list[int]
    budget: int
    root: Node = field(default_factory=lambda: Node([], 0.0, 0, 0.0))
    spent: int = 0
    ends: list[tuple[Node, int]] = field(default_factory=list)
    solved: bool = False


Move = tuple[Node, int]
# Asks for moves and is sent what they lead to, in their order; asking for none waits for one step of the others.
Search = Generator[list[Move], list[Node], None]
