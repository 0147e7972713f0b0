"""The workloads of the campaigns: short runs of an index, each a function that writes a plan.

Another one is one more function (see plan.py; `step` takes the states it passes through):

    @workload
    def status(plan: Plan) -> None:
        plan.add("a", "b")
        plan.begin()
        plan.delete("a")
        plan.step("status", lambda bench: bench.corpus.status())
"""

from __future__ import annotations

from collections.abc import Callable

from basics import FIRST, SECOND
from plan import Plan

WORKLOADS: dict[str, Callable[[Plan], None]] = {}


def workload(function: Callable[[Plan], None]) -> Callable[[Plan], None]:
    """Register a workload under its function's name."""
    WORKLOADS[function.__name__] = function
    return function


def planned(name: str) -> Plan:
    """The plan of a workload; the same each time."""
    plan = Plan()
    WORKLOADS[name](plan)
    return plan


@workload
def create(plan: Plan) -> None:
    """A directory that is not there becomes an index, and takes its first texts."""
    plan.step("open", lambda bench: bench.corpus)
    plan.add("a")
    plan.add("b", "c", words=40)
    plan.delete("a")
    plan.add("a", "d")


@workload
def update(plan: Plan) -> None:
    """Texts are replaced and deleted."""
    plan.add("a", "b", "c", "d", words=3)
    plan.add("e", words=40)
    plan.begin()
    plan.add("a")
    plan.add("e", "b", words=20)
    plan.delete("c", "d")
    plan.add("c", "f")
    plan.remove("e", "a")
    plan.add("f", words=40)


@workload
def sync(plan: Plan) -> None:
    """A folder is kept up with: files come, change, move and go."""
    plan.sync(write=("1.txt", "2.txt", "3.txt", "4.txt"))
    plan.add("a")
    plan.begin()
    plan.sync(write=("5.txt", "2.txt"), words=12)
    plan.sync(rename={"1.txt": "6.txt"}, remove=("3.txt",))
    plan.sync(write=("7.txt", "2.txt"), rename={"4.txt": "8.txt"}, remove=("5.txt",))
    plan.sync()
    plan.sync(remove=("2.txt", "6.txt", "7.txt", "8.txt"))
    plan.sync(write=("9.txt",))


@workload
def checkpoint(plan: Plan) -> None:
    """So much comes and goes that each FAISS file is soon replaced and removed, or all are void."""
    plan.add("a", "b", words=20)
    plan.begin()
    plan.add("a", words=40)
    plan.add("b", words=40)
    plan.add("a", "b", words=5)
    plan.delete("a", "b")
    plan.add("c", words=60)
    plan.add("c", "d", words=30)


@workload
def reopen(plan: Plan) -> None:
    """One writer after the other; tantivy's files are lost in between, and built again."""
    plan.add("a", "b", "c", words=5)
    plan.begin()
    plan.add("d")
    plan.reopen()
    plan.search()
    plan.lose_lexical()
    plan.search()
    plan.delete("b")
    plan.lose_lexical()
    plan.add("b")
    plan.reopen()
    plan.add("c", words=20)
    plan.search()


@workload
def reembed(plan: Plan) -> None:
    """Another model, and back again; both are kept, then one of them goes."""
    plan.add("a", "b", words=20)
    plan.add("c", "d")
    plan.begin()
    plan.reembed(SECOND)
    plan.add("e", "a")
    plan.delete("c")
    plan.rollback(FIRST)
    plan.add("f", words=20)
    plan.forget_models()
    plan.reembed(SECOND)
    plan.reopen()
    plan.delete("b")


@workload
def compact(plan: Plan) -> None:
    """Much comes and goes, and its space is given back, on demand and by itself."""
    plan.add("a", "b", "c", "d", words=40)
    plan.add("a", "b", words=40)
    plan.begin()
    plan.delete("c")
    plan.compact()
    plan.add("e", "b", words=20)
    plan.delete("a", "d")
    plan.compact()
    plan.free_pages(4096)
    plan.add("f", "g", "h", words=40)
    plan.delete("f", "g", "h")
    plan.add("a")
    plan.compact()


@workload
def purge(plan: Plan) -> None:
    """Texts are removed so that nothing is left of them, at last all there are."""
    plan.add("a", "b", "c", words=3)
    plan.add("d", words=40)
    plan.begin()
    plan.purge("a")
    plan.add("b", "e")
    plan.purge("b", "d")
    plan.purge("c", "e")
    plan.add("a")


@workload
def migrate(plan: Plan) -> None:
    """An index of format 1 is opened and gone on with."""
    plan.unpack(1)
    plan.begin()
    plan.step("open", lambda bench: bench.corpus)
    plan.search()
    plan.add("a", "faq-1")
    plan.delete("faq-3")
    plan.add("b", words=40)
