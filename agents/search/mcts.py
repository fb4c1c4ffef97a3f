"""Monte-Carlo tree search with PUCT (Silver et al. 2017, Methods, "Select") over the nodes of a tree.

Decoding is deterministic, so a known completion gives no new information. Subtrees that are fully known are not entered
again, and all nodes that a simulation reaches join the tree. So no token is generated twice. Rollouts take the most
probable move and use no random numbers, so the first completion is the policy's greedy one.
"""

import math
from collections.abc import Callable

from ollm_rl.agents.search.tree import Node, Search, Tree

ValueFunction = Callable[[Tree, Node], float]


def puct_scores(node: Node, exploration: float) -> list[float]:
    """Q + c * P * sqrt(N) / (1 + n) for every move.

    n counts the visits of the move, N those of the node. P is the policy's probability of the move. Q is the mean value
    of the simulations through the move, or through the node if the move is untried. Running simulations count as visits
    of value 0, so that others explore elsewhere (virtual loss).
    """
    scores = []
    for move, log_prob in zip(node.moves, node.log_probs, strict=True):
        child = node.children.get(move)
        visits = child.visits if child else 0
        source = child or node
        mean = source.total / max(1, source.visits)
        scores.append(mean + exploration * math.exp(log_prob) * math.sqrt(node.visits) / (1 + visits))
    return scores


def select(root: Node, exploration: float) -> list[tuple[Node, int]] | None:
    """The path of best PUCT scores from the root to a move not yet in the tree; None if all are being tried."""
    busy: set[Node] = set()  # all moves below them are known or being tried
    while root not in busy:
        path, node = [], root
        while True:
            scores = zip(puct_scores(node, exploration), node.moves, strict=True)
            open_moves = [pair for pair in scores if _is_open(node, pair[1], busy)]
            if not open_moves:
                busy.add(node)
                break
            move = max(open_moves, key=lambda pair: pair[0])[1]
            path.append((node, move))
            if move not in node.children:
                return path
            node = node.children[move]
    return None


def _is_open(node: Node, move: int, busy: set[Node]) -> bool:
    child = node.children.get(move)
    return move not in node.pending if child is None else not child.exhausted and child not in busy


def simulations(
    tree: Tree,
    leaf_value: ValueFunction,
    *,
    exploration: float,
    rollouts: bool,
    solved: float = math.inf,
    wait: bool = False,
) -> Search:
    """Simulate until the budget is spent, all completions are known, or one has the value ``solved``.

    Several such searches may share a tree.

    Args:
        tree: The tree to extend.
        leaf_value: Value of a leaf, in [0, 1]. A leaf is a finished completion; without ``rollouts`` also a node.
        exploration: c.
        rollouts: Whether a simulation continues to the end of a completion, or stops at the first new node.
        solved: The value that ends the search of the tree.
        wait: Whether to begin only after a first completion, so that a small budget is not split between many.
    """
    while wait and not tree.ends and tree.spent < tree.budget:
        yield []
    while tree.spent < tree.budget and not tree.root.exhausted and not tree.solved:
        path = select(tree.root, exploration)
        if path is None:
            yield []
            continue
        for node, _ in path:
            node.visits += 1
        leaf, move = path[-1]
        while True:
            leaf.pending.add(move)
            (child,) = yield [(leaf, move)]
            leaf.pending.discard(move)
            if child.cut:
                return
            child.visits += 1
            # Without rollouts the first simulation still continues to an end: there has to be an answer.
            if not child.moves or not (rollouts or not tree.ends):
                break
            leaf, move = child, child.moves[0]
            path.append((leaf, move))
        value = leaf_value(tree, child)
        _back_up(path, child, value)
        tree.solved |= value >= solved


def _back_up(path: list[tuple[Node, int]], leaf: Node, value: float) -> None:
    """Add a simulation's value to all nodes on its path, and mark the subtrees that are fully known."""
    leaf.total += value
    for node, _ in reversed(path):
        node.total += value
        node.exhausted = all(move in node.children and node.children[move].exhausted for move in node.moves)
