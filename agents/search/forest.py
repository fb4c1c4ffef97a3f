"""Many trees of completions in parallel on one decode engine; no prefix is run twice.

Every token of a tree is kept once, with its keys and values, until the tree is finished. So a branch begins with a copy
of its path instead of a pass over it. Each tree has its own slots, which always hold its prompt, and each step runs all
slots of all trees. So the result of a tree does not depend on the trees beside it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from ollm_rl.agents.policies.base import Policy
from ollm_rl.agents.search.tree import Node, Search, Tree
from ollm_rl.decode.engine import DecodeEngine
from ollm_rl.decode.token_store import TokenStore

MOVES = 32  # maximum moves of a node, the most probable tokens: all options, or the top of the vocabulary


@dataclass(eq=False)
class _Request:
    """Moves that a search has requested, and the nodes they led to."""

    search: Search
    results: list[Node | None]


@dataclass(eq=False)
class _Job:
    """The tokens from one node to the next, decoded in one slot."""

    parent: Node | None
    move: int  # of the parent
    node: Node  # the next node, filled while decoding
    request: _Request | None
    position: int  # among the request's moves
    next_token: int | None = None


@dataclass(eq=False)
class _Group:
    """One tree, its slots and its searches."""

    tree: Tree
    slots: list[int]
    region: range  # of places in the store
    num_saved: int = 0  # tokens in its first places
    num_searches: int = 0  # not yet finished
    queue: deque[_Job] = field(default_factory=deque)
    waiting: list[Search] = field(default_factory=list)  # for one step of the others


class Forest:
    """Runs the searches of many trees.

    Args:
        policy: Policy over options or tokens.
        engine: Decode engine of its backbone.
        end_tokens: Each ends a completion and is part of it.
        max_new_tokens: Token limit per completion.
        leaves: Slots per tree.
        fork: Whether branches begin from copies; if not, each runs its prefix again (for comparison).

    Attributes:
        recomputed: Prefix tokens that were run again.
    """

    def __init__(
        self,
        policy: Policy,
        engine: DecodeEngine,
        *,
        end_tokens: Sequence[int],
        max_new_tokens: int,
        leaves: int,
        fork: bool = True,
    ) -> None:
        self.policy, self.engine, self.fork = policy, engine, fork
        self.end_tokens, self.max_new_tokens, self.leaves = end_tokens, max_new_tokens, leaves
        self.recomputed = 0
        self._groups: list[_Group] = []
        self._jobs: dict[int, _Job] = {}  # by slot
        self._node_in: dict[int, Node] = {}  # by slot, the node whose state it still holds

    @torch.no_grad()
    def grow(self, trees: Sequence[Tree], create_searches: Callable[[Tree], list[Search]]) -> None:
        """Run the searches of every tree to their end.

        Args:
            trees: At least one; ``root`` is set before its searches begin.
            create_searches: Creates the searches of a tree, which run in parallel in its slots.
        """
        waiting = deque(trees)
        width, budget = min(len(trees), self.engine.num_slots // self.leaves), max(tree.budget for tree in trees)
        self.engine.restart(width * self.leaves)
        free = [list(range(first * self.leaves, (first + 1) * self.leaves)) for first in range(width)]
        self._store = TokenStore(self.engine, width * budget)
        regions = [range(first * budget, (first + 1) * budget) for first in range(width)]
        with tqdm(total=len(trees), desc="search") as bar:
            while waiting or self._groups:
                count = min(len(free), len(waiting))
                begun = [_Group(waiting.popleft(), free.pop(), regions.pop()) for _ in range(count)]
                self._begin(begun)
                self._inspect(create_searches)
                self._resume_waiting()
                self._assign_slots()
                done = [group for group in self._groups if not group.num_searches and group.slots[0] not in self._jobs]
                self._groups = [group for group in self._groups if group not in done]
                free += [group.slots for group in done]
                regions += [group.region for group in done]
                if done:
                    bar.update(len(done))
                if not waiting:
                    free = self._shrink(free)
                if self._jobs:
                    self._step()

    def _begin(self, groups: list[_Group]) -> None:
        """Fill the slots of new groups with their prompts; the first slot continues to the root."""
        if not groups:
            return
        self._groups += groups
        slots = [slot for group in groups for slot in group.slots]
        self.engine.prefill(slots, [group.tree.prompt for group in groups for _ in group.slots])
        for group in groups:
            self._jobs[group.slots[0]] = _Job(None, -1, group.tree.root, None, 0)

    def _inspect(self, create_searches: Callable[[Tree], list[Search]]) -> None:
        """Find out whether each job is at a node, at an end, or at a token on which all options agree."""
        active = [(group, slot) for group in self._groups for slot in group.slots if slot in self._jobs]
        if not active:
            return
        slots = [slot for _, slot in active]
        hidden = self.engine.hidden[torch.tensor(slots, device=self.engine.device)]
        tokens, log_probs = self.policy.choices(hidden)
        best = log_probs.topk(min(MOVES, log_probs.shape[1]))
        rows = [tokens.gather(1, best.indices), best.values, self.policy.value_head(hidden.float())[:, 0]]
        stopped = []
        for (group, slot), moves, scores, value in zip(active, *(row.tolist() for row in rows), strict=True):
            job, count = self._jobs[slot], sum(score > -torch.inf for score in scores)
            job.node.value = value
            job.node.moves, job.node.log_probs = moves[:count], scores[:count]
            if count > 1 or self._append(group.tree, job, moves[0]):
                stopped.append((group, slot))
        at_nodes = [(group, slot) for group, slot in stopped if self._jobs[slot].node.moves]
        for _, slot in at_nodes:
            self._node_in[slot] = self._jobs[slot].node
        if self.fork:
            self._save(at_nodes)
        for group, slot in stopped:
            job = self._jobs.pop(slot)
            if job.request is None:
                searches = create_searches(group.tree)
                group.num_searches = len(searches)
                for search in searches:
                    self._resume(group, search, None)
            else:
                self._deliver(group, job)

    def _save(self, at_nodes: Sequence[tuple[_Group, int]]) -> None:
        """Save the tokens between new nodes and their parents."""
        slots: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        for group, slot in at_nodes:
            job, prompt = self._jobs[slot], len(group.tree.prompt)
            known = [] if job.parent is None else job.parent.places
            new = range(len(known), len(job.node.tokens))
            saved = group.region[group.num_saved : group.num_saved + len(new)]
            group.num_saved += len(new)
            job.node.places = [*known, *saved]
            slots += [slot] * len(new)
            positions += [prompt + token for token in new]
            places += saved
        if slots:
            self._store.save(slots, positions, places)

    def _append(self, tree: Tree, job: _Job, token: int) -> bool:
        """Add a token to a job's node; True if the job ends there: at an end or out of budget."""
        node = job.node
        node.moves, node.log_probs = [], []
        if tree.spent >= tree.budget:
            node.cut = True
            return True
        tree.spent += 1
        node.tokens.append(token)
        if token in self.end_tokens or len(node.tokens) == self.max_new_tokens:
            node.exhausted = True
            tree.ends.append((node, tree.spent))
            return True
        job.next_token = token
        return False

    def _resume(self, group: _Group, search: Search, results: list[Node] | None) -> None:
        """Run a search until it has to wait."""
        try:
            moves = next(search) if results is None else search.send(results)
        except StopIteration:
            group.num_searches -= 1
            return
        if not moves:
            group.waiting.append(search)
            return
        request = _Request(search, [None] * len(moves))
        for position, (parent, move) in enumerate(moves):
            log_prob = parent.log_prob + parent.log_probs[parent.moves.index(move)]
            node = Node([*parent.tokens], log_prob, parent.decisions + 1, parent.value)
            group.queue.append(_Job(parent, move, node, request, position))

    def _deliver(self, group: _Group, job: _Job) -> None:
        """Add a job's node to the tree, and resume its search if this was the last of the requested moves."""
        assert job.request is not None and job.parent is not None
        if not job.node.cut:
            job.parent.children[job.move] = job.node
        job.request.results[job.position] = job.node
        results = [node for node in job.request.results if node is not None]
        if len(results) == len(job.request.results):
            self._resume(group, job.request.search, results)

    def _resume_waiting(self) -> None:
        for group in self._groups:
            waiting, group.waiting = group.waiting, []
            for search in waiting:
                self._resume(group, search, [])

    def _assign_slots(self) -> None:
        """Assign slots to queued jobs, if possible the slot that holds their parent."""
        branches: list[tuple[int, Node, Tree]] = []  # slots, and the nodes from which they continue
        for group in self._groups:
            while group.queue:
                idle = [slot for slot in group.slots if slot not in self._jobs]
                job = group.queue[0]
                with_parent = [slot for slot in idle if self._node_in.get(slot) is job.parent]
                if not idle:
                    break
                group.queue.popleft()
                if self._append(group.tree, job, job.move):  # needs no slot
                    self._deliver(group, job)
                    continue
                # A slot that holds the parent of another job is taken last.
                parents = {id(queued.parent) for queued in group.queue}
                slot = with_parent[0] if with_parent else min(idle, key=lambda i: id(self._node_in.get(i)) in parents)
                self._jobs[slot] = job
                self._node_in.pop(slot, None)
                if not with_parent:
                    assert job.parent is not None
                    branches.append((slot, job.parent, group.tree))
        slots = [slot for slot, _, _ in branches]
        if self.fork:
            prompts = [len(tree.prompt) for _, _, tree in branches]
            self._store.continue_slots(slots, prompts, [node.places for _, node, _ in branches])
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
                self.engine.crop(slot, prompts[slot])  # an idle slot gets its dummy token after the prompt
            else:
                self.engine.release(slot)
        self._node_in.clear()
        self.engine.step(torch.tensor(tokens, device=self.engine.device))

    def _shrink(self, free: list[list[int]]) -> list[list[int]]:
        """Drop the slots of finished trees once there are many; returns the slots that stay free."""
        live = [slot for group in self._groups for slot in group.slots]
        enough = self.engine.slots_for(len(live))
        if not live or 2 * enough > len(self.engine.lengths):
            return free
        idle = [slot for slots in free for slot in slots]
        self.engine.keep([*live, *idle[: enough - len(live)]])
        new_slots = {slot: index for index, slot in enumerate(live)}
        self._jobs = {new_slots[slot]: job for slot, job in self._jobs.items()}
        for group in self._groups:
            group.slots = [new_slots[slot] for slot in group.slots]
        return []
