"""XenStore's tree and transactions against a model, with requests in any order by any domain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from store_model import Refused
from store_model import Tree as Model
from trapgate.errors import StoreError
from trapgate.xenstore import tree as operations
from trapgate.xenstore.nodes import parse_permissions
from trapgate.xenstore.quota import Actor, Ledger, Quota
from trapgate.xenstore.transaction import Transaction
from trapgate.xenstore.tree import Change, Tree, View

ACTORS = {0: Actor(0), 1: Actor(1, Quota()), 2: Actor(2, Quota())}

paths = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(
    lambda names: "".join(f"/{n}" for n in names)
)
entries = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("nrwb")), min_size=1, max_size=3)


@dataclass(frozen=True)
class Request:
    """A request of a domain, outside or in one of its transactions (0 and 1)."""

    domid: int
    inside: int | None
    name: str
    arguments: tuple[Any, ...] = ()


def requests() -> st.SearchStrategy[Request]:
    calls: st.SearchStrategy[tuple[str, tuple[Any, ...]]] = st.one_of(
        st.tuples(st.sampled_from(["read", "directory", "permissions", "mkdir", "rm"]), st.tuples(paths)),
        st.tuples(st.just("write"), st.tuples(paths, st.sampled_from([b"1", b"2"]))),
        st.tuples(st.just("set_permissions"), st.tuples(paths, entries)),
        st.tuples(st.sampled_from(["start", "end", "end", "abort"]), st.just(())),
    )
    inside = st.sampled_from([None, 0, 0, 1])
    return st.builds(lambda d, i, call: Request(d, i, *call), st.integers(0, 2), inside, calls)


def ask_store(view: View, request: Request, heard: list[Change]) -> object:
    """Carry a request out; give its answer, or the error's name."""
    actor, (path, *rest) = ACTORS[request.domid], request.arguments
    try:
        if request.name in ("read", "directory", "permissions"):
            node = operations.visible(view, actor, path)
            texts = ",".join(map(str, node.permissions))
            return {"read": node.value, "directory": list(node.children), "permissions": texts}[request.name]
        if request.name == "set_permissions":
            rest = [parse_permissions(f"{letter}{owner}" for owner, letter in rest[0])]
        edits: dict[str, Callable[..., list[Change]]] = {
            "write": operations.write,
            "mkdir": operations.make,
            "rm": operations.remove,
            "set_permissions": operations.set_permissions,
        }
        heard += edits[request.name](view, actor, path, *rest)
    except StoreError as error:
        return error.code
    return None


def ask_model(model: Model, request: Request) -> object:
    try:
        answer: object = getattr(model, request.name)(request.domid, *request.arguments)
    except Refused as refusal:
        return refusal.args[0]
    return answer


@dataclass
class Open:
    """A transaction: what it saw, and the model as it was when it began."""

    transaction: Transaction
    model: Model
    #: Whether anything has changed outside since.
    disturbed: bool = False
    log: list[tuple[Request, object]] = field(default_factory=list)


class Comparison:
    def __init__(self) -> None:
        self.tree = Tree()
        self.model = Model()
        self.open: dict[tuple[int, int], Open] = {}
        for path in ("/a", "/b"):
            request = Request(0, None, "write", (path, b"0"))
            ask_store(self.tree, request, [])
            ask_model(self.model, request)
            request = Request(0, None, "set_permissions", (path, [(0, "r"), (1, "b")]))
            assert ask_store(self.tree, request, []) == ask_model(self.model, request)

    def run(self, request: Request) -> None:
        key = (request.domid, request.inside or 0)
        if request.name == "start":
            self.open.setdefault(key, Open(Transaction(self.tree, ACTORS[request.domid]), self.model.copy()))
        elif request.name in ("end", "abort"):
            if key in self.open:
                self.end(self.open.pop(key), commit=request.name == "end")
        elif request.inside is not None and key in self.open:
            self.inside(self.open[key], request)
        else:
            changes: list[Change] = []
            assert ask_store(self.tree, request, changes) == ask_model(self.model, request)
            self.disturb(bool(changes))

    def inside(self, at: Open, request: Request) -> None:
        changes: list[Change] = []
        answer = ask_store(at.transaction, request, changes)
        at.transaction.note(changes)
        at.log.append((request, answer))
        if not at.disturbed:
            assert answer == ask_model(at.model, request)

    def end(self, at: Open, *, commit: bool) -> None:
        if not commit:
            at.transaction.abort()
            return
        try:
            changes = at.transaction.commit()
        except StoreError as error:
            refused = error.code
        else:
            refused = ""
        if refused:
            assert refused == "EAGAIN"
            assert at.disturbed, "nobody interfered"
            return
        # It is as if all of it happened just now: everything it was told is true.
        assert [ask_model(self.model, request) for request, _ in at.log] == [answer for _, answer in at.log]
        self.disturb(bool(changes))

    def disturb(self, changed: bool) -> None:
        for other in self.open.values():
            other.disturbed |= changed

    def check(self) -> None:
        """Compare all nodes, and the accounts with what is there."""
        nodes = {path: self.tree.get(path) for path in self.tree.paths() if not path.startswith("@")}
        assert {path if path != "/" else "" for path in nodes} == set(self.model.nodes)
        generations = set()
        for path, node in nodes.items():
            assert node is not None
            expected = self.model.nodes["" if path == "/" else path]
            assert (node.value, list(node.children)) == (expected.value, expected.children)
            assert [(e.domid, str(e)[0]) for e in node.permissions] == expected.permissions
            generations.add(node.generation)
        assert len(generations) == len(nodes)
        assert max(generations) <= self.tree.generation
        ledger = Ledger()
        for path in self.tree.paths():
            there = self.tree.get(path)
            assert there is not None
            ledger.charge(there.owner, 1, there.cost(path))
        for domid in ACTORS:
            assert self.tree.ledger.of(domid) == ledger.of(domid)


@settings(max_examples=400)
@given(st.lists(requests(), max_size=40))
@example(
    [
        Request(1, 0, "start"),
        Request(1, 0, "write", ("/a/b", b"1")),
        Request(2, None, "read", ("/a/b",)),
        Request(0, None, "rm", ("/a",)),
        Request(1, 0, "end"),
    ]
)
def test_the_store_does_what_the_model_does(steps: list[Request]) -> None:
    comparison = Comparison()
    for request in steps:
        comparison.run(request)
    for at in comparison.open.values():
        at.transaction.abort()
    comparison.check()


@given(
    st.lists(requests().filter(lambda r: r.name not in ("start", "end", "abort")), max_size=12), st.booleans()
)
def test_a_transaction_alone_has_the_same_effect_as_its_requests(steps: list[Request], whole: bool) -> None:
    one, two = Comparison(), Comparison()
    transaction = Transaction(one.tree, ACTORS[0])
    for request in steps:
        assert ask_store(transaction, request, []) == ask_store(two.tree, request, [])
        ask_model(one.model, request)
    if whole:
        transaction.commit()
    else:
        transaction.abort()
        one.model = Comparison().model
    one.check()
