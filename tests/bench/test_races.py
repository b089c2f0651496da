"""Races: failures, graphs and modes; the checks of reuse; kernels and operations."""

import pytest
import torch
from torch import nn

from catome_bench.measure import modes
from catome_bench.measure.checks import check_reuse
from catome_bench.measure.contender import Contender
from catome_bench.measure.race import race
from catome_bench.races import networks
from catome_bench.races.contenders import LATTICES
from catome_bench.races.hosts import twin
from catome_bench.races.kernels import exact, race_kernels
from catome_bench.races.operations import race_operations, race_windows
from catome_core import MergePlan, TokenGrid
from zoo.tiny_blocks import OURS, TINY_NETWORK, TINY_NETWORKS, UNET, by_subject, contenders_of, some

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("fresh_compiler", "without_gradients")]


def halting(stack):
    """Cannot be compiled in one graph, and shares its code with the other blocks."""
    host = twin(UNET.host("cpu", torch.float32))
    host.transformer_blocks[0].attn1.register_forward_hook(lambda *args: torch._dynamo.graph_break())
    return Contender(host, UNET.inputs("cpu", torch.float32))


@pytest.fixture
def without_inductor(monkeypatch):
    """Dynamo counts graphs and breaks; what they are compiled to takes longer and makes no difference."""
    monkeypatch.setattr(modes, "compile_fx", lambda graph, inputs, config_patches: graph.forward)


class TestRace:
    def test_who_cannot_be_built_gets_a_row_that_says_why(self):
        def fail(stack):
            raise ModuleNotFoundError("not installed: pip install something\nand more")

        rows = by_subject(
            race(some(contenders_of("unet"), "unpatched") | {"peer": fail}, "eager", repeats=1, device="cpu")
        )
        assert rows["peer", "-"].note == "ModuleNotFoundError: not installed: pip install something"
        assert rows["unpatched", "every step"].timing is not None

    def test_compiled_graphs_are_counted_for_each(self, without_inductor):
        """And a contender with graph breaks does not change the others."""
        made = {"halting": halting} | some(contenders_of("unet"), "attention, proportional", "free block")
        rows = by_subject(race(made, "compiled", repeats=2, device="cpu"))
        counts = {key: (row.graphs, row.breaks, row.recompiles) for key, row in rows.items() if key[1] != "config_3"}
        assert counts["attention, proportional", "reuse"] == (2, 0, 0)
        assert counts["free block", "every step"] == (1, 0, 0)
        assert rows["free block", "every step"].note == ""
        assert counts["halting", "every step"][1] > 0
        assert "no full graph" in rows["halting", "every step"].note

    def test_cuda_graphs_are_asked_for(self, monkeypatch):
        """Without a GPU inductor leaves them out; the path is the same."""
        asked, compile_graph = [], modes.compile_fx

        def spy(graph, inputs, config_patches):
            asked.append(config_patches)
            return compile_graph(graph, inputs, config_patches=config_patches)

        monkeypatch.setattr(modes, "compile_fx", spy)
        rows = race(
            some(contenders_of("wan", dtype=torch.bfloat16), "unpatched"), "cuda graphs", repeats=1, device="cpu"
        )
        assert [(row.graphs, row.note) for row in rows] == [(1, "")]
        assert asked == [{"triton.cudagraphs": True}]

    def test_regional_compilation_of_a_whole_network(self, without_inductor):
        made = some(networks.network_contenders(TINY_NETWORK, "cpu", torch.bfloat16), "unpatched", "keys, proportional")
        rows = by_subject(race(made, "regional", repeats=1, device="cpu"))
        assert rows["unpatched", "every step"].graphs > 0
        assert rows["keys, proportional", "reuse"].timing is not None
        assert not any(row.note or row.recompiles for row in rows.values())

    def test_regional_compilation_of_nothing_is_refused(self):
        rows = race(some(contenders_of("unet"), "unpatched"), "regional", repeats=1, device="cpu")
        assert "has no block of []" in rows[0].note

    @pytest.mark.parametrize("name", TINY_NETWORKS)
    def test_a_network_of_random_weights_predicts_finite_noise(self, name):
        made = networks.network_contenders(TINY_NETWORKS[name], "cpu", torch.float32)
        rows = race(made, "eager", repeats=1, device="cpu")
        assert [row.note for row in rows if not row.timing] == []
        contender = made["unpatched"](None)
        assert contender.module(*contender.inputs).isfinite().all()


class TestChecks:
    def test_reuse_gives_the_same_bits_twice(self):
        rows = check_reuse(contenders_of("unet"), "eager", "cpu")
        reused = dict.fromkeys([*OURS, "ca-tome"], True)
        assert {row["subject"]: row["identical"] for row in rows} == reused | dict.fromkeys(LATTICES)
        assert all(row["host_reads"] is None for row in rows)

    def test_other_bits_are_told(self):
        class Noisy(nn.Module):
            def forward(self, tokens):
                return tokens + torch.randn(tokens.shape)

        phases = {"checkpoint": lambda: None, "reuse": lambda: None}
        (row,) = check_reuse({"noisy": lambda stack: Contender(Noisy(), (torch.ones(4),), phases)}, "eager", "cpu")
        assert row["identical"] is False

    def test_another_error_says_nothing_about_waiting(self):
        class Broken(nn.Module):
            def forward(self, tokens):
                if self.called:
                    raise torch.OutOfMemoryError("out of memory")
                self.called = True
                return tokens

            called = False

        phases = {"checkpoint": lambda: None, "reuse": lambda: None}
        (row,) = check_reuse({"broken": lambda stack: Contender(Broken(), (torch.ones(4),), phases)}, "eager", "cpu")
        assert row["host_reads"] is None and "out of memory" in row["note"]


class TestKernels:
    @pytest.mark.parametrize("mode", ["eager", "compiled"])
    def test_every_kernel_is_exact(self, mode):
        rows = race_kernels(8, TokenGrid((8, 8)), 2, 2, mode, repeats=1, device="cpu", dtype=torch.float32)
        names = {"no bias", "additive mask", "one more channel", "more channels, a multiple of 8"}
        assert {row.subject for row in rows} == names | ({"FlexAttention"} if mode == "compiled" else set())
        assert {row.note for row in rows} == {""}
        assert max(row.error for row in rows) < 1e-5

    def test_the_reference_weighs_keys_by_their_tokens_and_leaves_padding_out(self):
        plan = MergePlan(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([[3, 1, 0]]), torch.zeros(1, 3))
        query, key = torch.zeros(2, 1, 1, 3, 2).unbind()
        value = torch.tensor([[1.0, 0], [0, 1], [50, 50]])[None, None]
        assert exact(query, key, value, plan, True)[0].tolist() == pytest.approx([0.75, 0.25])
        assert exact(query, key, value, plan, False)[0].tolist() == pytest.approx([0.5, 0.5])


def test_operations_stand_beside_their_floors():
    rows = race_operations(TokenGrid((8, 8)), 16, 2, "eager", repeats=1, device="cpu", dtype=torch.float32)
    medians = {row.subject: row.timing.median for row in rows}
    efficiency = {row.subject: row.efficiency for row in rows if row.efficiency is not None}
    assert set(efficiency) == {"match", "merge", "unmerge"}
    assert efficiency["unmerge"] == pytest.approx(medians["copy of the tokens"] / medians["unmerge"])
    assert efficiency["match"] == pytest.approx(medians["product of sources and destinations"] / medians["match"])


def test_windows_are_timed_in_two_and_three_dimensions():
    shapes = {"flat": (8, 8), "deep": (3, 4, 4)}
    rows = race_windows(shapes, 16, "eager", repeats=1, device="cpu", dtype=torch.float32)
    assert [row.subject for row in rows] == ["radius 2, flat", "radius 2, deep"]
    assert all(row.timing.memory > 0 for row in rows)
