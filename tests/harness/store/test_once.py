import pytest

from trinity.harness.store.once import once


class _Counting:
    def __init__(self) -> None:
        self.done = 0

    @once
    def work(self) -> int:
        """Counts."""
        self.done += 1
        return self.done

    @once
    def nothing(self) -> None:
        self.done += 1


def test_work_is_done_once_for_each_object_and_its_result_kept() -> None:
    one, other = _Counting(), _Counting()
    assert [one.work(), one.work(), other.work()] == [1, 1, 1]
    assert (one.done, other.done) == (1, 1)


def test_a_result_of_none_is_a_result() -> None:
    counting = _Counting()
    assert counting.nothing() is counting.nothing() is None
    assert counting.done == 1


def test_what_fails_is_tried_again() -> None:
    class Failing(_Counting):
        @once
        def fail(self) -> int:
            self.done += 1
            return 6 // (self.done - 1)

    failing = Failing()
    with pytest.raises(ZeroDivisionError):
        failing.fail()
    assert failing.fail() == 6


def test_its_name_and_docstring_are_the_methods() -> None:
    assert (_Counting.work.__name__, _Counting.work.__doc__) == ("work", "Counts.")
