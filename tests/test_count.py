"""A test that silently no longer runs is noticed: the number that passed has a floor, and nothing is skipped."""

from types import SimpleNamespace

from conftest import lacking


def report(*marks):
    return SimpleNamespace(nodeid="tests/test_x.py::test_y", keywords=dict.fromkeys(marks, 1))


def test_fewer_tests_and_skipped_ones_are_named():
    passed = {"passed": [report()] * 5}
    assert lacking(passed, 5) == []
    assert lacking(passed, 6) == ["5 tests passed, at least 6 should"]
    assert lacking({}, 1) == ["0 tests passed, at least 1 should"]
    assert lacking({**passed, "skipped": [report("gpu")]}, 5) == []
    for outcome in ("skipped", "xfailed", "xpassed"):
        assert lacking({**passed, outcome: [report("gpu"), report("torture")]}, 5) == [
            f"{outcome}, and needs no GPU: tests/test_x.py::test_y"
        ]
