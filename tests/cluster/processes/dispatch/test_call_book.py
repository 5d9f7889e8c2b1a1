"""Who owes what, and what has ended for whom."""

from ray import ObjectRef

from cluster.processes.dispatch.call_book import Call, CallBook
from cluster.processes.watchdog import Pending


def begun(book: CallBook[str], name: str, *, caller: str = "me", deadline_s: float | None = None) -> ObjectRef:
    ref = ObjectRef.from_random()
    owed = Pending(whom=name, what="an answer", since_s=0.0)
    book.begin(ref, Call(name=name, actor=book.actors[name], owed=owed, deadline_s=deadline_s, caller=caller))
    return ref


def test_a_call_that_has_ended_is_no_load_though_nobody_has_taken_it() -> None:
    book = CallBook({"a": "actor a", "b": "actor b"})
    ref = begun(book, "a")
    assert (book.loads.by_name(), [owed.whom for owed in book.pending()]) == ({"a": 1, "b": 0}, ["a"])
    book.end(ref)
    book.end(ref)  # told twice
    assert (book.loads.by_name(), book.pending()) == ({"a": 0, "b": 0}, [])
    assert [taken for taken, _ in book.take({ref}, "me")] == [ref]
    assert book.take({ref}, "me") == []


def test_each_caller_takes_its_own_in_the_order_in_which_they_ended() -> None:
    book = CallBook({"a": "actor a"})
    mine, theirs, mine_too, another = (begun(book, "a", caller=caller) for caller in ("me", "you", "me", "me"))
    for ref in (mine_too, theirs, mine):
        book.end(ref)
    assert [ref for ref, _ in book.take({mine, mine_too, another}, "me")] == [mine_too, mine]
    assert book.has_ended({theirs}, "you")
    assert not book.has_ended({another}, "me")


def test_an_actor_that_hangs_ends_its_calls_as_lost_and_no_others() -> None:
    book = CallBook({"a": "actor a", "b": "actor b"})
    hanging, well, done = begun(book, "a"), begun(book, "b"), begun(book, "a")
    book.end(done)
    assert book.lose("actor a") == 1
    assert [(ref, call.is_lost) for ref, call in book.take({hanging, well, done}, "me")] == [(done, False), (hanging, True)]


def test_calls_of_a_predecessor_are_no_load_of_its_successor() -> None:
    book = CallBook({"a": "actor a"})
    old = begun(book, "a")
    book.dismiss("a")
    book.admit("a", "its successor")
    new = begun(book, "a")
    book.end(old)
    assert book.loads["a"] == 1
    book.forget(new)
    assert (book.loads["a"], book.pending()) == (0, [])
    book.forget(old)
    assert not book.has_ended({old, new}, "me")


def test_the_longest_deadline_counts_while_its_call_is_in_flight() -> None:
    book = CallBook({"a": "actor a", "b": "actor b"})
    begun(book, "b")
    begun(book, "a", deadline_s=5.0)
    longest = begun(book, "a", deadline_s=9.0)
    assert book.own_deadlines_s() == {"a": 9.0}
    book.end(longest)
    assert book.own_deadlines_s() == {"a": 5.0}
