"""What is timed and what is computed from it. Never how long anything took."""

import pytest
import torch

from catome_bench.measure.rows import add_speedups, mean_steps
from catome_bench.measure.timing import Subject, Timing, interleave, peak_memory
from catome_bench.views.tables import render_rows
from zoo.tiny_blocks import timed


class TestTiming:
    def watch(self, calls, readings):
        """A stopwatch with given readings, and subjects with names."""
        readings = iter(readings)

        def stopwatch(run):
            run()
            return next(readings)

        def subject(name):
            return Subject(lambda: calls.append(name), lambda: calls.append(f"prepare {name}"))

        return stopwatch, subject

    def test_rounds_rotate_and_the_warm_up_does_not_count(self):
        calls = []
        stopwatch, subject = self.watch(calls, [100, 200, 2, 1, 3, 6, 8, 5])
        subjects = {name: subject(name) for name in "ab"}
        timings = interleave(subjects, repeats=3, warmup=1, stopwatch=stopwatch)
        assert [call for call in calls if len(call) == 1][:8] == list("abbaabba")
        # a: 1, 3, 5; b: 2, 6, 8. Quartiles of three numbers lie half-way.
        assert timings["a"][:3] == (3, 2, 4)
        assert timings["b"][:3] == (6, 4, 7)

    def test_every_run_is_prepared(self):
        calls = []
        stopwatch, subject = self.watch(calls, [1] * 4)
        interleave({"a": subject("a")}, repeats=2, warmup=1, stopwatch=stopwatch)
        assert calls == ["prepare a", "a"] * 4  # the last for its memory

    def test_who_fails_says_so_and_the_others_go_on(self):
        def fail():
            raise RuntimeError("out of luck")

        runs = []
        timings = interleave({"bad": Subject(fail), "good": Subject(lambda: runs.append(1))}, repeats=2)
        assert str(timings["bad"]) == "out of luck"
        assert isinstance(timings["good"], Timing)
        assert len(runs) == 4

    def test_peak_memory_is_the_worst_moment(self):
        def run():
            first = torch.zeros(1000).neg()  # two at once
            return first[:10].clone(), torch.zeros(3000).sum()  # then this one beside the first

        assert peak_memory(run) == 4 * (1000 + 10 + 3000) + 4


class TestComparing:
    def test_speedup_and_efficiency(self):
        rows = [timed("unpatched", "every step", 100), timed("free", "every step", 60), timed("ours", "reuse", 70)]
        ours = add_speedups(rows, {"ours": "free"})[2]
        assert ours.speedup == pytest.approx(100 / 70)
        assert ours.efficiency == pytest.approx(30 / 40)

    def test_no_efficiency_where_nothing_can_be_saved(self):
        rows = [timed("unpatched", "every step", 100), timed("free", "every step", 101), timed("ours", "reuse", 102)]
        assert add_speedups(rows, {"ours": "free"})[2].efficiency is None

    def test_the_mean_step_of_config_3_has_13_checkpoints_in_50(self):
        (row,) = mean_steps([timed("ours", "checkpoint", 150), timed("ours", "reuse", 100), timed("b", "reuse", 1)])
        assert (row.subject, row.phase) == ("ours", "config_3")
        assert row.timing.median == pytest.approx((13 * 150 + 37 * 100) / 50)
        assert row.timing.low == pytest.approx((13 * 149 + 37 * 99) / 50)


def test_tables_leave_empty_columns_out():
    table = render_rows("title", [timed("unpatched", "every step", 0.002).to_dict()])
    names = [str(column.header) for column in table.columns]
    assert "error" not in names
    assert "median (q1 - q3)" in names
