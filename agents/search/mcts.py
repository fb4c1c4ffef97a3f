"""Monte-Carlo tree search with PUCT (Silver et al. 2017, Methods, "Select") over the nodes of a tree.

Decoding is deterministic, so a completion that is known teaches nothing new: subtrees of which all is known are not
entered again, and all nodes that a simulation meets join the tree. So no token is generated twice. Rollouts take the
most probable move: with nothing drawn, the tree begins with the policy's greedy completion and grows from there.
"""

import math
from collections.abc import Callable

from ollm_rl.agents.search.tree import Node, Search, Tree

Judge = Callable[[Tree, Node], float]


def puct_scores(node: Node, exploration: float) -> list[float]:
    """Q + c * P * sqrt(N) / (1 + n) of every move.

    n is the move's visits and N the node's, P the policy's probability of the move, Q the mean value of the
    simulations through it; of a move not yet tried that of the node. Simulations under way count as visits of value 0,
    so that others look elsewhere (virtual loss).
    """
    scores = []
    for move, log_prob in zip(node.moves, node.log_probs, strict=True):
        child = node.children.get(move)
        visits = child.visits if child else 0
        known = child or node
        mean = known.total / max(1, known.visits)
        scores.append(mean + exploration * math.exp(log_prob) * math.sqrt(node.visits) / (1 + visits))
    return scores


def select(root: Node, exploration: float) -> list[tuple[Node, int]] | None:
    """The moves from the root to one that is not yet in the tree, the best by PUCT; None if all are being tried."""
    busy: set[Node] = set()  # all moves below are being tried or known
    while root not in busy:
        path, node = [], root
        while True:
            scores = zip(puct_scores(node, exploration), node.moves, strict=True)
            untried = [pair for pair in scores if _is_open(node, pair[1], busy)]
            if not untried:
                busy.add(node)
                break
            move = max(untried, key=lambda pair: pair[0])[1]
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
    judge: Judge,
    *,
    exploration: float,
    rollouts: bool,
    solved: float = math.inf,
    wait: bool = False,
) -> Search:
    """Simulate until the budget is spent, all completions are known, or one is worth ``solved``.

    Several such searches may share a tree.

    Args:
        tree: Grows.
        judge: Value of a leaf, in [0, 1]: of a finished completion where there are rollouts, else of a node too.
        exploration: c.
        rollouts: Whether a simulation goes on to the end of a completion, or stops at the first new node.
        solved: The value that ends the search of the tree.
        wait: Whether to begin once a completion is finished, so that a small budget is not split between many.
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
            # Without rollouts the first simulation still goes on to an end: there has to be an answer.
            if not child.moves or not (rollouts or not tree.ends):
                break
            leaf, move = child, child.moves[0]
            path.append((leaf, move))
        value = judge(tree, child)
        _back_up(path, child, value)
        tree.solved |= value >= solved


def _back_up(path: list[tuple[Node, int]], leaf: Node, value: float) -> None:
    """Add a simulation's value to all nodes that it went through, and see which subtrees are known whole."""
    leaf.total += value
    for node, _ in reversed(path):
        node.total += value
        node.exhausted = all(move in node.children and node.children[move].exhausted for move in node.moves)
