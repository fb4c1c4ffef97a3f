"""Beam search over the nodes of a tree, with a beam that widens until the budget is spent."""

from ollm_rl.agents.search.tree import Node, Search, Tree


def beam_search(tree: Tree) -> Search:
    """Run passes with beams of 1, 2, 4, ... completions; a pass generates only what no earlier pass has.

    A pass goes from node to node. Of all moves of the nodes it has reached, it keeps those whose completions have the
    highest log-probabilities. Between nodes there is no choice, so completions are compared at equal numbers of
    decisions, not of tokens. A finished completion keeps its place in the beam. The first pass decodes greedily.
    """
    width = 1
    while tree.spent < tree.budget:
        finished, frontier = 0, [tree.root] if tree.root.moves else []
        while frontier:
            best = best_moves(frontier, width - finished)
            missing = [(node, move) for node, move in best if move not in node.children]
            if missing:
                yield missing
            reached = [node.children[move] for node, move in best if move in node.children]  # the budget cut the others
            finished += sum(not node.moves for node in reached)
            frontier = [node for node in reached if node.moves]
        if finished < width:  # the budget is spent, or there are no more completions
            return
        width *= 2


def best_moves(nodes: list[Node], count: int) -> list[tuple[Node, int]]:
    """The moves of several nodes that lead to the most probable completions so far."""
    moves = [
        (node.log_prob + log_prob, node, move)
        for node in nodes
        for move, log_prob in zip(node.moves, node.log_probs, strict=True)
    ]
    moves.sort(key=lambda scored: -scored[0])
    return [(node, move) for _, node, move in moves[:count]]
