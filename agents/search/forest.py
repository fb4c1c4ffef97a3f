"""Trees of completions, many side by side on one decode engine, and no prefix of them run twice.

Every node keeps a snapshot of its keys and values beyond the prompt until its tree is finished, so a branch begins with
a copy instead of a pass over its prefix. Each tree has slots of its own, which hold its prompt all the time, and all
trees take a token in all of their slots at once; so a tree grows alike whatever trees grow beside it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.decode.engine import DecodeEngine

MOVES = 32  # a node offers at most so many tokens, the most probable: all options, or the head of the vocabulary


@dataclass(eq=False)
class _Request:
    """Moves that a search has asked for, and what has come of them."""

    search: Search
    found: list[Node | None]


@dataclass(eq=False)
class _Job:
    """A stretch that a slot decodes."""

    parent: Node | None
    move: int  # of the parent
    node: Node  # what it has reached
    request: _Request | None
    place: int  # among the request's moves
    next_token: int | None = None


@dataclass(eq=False)
class _Group:
    """The slots of one tree."""

    tree: Tree
    slots: list[int]
    alive: int = 0  # searches that go on
    queue: deque[_Job] = field(default_factory=deque)
    sleeping: list[Search] = field(default_factory=list)


class Forest:
    """Grows trees.

    Args:
        policy: Of options, or of tokens.
        engine: On its backbone.
        end_token: Ends a completion and is part of it.
        max_new_tokens: Token limit of a completion.
        leaves: Slots of a tree.
        fork: Whether branches begin from snapshots; if not, each runs its prefix again. For comparison.

    Attributes:
        recomputed: Tokens of prefixes that were run again.
    """

    def __init__(
        self,
        policy: Policy,
        engine: DecodeEngine,
        *,
        end_token: int,
        max_new_tokens: int,
        leaves: int,
        fork: bool = True,
    ) -> None:
        self.policy, self.engine, self.fork = policy, engine, fork
        self.end_token, self.max_new_tokens, self.leaves = end_token, max_new_tokens, leaves
        self.recomputed = 0
        self._groups: list[_Group] = []
        self._jobs: dict[int, _Job] = {}  # by slot
        self._held: dict[int, Node] = {}  # the node whose state a slot still holds

    @torch.no_grad()
    def grow(self, trees: Sequence[Tree], plant: Callable[[Tree], list[Search]]) -> None:
        """Run the searches of every tree to their end.

        Args:
            trees: At least one; ``root`` is set before its searches begin.
            plant: The searches of a tree, which run side by side in its slots.
        """
        waiting = deque(trees)
        width = min(len(trees), self.engine.num_slots // self.leaves)
        self.engine.restart(width * self.leaves)
        free = [list(range(first * self.leaves, (first + 1) * self.leaves)) for first in range(width)]
        with tqdm(total=len(trees), desc="search") as bar:
            while waiting or self._groups:
                begun = [_Group(waiting.popleft(), free.pop()) for _ in range(min(len(free), len(waiting)))]
                self._begin(begun)
                self._look(plant)
                self._wake()
                self._place()
                done = [group for group in self._groups if not group.alive and group.slots[0] not in self._jobs]
                self._groups = [group for group in self._groups if group not in done]
                free += [group.slots for group in done]
                for group in done:
                    _forget_states(group.tree.root)
                if done:
                    bar.update(len(done))
                if not waiting:
                    free = self._shrink(free)
                if self._jobs:
                    self._step()

    def _begin(self, groups: list[_Group]) -> None:
        """Fill the slots of new groups with their prompts; the first goes on to the root."""
        if not groups:
            return
        self._groups += groups
        slots = [slot for group in groups for slot in group.slots]
        self.engine.prefill(slots, [group.tree.prompt for group in groups for _ in group.slots])
        for group in groups:
            self._jobs[group.slots[0]] = _Job(None, -1, group.tree.root, None, 0)

    def _look(self, plant: Callable[[Tree], list[Search]]) -> None:
        """See what every job has come to: a node, an end, or one token that all options agree on."""
        looking = [(group, slot) for group in self._groups for slot in group.slots if slot in self._jobs]
        if not looking:
            return
        slots = [slot for _, slot in looking]
        hidden = self.engine.hidden[torch.tensor(slots, device=self.engine.device)]
        tokens, log_probs = self.policy.choices(hidden)
        best = log_probs.topk(min(MOVES, log_probs.shape[1]))
        rows = [tokens.gather(1, best.indices), best.values, self.policy.value_head(hidden.float())[:, 0]]
        stopped = []
        for (group, slot), moves, scores, value in zip(looking, *(row.tolist() for row in rows), strict=True):
            job, count = self._jobs[slot], sum(score > -torch.inf for score in scores)
            job.node.value = value
            job.node.moves, job.node.log_probs = moves[:count], scores[:count]
            if count > 1 or self._append(group.tree, job, moves[0]):
                stopped.append((group, slot))
        at_nodes = [slot for _, slot in stopped if self._jobs[slot].node.moves]
        saved = None
        if at_nodes and self.fork:
            prompt = min(len(group.tree.prompt) for group, _ in stopped)
            saved = self.engine.snapshot(at_nodes, start=prompt)
        for row, slot in enumerate(at_nodes):
            node = self._held[slot] = self._jobs[slot].node
            node.state = None if saved is None else (saved, row)
        for group, slot in stopped:
            job = self._jobs.pop(slot)
            if job.request is None:
                searches = plant(group.tree)
                group.alive = len(searches)
                for search in searches:
                    self._resume(group, search, None)
            else:
                self._deliver(group, job)

    def _append(self, tree: Tree, job: _Job, token: int) -> bool:
        """Generate a token; true if the stretch is over without a node."""
        node = job.node
        node.moves, node.log_probs = [], []
        if tree.spent >= tree.budget:
            node.cut = True
            return True
        tree.spent += 1
        node.tokens.append(token)
        if token == self.end_token or len(node.tokens) == self.max_new_tokens:
            node.exhausted = True
            tree.ends.append((node, tree.spent))
            return True
        job.next_token = token
        return False

    def _resume(self, group: _Group, search: Search, found: list[Node] | None) -> None:
        """Let a search go on until it has to wait."""
        try:
            moves = next(search) if found is None else search.send(found)
        except StopIteration:
            group.alive -= 1
            return
        if not moves:
            group.sleeping.append(search)
            return
        request = _Request(search, [None] * len(moves))
        for place, (parent, move) in enumerate(moves):
            log_prob = parent.log_prob + parent.log_probs[parent.moves.index(move)]
            node = Node([*parent.tokens], log_prob, parent.decisions + 1, parent.value)
            group.queue.append(_Job(parent, move, node, request, place))

    def _deliver(self, group: _Group, job: _Job) -> None:
        """Hang what a job has reached into the tree, and let its search go on if it was the last of its moves."""
        assert job.request is not None and job.parent is not None
        if not job.node.cut:
            job.parent.children[job.move] = job.node
        job.request.found[job.place] = job.node
        found = [node for node in job.request.found if node is not None]
        if len(found) == len(job.request.found):
            self._resume(group, job.request.search, found)

    def _wake(self) -> None:
        for group in self._groups:
            sleeping, group.sleeping = group.sleeping, []
            for search in sleeping:
                self._resume(group, search, [])

    def _place(self) -> None:
        """Put jobs that wait into slots, where it can be into the one that holds their parent."""
        branches: list[tuple[int, Node, Tree]] = []
        for group in self._groups:
            while group.queue:
                idle = [slot for slot in group.slots if slot not in self._jobs]
                job = group.queue[0]
                held = [slot for slot in idle if self._held.get(slot) is job.parent]
                if not idle:
                    break
                group.queue.popleft()
                if self._append(group.tree, job, job.move):  # needs no slot
                    self._deliver(group, job)
                    continue
                # A slot that holds the parent of another job is taken last.
                wanted = {id(other.parent) for other in group.queue}
                slot = held[0] if held else min(idle, key=lambda slot: id(self._held.get(slot)) in wanted)
                self._jobs[slot] = job
                self._held.pop(slot, None)
                if not held:
                    assert job.parent is not None
                    branches.append((slot, job.parent, group.tree))
        slots = [slot for slot, _, _ in branches]
        if self.fork:
            self.engine.begin(slots, [node.state for _, node, _ in branches if node.state is not None])
        elif branches:
            prefixes = [tree.prompt + node.tokens for _, node, tree in branches]
            self.recomputed += sum(map(len, prefixes))
            self.engine.prefill(slots, prefixes)

    def _step(self) -> None:
        """Run the model on the tokens of all jobs."""
        count = len(self.engine.lengths)
        tokens = [0] * count
        prompts = {slot: len(group.tree.prompt) for group in self._groups for slot in group.slots}
        for slot in range(count):
            if slot in self._jobs:
                tokens[slot] = self._jobs[slot].next_token or 0
            elif slot in prompts:
                self.engine.crop(slot, prompts[slot])  # what an idle slot gets lies behind the prompt
            else:
                self.engine.release(slot)
        self._held.clear()
        self.engine.step(torch.tensor(tokens, device=self.engine.device))

    def _shrink(self, free: list[list[int]]) -> list[list[int]]:
        """Drop the slots of finished trees once they are many; returns what stays free."""
        live = [slot for group in self._groups for slot in group.slots]
        enough = self.engine.enough(len(live))
        if not live or 2 * enough > len(self.engine.lengths):
            return free
        idle = [slot for slots in free for slot in slots]
        self.engine.keep([*live, *idle[: enough - len(live)]])
        moved = {slot: place for place, slot in enumerate(live)}
        self._jobs = {moved[slot]: job for slot, job in self._jobs.items()}
        for group in self._groups:
            group.slots = [moved[slot] for slot in group.slots]
        return []


def _forget_states(root: Node) -> None:
    """Give the memory of a finished tree's snapshots back."""
    nodes = [root]
    while nodes:
        node = nodes.pop()
        node.state = None
        nodes += node.children.values()
