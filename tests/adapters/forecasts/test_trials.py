"""What a run does about sites of whose tokens too few merge: known only after a checkpoint."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from catome_adapters import MergeRecipe, attach, find_sites
from catome_adapters.prediction import rates, seconds
from catome_adapters.prediction.network import NetworkPart, network_seconds
from catome_adapters.prediction.rates import DeviceRates, rates_for
from catome_adapters.prediction.seconds import SiteSeconds
from catome_adapters.prediction.worth import FIRST_TRIAL_ODDS, FIRST_TRIAL_SHARE, MIN_GAIN, TRIAL_SHARE, Trial, Worth
from catome_adapters.sites.weights import TEXT_TOKENS, count_weights
from catome_core import AdaptiveMerge, CheckpointSchedule, PlanKey, TokenGrid
from zoo.noise import noise
from zoo.unets import TEXT_WIDTH, predict, sd_unet

ALIKE, UNLIKE = -1.0, 0.999
EVERY = CheckpointSchedule.every(1, 50)
UNET = sd_unet()
KEY = PlanKey(2, TokenGrid((16, 16)), torch.device("cpu"), torch.float32)
CHEAP = DeviceRates(flops=1e6, attention_flops=1e6, bandwidth=1e12, launch=3e-3)


@pytest.fixture(autouse=True)
def merging_is_free(monkeypatch) -> None:
    """Overrides the fixture of conftest.py: here matching has a cost, which merging half of the tokens brings back."""
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", CHEAP)


def recipe(threshold: float, levels="top", schedule=EVERY, capacity=None) -> MergeRecipe:
    return MergeRecipe(AdaptiveMerge(threshold, capacity, spare="fill", radius=0), schedule, levels=levels)


def steps(network, session, count: int = 6) -> list[torch.Tensor]:
    outputs = []
    for step in range(count):
        session.begin_step(step, count)
        outputs.append(predict(network, noise(2, 4, 16, 16, seed=step)))
    return outputs


@torch.no_grad()
def test_what_merges_too_little_is_left_whole_after_the_first_checkpoint():
    network = sd_unet()
    plain = [predict(network, noise(2, 4, 16, 16, seed=step)) for step in range(6)]
    session = attach(network, recipe(UNLIKE))
    for step, whole in enumerate(steps(network, session)):
        assert torch.equal(whole, plain[step])
    rows = session.summary().rows
    assert session.summary().checkpoints == (0,)
    assert {row.step for row in rows if row.left_unmerged} == {1, 2, 3, 4, 5}
    assert "left unmerged" in str(session.summary()) and "3 of 3 sites, 5 of 6 steps" in str(session.summary())
    with pytest.warns(UserWarning, match=r"nothing merged .* more similar than threshold=0.999"):
        session.detach()


@torch.no_grad()
def test_what_merges_enough_goes_on():
    network = sd_unet()
    with attach(network, recipe(ALIKE)) as session:
        steps(network, session)
        summary = session.summary()
    assert summary.checkpoints == tuple(range(6)) and not any(row.left_unmerged for row in summary.rows)
    assert {row.slots for row in summary.rows if row.step} == {64}


@torch.no_grad()
def test_levels_by_number_are_matched_at_every_checkpoint_however_little_merges():
    network = sd_unet()
    with attach(network, recipe(UNLIKE, levels=(1,))) as session:
        steps(network, session)
        assert session.summary().checkpoints == tuple(range(6))
        # Said once, at the end of the run.
        with pytest.warns(UserWarning, match="nothing merged"):
            session.begin_step(0, 6)


@pytest.mark.filterwarnings("ignore:nothing merged")
@torch.no_grad()
@pytest.mark.parametrize("threshold", [0.6, UNLIKE])
def test_next_run_is_tried_anew_and_equal_to_the_first(threshold):
    network = sd_unet()
    with attach(network, recipe(threshold, schedule=CheckpointSchedule((0, 3), of=6))) as session:
        first, rows = steps(network, session), session.summary().rows
        assert rows[0].checkpoint
        assert all(torch.equal(*pair) for pair in zip(first, steps(network, session), strict=True))
        assert session.summary().rows == rows


@pytest.mark.filterwarnings("ignore:nothing merged")
@torch.no_grad()
def test_each_run_decides_for_its_own_length(monkeypatch):
    """Half of a run of two steps matches, and a fiftieth of one of fifty."""
    network, once = sd_unet(), recipe(ALIKE, schedule=CheckpointSchedule((0,), of=50), capacity=0.25)
    saved = Worth(once, NetworkPart(), True).seconds(count_weights(find_sites(network)[0]), KEY, 0.5, False).saved
    monkeypatch.setattr(seconds, "_match_work", lambda *given: rates.Work(4 * saved, 0.0))
    with attach(network, once) as session:
        for total, merged in ((2, 0.0), (50, 0.5), (2, 0.0)):
            session.begin_step(0, total)
            predict(network, noise(2, 4, 16, 16))
            assert session.summary().merged_fraction == merged


class GivenSeconds(Worth):
    """Costs that a test chooses."""

    def __init__(self, match: float, block: float) -> None:
        self.part, self.given = NetworkPart(0.5), SiteSeconds(block, 0.0, 0.0, match)

    def at_capacity(self, *given) -> bool:
        return False

    def seconds(self, *given) -> SiteSeconds:
        return self.given


@given(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.sets(st.integers(1, 49)))
def test_trials_after_the_first_stay_below_their_share_of_the_time(match, block, checkpoints):
    trial, trials = Trial(GivenSeconds(match, block), None), []
    for step in range(50):
        if not trial.leaves_unmerged(step, step == 0 or step in checkpoints):
            trial.decide(None, None, 0.0, False)
            trials.append(step)
            assert len(trials) == 1 or len(trials) * match <= TRIAL_SHARE * (step + 1) * block / 0.5
    cheap = match * 50 <= TRIAL_SHARE * block / 0.5
    assert not cheap or trials == sorted({0, *checkpoints})


def test_trials_that_cost_next_to_nothing_are_made_at_every_checkpoint():
    trial = Trial(GivenSeconds(1e-4, 1.0), None)
    trial.decide(None, None, 0.0, False)
    assert not trial.leaves_unmerged(1, True) and trial.leaves_unmerged(1, False)


class Given(Worth):
    """A recipe at work on sites whose seconds a test chooses."""

    def __init__(self, given: MergeRecipe, one: SiteSeconds) -> None:
        super().__init__(given, NetworkPart(0.5), True)
        self.given = one

    def seconds(self, *given) -> SiteSeconds:
        return self.given


@given(st.floats(1e-3, 1.0), st.floats(1e-3, 1.0), st.integers(2, 60), st.sampled_from([None, 0.25]))
def test_a_run_is_long_enough_for_what_its_first_checkpoint_may_lose(match, saved, total, capacity):
    """With a fixed capacity there is nothing to find out."""
    schedule, weights = CheckpointSchedule((0, 10), of=50), count_weights(find_sites(UNET)[0])
    worth = Given(recipe(ALIKE, schedule=schedule, capacity=capacity), SiteSeconds(1.0, saved, 0.0, match))
    worth.begin_run(total)
    gain = saved - match * len(schedule.rescaled(total).steps) / total
    little, odds = match <= FIRST_TRIAL_SHARE * total * 2.0, FIRST_TRIAL_ODDS * match <= (total - 1) * gain
    assert worth.pays_off(weights, KEY, False) == (gain > 0 and (capacity is not None or little or odds))
    worth.begin_run(None)
    # A run of usual length.
    assert worth.pays_off(weights, KEY, False) == (saved - match * 2 / 50 > 0)


def test_auto_asks_for_a_share_of_the_network_and_the_top_for_any_gain(monkeypatch):
    """On machines whose launches take nothing, up to more than merging saves."""
    weights, shares = count_weights(find_sites(UNET)[0]), []
    half = MergeRecipe(AdaptiveMerge(-1, 0.25, spare="fill"), CheckpointSchedule((0,), of=50))

    def worth(launch: float, levels) -> Worth:
        monkeypatch.setitem(rates.DEVICE_RATES, "cpu", replace(CHEAP, bandwidth=1e15, launch=launch))
        return Worth(replace(half, levels=levels), NetworkPart(0.5), True)

    free, dear = (worth(launch, "top").seconds(weights, KEY, 0.5, False).gain(1 / 50) for launch in (0.0, 1.0))
    for part in range(1, 50):
        launch = part / 40 * free / (free - dear)
        one = worth(launch, "top").seconds(weights, KEY, 0.5, False)
        shares.append(one.gain(1 / 50) / one.block * 0.5)
        assert worth(launch, "auto").at_size(weights, KEY, None) == (shares[-1] >= MIN_GAIN)
        assert worth(launch, "top").at_size(weights, KEY, None) == (shares[-1] > 0)
        assert all(worth(launch, levels).at_size(weights, KEY, None) for levels in ("all", (1,)))
    assert min(shares) < 0 < MIN_GAIN < max(shares) and any(0 < share < MIN_GAIN for share in shares)


def test_time_of_a_network_is_that_of_its_arithmetic(monkeypatch):
    monkeypatch.setitem(rates.DEVICE_RATES, "cpu", DeviceRates(1.0, 1.0, float("inf"), 0.0))
    network = sd_unet(block_out_channels=(32, 64, 64)).to("meta")
    sample, text = torch.empty(2, 4, 16, 16, device="meta"), torch.empty(2, TEXT_TOKENS, TEXT_WIDTH, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sample, torch.zeros(2, device="meta"), text)
    predicted = network_seconds([network], find_sites(network), recipe(ALIKE), rates_for("cpu"))
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.1)
