"""Things that arrive out of order, late or never."""

import threading

import pytest

from swav_tf.data.service import Reordered


def made(number):
    return f"made {number}"


# Bugs caught: order of arrival; a wait for what will never come; a late thing handed out for another number.
def test_what_is_lost_is_made_here():
    stream = [(2, "2"), (0, "0"), (3, "3"), (1, "1"), (6, "6"), (5, "5")]
    things = Reordered(lambda: iter(stream), made, first=0, ahead=10, patience_seconds=60)
    assert [things.get(n) for n in range(7)] == ["0", "1", "2", "3", "made 4", "5", "6"]
    assert things.made_here == 1


def test_what_comes_twice_is_handed_out_once():
    order = [0, 1, 2, 0, 3, 2, 1, 4]
    things = Reordered(lambda: ((n, str(n)) for n in order), made, first=0, ahead=3, patience_seconds=60)
    assert [things.get(n) for n in range(5)] == list("01234")
    assert (things.wanted_from, things.made_here, things._there) == (5, 0, {})


def test_one_that_many_overtake_counts_as_lost_and_is_dropped_when_late():
    late = threading.Event()

    def stream():
        yield from ((n, str(n)) for n in range(1, 5))
        late.wait()
        yield from ((n, str(n)) for n in (0, 5))

    things = Reordered(stream, made, first=0, ahead=4, patience_seconds=60)
    assert things.get(0) == "made 0"
    late.set()
    assert [things.get(n) for n in range(1, 6)] == list("12345")


def test_a_stream_that_is_silent_and_comes_back():
    back, said = threading.Event(), []

    def stream():
        yield 0, "0"
        back.wait()
        yield from ((n, str(n)) for n in range(1, 5))

    things = Reordered(stream, made, first=0, ahead=10, patience_seconds=0.2, say=said.append)
    assert [things.get(n) for n in range(3)] == ["0", "made 1", "made 2"]
    back.set()
    things._thread.join()
    assert [things.get(n) for n in (3, 4)] == ["3", "4"]
    assert said == ["nothing came for 0.2 s", ""]


def test_no_more_than_is_wanted_is_kept():
    given = []

    def stream():
        for n in range(100):
            given.append(n)
            yield n, str(n)

    things = Reordered(stream, made, first=0, ahead=5, patience_seconds=60)
    for n in range(50):
        assert things.get(n) == str(n)
        assert len(given) <= n + 8
    things.end()
    things._thread.join(10)
    assert not things._thread.is_alive()


def test_a_refusal_is_raised_and_an_end_wakes():
    def refusing():
        raise ValueError("other crops")
        yield

    with pytest.raises(ValueError, match="other crops"):
        Reordered(refusing, made, first=0, ahead=5, patience_seconds=60).get(0)

    never = threading.Event()

    def silent():
        never.wait()
        yield 0, "0"

    things = Reordered(silent, made, first=0, ahead=5, patience_seconds=60)
    threading.Timer(0.2, things.end).start()
    assert things.get(0) is None
    never.set()


def test_many_readers_at_once():
    numbers = [n for n in range(2000) if n % 7]
    order = sorted(numbers, key=lambda n: n // 20 * 20 + (n * 13) % 20)
    things = Reordered(lambda: ((n, n) for n in order), lambda n: n, first=0, ahead=50, patience_seconds=60)
    found, lock, left = [], threading.Lock(), iter(range(2000))

    def read():
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            thing = things.get(number)
            with lock:
                found.append((number, thing))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert sorted(found) == [(n, n) for n in range(2000)]
    assert things.made_here >= 2000 - len(numbers)
