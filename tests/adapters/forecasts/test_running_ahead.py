"""Devices that compute while the host launches what comes next: what the host has no time for gains nothing."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from catome_adapters import RECIPES, MergeRecipe, attach, find_sites
from catome_adapters.prediction import rates
from catome_adapters.prediction.gpus import RelativeSpeed
from catome_adapters.prediction.network import network_seconds, part_of_network
from catome_adapters.prediction.rates import DEVICE_RATES, DeviceRates, Work
from catome_adapters.prediction.seconds import site_seconds
from catome_adapters.prediction.shares import assumed_share
from catome_adapters.prediction.worth import Worth
from catome_adapters.sites.weights import SiteWeights, count_operations, count_weights
from catome_core import AdaptiveMerge, CheckpointSchedule, Lattice, PlanKey, TokenGrid
from zoo.noise import noise
from zoo.unets import predict as run
from zoo.unets import sd_unet, shallow_unet

pytestmark = pytest.mark.usefixtures("without_gradients", "fresh_compiler")

SLOW_HOST = DeviceRates(1e6, 1e6, 1e12, launch=1.0, hooks=1.0, runs_ahead=True)
"""Its device takes seconds for a block of a tiny UNet, and its host a minute; when compiled, far less than that."""
LATTICE = replace(RECIPES["balanced"], policy=Lattice())
ALIKE = MergeRecipe(AdaptiveMerge(-1.0, spare="fill"), CheckpointSchedule((0, 3), of=6), levels="auto")


@pytest.fixture(autouse=True)
def merging_is_free() -> None:
    """Overrides the fixture of conftest.py."""


@pytest.fixture
def on(monkeypatch):
    return lambda machine: monkeypatch.setitem(rates.DEVICE_RATES, "cpu", machine)


def compiled(machine: DeviceRates) -> DeviceRates:
    return replace(machine, launch=machine.launch / 1e6, hooks=0.0)


def test_an_accelerators_host_runs_ahead_and_that_of_a_cpu_is_the_device():
    work = Work(3.0, 1.0), Work(1.0, 2.0)
    assert {name: one.elapsed(*work) for name, one in DEVICE_RATES.items()} == {"cpu": 7.0, "cuda": 4.0}
    assert DEVICE_RATES["cpu"].compiled == DEVICE_RATES["cpu"]
    assert DEVICE_RATES["cuda"].compiled.launch < DEVICE_RATES["cuda"].launch
    assert DEVICE_RATES["cuda"].compiled.hooks == 0


def test_a_gpu_is_slower_in_single_precision():
    half, cpu = DEVICE_RATES["cuda"], DEVICE_RATES["cpu"]
    single = half.in_precision(4)
    assert single.attention_flops == pytest.approx(0.06 * half.attention_flops)
    assert (single.bandwidth, single.launch) == (half.bandwidth, half.launch)
    assert single.in_precision(4) == single and half.in_precision(2) is half and cpu.in_precision(4) is cpu


@pytest.mark.parametrize(("stride", "measured"), [((1, 2), 1.1), (2, 1.34), ((2, 4), 1.43), (4, 1.48)])
def test_gains_in_single_precision_are_near_those_that_were_measured(stride, measured):
    """Of the DiT with 4,096 tokens on an H100: eight pictures in a call, 70 % of the steps, tiles that gather."""
    recipe, grid = MergeRecipe(Lattice(near=1), scope="keys", stride=stride), TokenGrid((64, 64), stride)
    weights = SiteWeights(256, 256, 262144, 524288, 0, itemsize=4, takes_keys=True, operations=51)
    gathering = replace(DEVICE_RATES["cuda"], joining=None)
    seconds = site_seconds(weights, grid, 16, recipe, gathering, assumed_share(grid, recipe))
    assert 1 / (1 - 0.7 * seconds.gain(0.0) / seconds.block) == pytest.approx(measured, rel=0.15)


def test_a_block_gains_only_what_its_device_takes_longer_than_its_host():
    weights, grid = count_weights(find_sites(sd_unet())[0]), TokenGrid((16, 16))

    def seconds(launch: float):
        return site_seconds(weights, grid, 2, LATTICE, replace(SLOW_HOST, launch=launch, hooks=0.0), 0.75)

    free = seconds(0.0)
    assert 0 < free.saved < free.block and free.gain(0.0) > 0
    half = seconds((free.block - free.saved / 2) / weights.operations)
    assert half.saved == pytest.approx(free.saved / 2) and half.gain(0.0) < half.saved
    bound = seconds(2 * free.block / weights.operations)
    assert bound.block == pytest.approx(2 * free.block) and bound.saved == 0 > bound.gain(0.0)


def test_a_network_that_keeps_its_host_busy_gains_in_none_of_its_blocks():
    """However long this one takes the device: the host is behind before and after it."""
    network = sd_unet(block_out_channels=(8, 16, 16))
    sites = find_sites(network)
    weights = count_weights(sites[0])
    key = PlanKey(2, TokenGrid((16, 16)), torch.device("cpu"), torch.float32)
    device = network_seconds([network], sites, LATTICE, replace(SLOW_HOST, launch=0.0))
    busy = replace(SLOW_HOST, launch=1.1 * device / count_operations(network), hooks=0.0)
    part = part_of_network([network], sites, sites[:1], LATTICE, busy)
    alone = site_seconds(weights, key.grid, 2, LATTICE, busy, 0.75)
    assert alone.gain(0.0) > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rates.DEVICE_RATES, "cpu", busy)
        assert not Worth(LATTICE, part, True).at_size(weights, key, None)
        assert Worth(LATTICE, part._replace(operations={}), True).at_size(weights, key, None)


@pytest.mark.thorough
def test_eager_code_is_left_whole_and_compiled_code_merges(on, monkeypatch):
    on(SLOW_HOST)
    monkeypatch.setattr(DeviceRates, "compiled", property(compiled))
    network = shallow_unet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = attach(network, LATTICE)
    for step in range(2):
        session.begin_step(step, 2)
        run(network, noise(2, 4, 16, 16))
    assert session.summary().merged_fraction == 0
    assert "too small to gain" in session.report()
    with pytest.warns(UserWarning, match=r"16 x 16 tokens .* without compilation.*compile the blocks"):
        session.begin_step(0, 2)
    step = torch.compile(network, backend="eager")
    for index in range(2):
        session.begin_step(index, 2)
        run(step, noise(2, 4, 16, 16))
    assert session.summary().merged_fraction == pytest.approx((0.5 + 0.75) / 2)
    assert "too small to gain" not in session.report()
    session.detach()


@pytest.mark.thorough
def test_what_compiled_code_found_is_judged_as_compiled_code(on, monkeypatch):
    """Trials are decided between steps, in eager code."""
    on(SLOW_HOST)
    monkeypatch.setattr(DeviceRates, "compiled", property(compiled))
    network = shallow_unet()
    with attach(network, ALIKE) as session:
        step = torch.compile(network, backend="eager")
        for index in range(6):
            session.begin_step(index, 6)
            run(step, noise(2, 4, 16, 16, seed=index))
        summary = session.summary()
    assert summary.checkpoints == (0, 3) and not any(row.left_unmerged for row in summary.rows)
    assert summary.speedup > 1


GPUS = {
    "H100": ((9, 0, 132, 1_830_000, 2_619_000, 5120), 989e12, 3.35e12),
    "A100": ((8, 0, 108, 1_410_000, 1_593_000, 5120), 312e12, 2.04e12),
    "V100": ((7, 0, 80, 1_530_000, 877_000, 4096), 125e12, 0.9e12),
    "RTX 3090": ((8, 6, 82, 1_695_000, 9_751_000, 384), 71e12, 0.936e12),
    "RTX 5090": ((12, 0, 170, 2_407_000, 14_001_000, 512), 209e12, 1.79e12),
}
"""Properties, and what the data sheet says of half precision and of memory."""
FIELDS = ("major", "minor", "multi_processor_count", "clock_rate", "memory_clock_rate", "memory_bus_width")


@pytest.mark.parametrize(("properties", "flops", "bandwidth"), GPUS.values(), ids=GPUS)
def test_a_gpu_is_as_fast_as_its_data_sheet_says(properties, flops, bandwidth, monkeypatch):
    given = SimpleNamespace(**dict(zip(FIELDS, properties, strict=True)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: given)
    monkeypatch.setattr(rates, "SPEEDS", {})
    mine, measured = rates.rates_for("cuda:1"), DEVICE_RATES["cuda"]
    assert mine.flops / measured.flops == pytest.approx(flops / 989e12, rel=0.05)
    assert mine.tile_flops / measured.tile_flops == pytest.approx(mine.attention_flops / measured.attention_flops)
    assert mine.bandwidth / measured.bandwidth == pytest.approx(bandwidth / 3.35e12, rel=0.05)
    assert (mine.launch, mine.hooks, mine.runs_ahead) == (measured.launch, measured.hooks, True)
    assert set(rates.SPEEDS) == {1}


def test_compiled_code_takes_the_speed_that_eager_code_has_asked_for(monkeypatch):
    def refuse(properties: object):
        raise AssertionError("asked while compiling")

    def scale(x):
        return x * (rates.rates_for(torch.device("cuda", 3), compiled=True).flops / 1e14)

    monkeypatch.setattr(rates, "relative_speed", refuse)
    monkeypatch.setattr(rates, "SPEEDS", {3: RelativeSpeed(0.5, 0.25)})
    one = torch.compile(scale, backend="eager", fullgraph=True)(torch.ones(1))
    assert one.item() == pytest.approx(DEVICE_RATES["cuda"].flops / 2e14)


def test_a_gpu_of_which_nothing_is_known_counts_as_the_measured_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(rates, "SPEEDS", {})
    for properties in (SimpleNamespace(major=8, minor=6, multi_processor_count=28), SimpleNamespace(major=99, minor=0)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, given=properties: given)
        assert rates.rates_for("cuda") == DEVICE_RATES["cuda"]
        rates.SPEEDS.clear()
    assert rates.rates_for("xpu") == DEVICE_RATES["cuda"]
