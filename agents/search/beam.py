"""Beam search over the nodes of a tree, with a beam that widens until the budget is spent."""

from ollm_rl.agents.search.tree import Node, Search, Tree


def beam_search(tree: Tree) -> Search:
    """Passes with beams of 1, 2, 4, ... completions; a pass generates only what no pass before it has.

    A pass goes from node to node: of all moves of all nodes it has reached it keeps the most probable, the logarithms
    of their completions' probabilities added up. Between nodes there is nothing to choose, so these are compared at
    equal numbers of decisions, not of tokens. A finished completion keeps its place in the beam. The first pass decodes
    greedily.
    """
    width = 1
    while tree.spent < tree.budget:
        finished, frontier = 0, [tree.root] if tree.root.moves else []
        while frontier:
            kept = best_moves(frontier, width - finished)
            missing = [(node, move) for node, move in kept if move not in node.children]
            if missing:
                yield missing
            reached = [node.children[move] for node, move in kept if move in node.children]  # others were cut
            finished += sum(not node.moves for node in reached)
            frontier = [node for node in reached if node.moves]
        if finished < width:  # cut short by the budget, or all there is
            return
        width *= 2


def best_moves(nodes: list[Node], count: int) -> list[tuple[Node, int]]:
    """The most probable moves of several nodes, their completions' probabilities so far included."""
    moves = [
        (node.log_prob + log_prob, node, move)
        for node in nodes
        for move, log_prob in zip(node.moves, node.log_probs, strict=True)
    ]
    moves.sort(key=lambda scored: -scored[0])
    return [(node, move) for _, node, move in moves[:count]]
