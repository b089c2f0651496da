"""The benchmark: what it times, whom it compares, and what it writes. Never how long anything took."""

import json
from contextlib import ExitStack

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxSingleTransformerBlock, FluxTransformerBlock
from torch import nn
from typer.testing import CliRunner

from catome_bench import blocks, compiling, contenders, jobs, networks, pictures
from catome_bench.blocks import Case, build_flux_block, build_pixart_block, build_unet_block, build_wan_block
from catome_bench.checks import check_reuse
from catome_bench.cli import app
from catome_bench.comparing import Row, compare, mean_steps
from catome_bench.contenders import Contender, enter_block, enter_rungs, twin
from catome_bench.kernels import exact, race_kernels
from catome_bench.operations import race_operations, race_windows
from catome_bench.race import race
from catome_bench.tables import render_rows
from catome_bench.timing import Subject, Timing, interleave, peak_memory
from catome_core import MergePlan, TokenGrid

UNET = Case(build_unet_block(16, 2, 8, text=3), (4, 4), 16)
TINY = {
    "unet": UNET,
    "pixart": Case(build_pixart_block(16, 2, text=3), (4, 4), 16),
    "double": Case(
        build_flux_block(FluxTransformerBlock, 2, 32, text=5), (4, 4), 64, 1, lambda grid: blocks.flux_rows(grid, 32)
    ),
    "single": Case(
        build_flux_block(FluxSingleTransformerBlock, 2, 32, text=5),
        (4, 4),
        64,
        1,
        lambda grid: blocks.flux_rows(grid, 32),
    ),
    "wan": Case(build_wan_block(32, 64, 2, text=5), (3, 4, 4), 32, 1, lambda grid: blocks.wan_rows(grid, 16)),
}
TINY_UNET = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
}
OURS = {f"{scope}{extra}" for scope in ("attention", "keys", "block") for extra in ("", ", proportional")}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    with torch.no_grad():
        yield
    torch.compiler.reset()


def enter(name, device="cpu", dtype=torch.float32):
    return enter_block(TINY[name], device, dtype)


def some(entrants, *names):
    return {name: entrants[name] for name in names}


def by_subject(rows):
    return {(row.subject, row.phase): row for row in rows}


def timed(subject, phase, median):
    return Row(subject, phase, "eager", Timing(median, median - 1, median + 2, 10))


class TestTiming:
    def watch(self, calls, readings):
        """A stopwatch that reads what it is told, and subjects that say who they are."""
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
        ours = compare(rows, {"ours": "free"})[2]
        assert ours.speedup == pytest.approx(100 / 70)
        assert ours.efficiency == pytest.approx(30 / 40)

    def test_no_efficiency_where_nothing_can_be_saved(self):
        rows = [timed("unpatched", "every step", 100), timed("free", "every step", 101), timed("ours", "reuse", 102)]
        assert compare(rows, {"ours": "free"})[2].efficiency is None

    def test_the_mean_step_of_config_3_has_13_checkpoints_in_50(self):
        (row,) = mean_steps([timed("ours", "checkpoint", 150), timed("ours", "reuse", 100), timed("b", "reuse", 1)])
        assert (row.subject, row.phase) == ("ours", "config_3")
        assert row.timing.median == pytest.approx((13 * 150 + 37 * 100) / 50)
        assert row.timing.low == pytest.approx((13 * 149 + 37 * 99) / 50)


class TestContenders:
    def test_a_twin_has_hooks_of_its_own_and_the_same_weights(self):
        host = UNET.host("cpu", torch.float32)
        other = twin(host)
        other.register_forward_hook(lambda *_: None)
        assert not host._forward_hooks
        assert all(a is b for a, b in zip(host.parameters(), other.parameters(), strict=True))
        assert all(a is b for a, b in zip(host.buffers(), other.buffers(), strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", TINY)
    def test_every_contender_runs_and_half_of_the_tokens_go(self, name, dtype):
        rows = by_subject(race(enter(name, dtype=dtype), "eager", repeats=1, device="cpu"))
        missing = {subject for (subject, _), row in rows.items() if row.timing is None}
        assert missing == ({"tomesd", "ca-tome"} if name == "pixart" else set())
        assert ("block", "reuse") in rows
        assert ("unpatched", "every step") in rows
        if TINY[name].rows is None:
            assert {subject for subject, phase in rows if phase == "config_3"} == OURS | (
                {"ca-tome"} if name != "pixart" else set()
            )

    @pytest.mark.parametrize(("scope", "queries", "keys"), [("attention", 8, 8), ("keys", 16, 8), ("block", 8, 8)])
    @pytest.mark.parametrize("who", ["free {}", "{}", "{}, proportional"])
    def test_free_and_ours_attend_to_as_many_tokens(self, monkeypatch, who, scope, queries, keys):
        seen = []
        attend = nn.functional.scaled_dot_product_attention

        def spy(query, key, value, *args, **kwargs):
            seen.append((query.shape[2], key.shape[2]))
            return attend(query, key, value, *args, **kwargs)

        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        race(some(enter("unet"), who.format(scope)), "eager", repeats=1, device="cpu")
        assert {pair for pair in seen if pair[1] != 3} == {(queries, keys)}  # the others look at the text

    def test_phases_recompute_or_reuse_in_any_order(self):
        with ExitStack() as stack:
            module, (image,), phases, _ = enter("unet")["attention"](stack)
            results = []
            for phase in ("checkpoint", "reuse", "reuse", "checkpoint", "checkpoint", "reuse"):
                phases[phase]()
                image.copy_(torch.randn(image.shape, generator=torch.Generator().manual_seed(len(results) % 2)))
                results.append(module(image).clone())
            # The pairs of image 0 serve image 1, which would choose others.
            assert torch.equal(results[0], results[2])
            assert not torch.equal(results[1], results[3])
            assert torch.equal(results[1], results[5])

    def test_rungs_go_from_a_quarter_of_the_tokens_to_all(self):
        rows = race(enter_rungs(UNET, (0, 0.25, 0.75), "cpu", torch.float32), "eager", repeats=1, device="cpu")
        assert {row.subject for row in rows if row.phase == "reuse"} == {"capacity 0", "capacity 0.25", "capacity 0.75"}
        assert all(row.timing for row in rows)

    def test_ca_tome_gets_the_threshold_that_merges_half(self):
        tokens = torch.randn(2, 64 * 16, 16)
        image = tokens.unflatten(1, (32, 32)).permute(0, 3, 1, 2)
        threshold = contenders.half_threshold(image)
        scores = contenders.match_tokens(tokens, TokenGrid((32, 32))).score
        assert (scores > threshold).sum() / tokens[..., 0].numel() == pytest.approx(0.5, abs=0.01)


def halting(stack):
    """Cannot be compiled in one graph, and shares its code with the other blocks."""
    host = twin(UNET.host("cpu", torch.float32))
    host.transformer_blocks[0].attn1.register_forward_hook(lambda *args: torch._dynamo.graph_break())
    return Contender(host, UNET.inputs("cpu", torch.float32))


class TestRace:
    def test_who_cannot_be_built_gets_a_row_that_says_why(self):
        def fail(stack):
            raise ModuleNotFoundError("not installed: pip install something\nand more")

        rows = by_subject(race(some(enter("unet"), "unpatched") | {"peer": fail}, "eager", repeats=1, device="cpu"))
        assert rows["peer", "-"].note == "ModuleNotFoundError: not installed: pip install something"
        assert rows["unpatched", "every step"].timing is not None

    def test_compiled_graphs_are_counted_for_each(self):
        """And whoever breaks the graph spoils nobody else's."""
        entrants = {"halting": halting} | some(enter("unet"), "attention, proportional", "free block")
        rows = by_subject(race(entrants, "compiled", repeats=2, device="cpu"))
        counts = {key: (row.graphs, row.breaks, row.recompiles) for key, row in rows.items() if key[1] != "config_3"}
        assert counts["attention, proportional", "reuse"] == (2, 0, 0)
        assert counts["free block", "every step"] == (1, 0, 0)
        assert rows["free block", "every step"].note == ""
        assert counts["halting", "every step"][1] > 0
        assert "no full graph" in rows["halting", "every step"].note

    def test_cuda_graphs_are_asked_for(self, monkeypatch):
        """Without a GPU inductor leaves them out; the path is the same."""
        asked, compile_graph = [], compiling.compile_fx

        def spy(graph, inputs, config_patches):
            asked.append(config_patches)
            return compile_graph(graph, inputs, config_patches=config_patches)

        monkeypatch.setattr(compiling, "compile_fx", spy)
        rows = race(some(enter("wan", dtype=torch.bfloat16), "unpatched"), "cuda graphs", repeats=1, device="cpu")
        assert [(row.graphs, row.note) for row in rows] == [(1, "")]
        assert asked == [{"triton.cudagraphs": True}]

    def test_regional_compilation_of_a_whole_network(self):
        network = networks.Network(TINY_UNET, 8, (1,))
        entrants = some(networks.enter_network(network, "cpu", torch.bfloat16), "unpatched", "keys, proportional")
        rows = by_subject(race(entrants, "regional", repeats=1, device="cpu"))
        assert rows["unpatched", "every step"].graphs > 0
        assert rows["keys, proportional", "reuse"].timing is not None
        assert not any(row.note or row.recompiles for row in rows.values())

    def test_regional_compilation_of_nothing_is_refused(self):
        rows = race(some(enter("unet"), "unpatched"), "regional", repeats=1, device="cpu")
        assert "has no block of []" in rows[0].note

    def test_a_network_of_random_weights_predicts_finite_noise(self):
        entrants = networks.enter_network(networks.Network(TINY_UNET, 8, "all"), "cpu", torch.float32)
        rows = race(entrants, "eager", repeats=1, device="cpu")
        assert all(row.timing for row in rows)
        contender = entrants["unpatched"](None)
        assert contender.module(*contender.inputs).isfinite().all()


class TestChecks:
    def test_reuse_gives_the_same_bits_twice(self):
        rows = check_reuse(enter("unet"), "eager", "cpu")
        assert {row["subject"]: row["identical"] for row in rows} == dict.fromkeys([*OURS, "ca-tome"], True)
        assert all(row["host_reads"] is None for row in rows)

    def test_other_bits_are_told(self):
        class Noisy(nn.Module):
            def forward(self, tokens):
                return tokens + torch.randn(tokens.shape)

        phases = {"checkpoint": lambda: None, "reuse": lambda: None}
        (row,) = check_reuse({"noisy": lambda stack: Contender(Noisy(), (torch.ones(4),), phases)}, "eager", "cpu")
        assert row["identical"] is False


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


@pytest.fixture
def small_suite(monkeypatch):
    """Everything that the command measures, small and eager."""
    monkeypatch.setattr(blocks, "CASES", {"sd15-512": UNET, "wan-480p": TINY["wan"]})
    monkeypatch.setattr(networks, "NETWORKS", {"sd15-512": networks.Network(TINY_UNET, 8, (1,))})
    monkeypatch.setattr(jobs, "GRID", TokenGrid((8, 8)))
    monkeypatch.setattr(jobs, "SHAPES", {"flat": (8, 8)})
    monkeypatch.setattr(jobs, "HEAD_SIZES", (8,))
    for name, suite in jobs.SUITES.items():
        small = {"modes": ("eager",), "networks": ("eager",), "cases": ("sd15-512", "wan-480p"), "repeats": 1}
        monkeypatch.setitem(jobs.SUITES, name, suite._replace(**small, models=("sd15-512",)))


def run_command(*arguments, output):
    result = CliRunner().invoke(app, ["bench", *arguments, "--output", str(output), "--device", "cpu"])
    return result, json.loads(output.read_text()) if output.exists() else None


@pytest.mark.parametrize("suite", ["cpu", "gpu"])
def test_the_command_writes_every_row(small_suite, tmp_path, suite):
    result, report = run_command("--suite", suite, output=tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    done = {(table["level"], table["case"]) for table in report["tables"]}
    wanted = {("block", "sd15-512"), ("block", "wan-480p"), ("check", "sd15-512"), ("ladder", "sd15-512")}
    wanted |= {("kernels", "head size 8"), ("operations", "64 tokens of 320 channels, batch 2")}
    wanted |= {("operations", "windowed match, 320 channels")}
    assert done == wanted | ({("model", "sd15-512")} if suite == "gpu" else set())
    assert report["not_begun"] == []
    assert report["suite"] == suite
    assert {"torch", "diffusers", "tomesd", "device", "threads"} <= set(report["machine"])
    assert all(table["rows"] and not table["note"] for table in report["tables"])
    block = next(table for table in report["tables"] if table["level"] == "block")
    (unpatched,) = (row for row in block["rows"] if row["subject"] == "unpatched")
    assert unpatched["speedup"] == 1.0
    assert unpatched["low"] <= unpatched["median"] <= unpatched["high"]
    assert "attention, proportional" in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["out.json"]


def test_levels_and_cases_choose(small_suite, tmp_path):
    _, report = run_command("--level", "block", "--case", "wan-480p", output=tmp_path / "out.json")
    assert [(table["level"], table["case"]) for table in report["tables"]] == [("block", "wan-480p")]


def test_nothing_begins_after_the_time_is_up(small_suite, tmp_path, monkeypatch):
    monkeypatch.setitem(jobs.SUITES, "gpu", jobs.SUITES["gpu"]._replace(seconds=0.0))
    result, report = run_command("--suite", "gpu", "--level", "block", output=tmp_path / "out.json")
    assert report["tables"] == []
    assert report["not_begun"] == ["block, sd15-512, eager", "block, wan-480p, eager"]
    assert "no time left" in result.output


def test_a_measurement_that_fails_loses_no_other(small_suite, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(jobs, "race_kernels", fail)
    result, report = run_command("--level", "kernels", "--level", "operations", output=tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    notes = {table["level"]: table["note"] for table in report["tables"]}
    assert notes == {"kernels": "RuntimeError: no such kernel", "operations": ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "blocks"], "'blocks'"),
        (["--case", "sd3"], "'sd3'"),
        (["--suite", "tpu"], "'tpu'"),
        (["--level", "model", "--case", "wan-480p"], "wan-480p"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(small_suite, tmp_path, arguments, message):
    result, report = run_command(*arguments, output=tmp_path / "out.json")
    assert result.exit_code == 2
    assert message in result.output
    assert report is None


@pytest.mark.parametrize(
    ("cases", "drawn_by"), [((), ["unet"]), (("--case", "dit", "--case", "unet"), ["unet", "dit"])], ids=["unet", "all"]
)
def test_the_pipeline_level_is_drawn_elsewhere(small_suite, tmp_path, monkeypatch, cases, drawn_by):
    drawn = pictures.run_pictures
    few = {"steps": (2,), "images": 1, "size": 16, "only": ["ToDo"]}
    monkeypatch.setattr(pictures, "run_pictures", lambda **given: drawn(**few, **given))
    result, report = run_command("--level", "pipeline", *cases, output=tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    assert [(table["case"], table["note"]) for table in report["tables"]] == [(arch, "") for arch in drawn_by]
    assert all({row["subject"] for row in table["rows"]} == {"unmerged", "ToDo"} for table in report["tables"])
    assert {file.name for file in tmp_path.iterdir()} == {"out.json", *(f"out-{arch}.png" for arch in drawn_by)}


def test_the_gpu_suite_compiles_only_its_headlines():
    setting = jobs.Setting(jobs.SUITES["gpu"], "cpu", 1)
    everybody = set(enter("unet"))
    assert set(jobs.HEADLINES) < everybody
    order = [job.mode for job in jobs.plan_jobs(setting, jobs.SUITES["gpu"].levels, ())]
    assert order == sorted(order, key=jobs.ORDER.index)
    assert {"eager", "compiled", "cuda graphs", "regional"} == set(order)


def test_tables_leave_empty_columns_out():
    table = render_rows("title", [timed("unpatched", "every step", 0.002).to_dict()])
    names = [str(column.header) for column in table.columns]
    assert "error" not in names
    assert "median (q1 - q3)" in names


def test_real_cases_have_the_real_sizes():
    """Without building them: what the tables are called must be what is measured."""
    tokens = {name: torch.Size(case.grid).numel() for name, case in blocks.CASES.items()}
    assert tokens["sd15-512"] == 512 * 512 // 8**2
    assert tokens["sd15-1024"] == 1024 * 1024 // 8**2
    assert tokens["sdxl-1024-top"] == 1024 * 1024 // 16**2
    assert tokens["flux-1024-single"] == 1024 * 1024 // 16**2
    assert tokens["wan-480p"] == 21 * (480 // 16) * (832 // 16)
