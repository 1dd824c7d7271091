"""Calibration: what was earned is made monotone and inverted, and the plan does not depend on who plays it."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dt import curves as curves_module
from dt.asking import calibration as calibration_module
from dt.asking.calibrate import _read_part, calibrate
from dt.asking.calibrated_policy import difference, policy_of, read_calibration
from dt.asking.calibration import Calibration, Curve, Episode, curves_of, from_json, monotone, to_json
from dt.asking.guidance import Request
from dt.asking.plan import Plan, carry_out, make_plan
from dt.config import CalibrationConfig, Config, EvaluationConfig, ModelConfig, PlayConfig
from dt.curves import inverse
from dt.evaluation import evaluate
from dt.learning.run import load_run
from dt.learning.training import train
from dt.policy import ReturnConditionedPolicy
from transformer.config import TrainingConfig
from transformer.errors import ConfigError


@pytest.mark.parametrize("seed", range(5))
def test_monotone_is_the_closest_sequence_that_never_falls(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=7).round(1), rng.integers(1, 5, 7).astype(float)
    fitted = monotone(values, weights)
    assert (np.diff(fitted) >= 0).all()
    # by brute force: the result is constant on runs of neighbours, each at its weighted mean
    best = math.inf
    for cuts in range(2**6):
        ends = [0, *(i + 1 for i in range(6) if cuts >> i & 1), 7]
        tried = np.concatenate(
            [np.full(b - a, np.average(values[a:b], weights=weights[a:b])) for a, b in itertools.pairwise(ends)]
        )
        if (np.diff(tried) >= -1e-12).all():
            best = min(best, float((weights * (values - tried) ** 2).sum()))
    assert float((weights * (values - fitted) ** 2).sum()) == pytest.approx(best)


def test_the_inverse_earns_its_target_and_stays_near_it_on_a_plateau():
    requests, achieved = np.array([0.0, 10, 20, 30, 40, 50]), np.array([5.0, 5, 15, 25, 25, 25])
    assert inverse(requests, achieved, 15.0) == (20.0, 15.0)
    assert inverse(requests, achieved, 20.0) == (25.0, 20.0)
    assert inverse(requests, achieved, 25.0) == (30.0, 25.0)  # the end of the plateau that is nearest to 25
    assert inverse(requests, achieved, 33.0) == (33.0, 25.0)  # more than can be earned: itself, on the plateau
    assert inverse(requests, achieved, 99.0) == (50.0, 25.0)
    assert inverse(requests, achieved, 5.0) == (5.0, 5.0)
    assert inverse(requests, achieved, -7.0) == (0.0, 5.0)
    for target in np.linspace(5, 25, 41):
        request, answer = inverse(requests, achieved, float(target))
        assert np.interp(request, requests, achieved) == pytest.approx(answer) == pytest.approx(target)


def curve(guidance, answers, spread=0.0):
    requests = np.arange(float(len(answers)))
    return Curve(guidance, requests, tuple(np.array([answer - spread, answer + spread]) for answer in answers))


def test_the_curve_that_comes_closest_is_taken_and_the_steadier_of_equals():
    plain, strong = curve(1.0, [4, 5, 6]), curve(3.0, [0, 5, 6])
    both = Calibration({}, (plain, strong), 0)
    assert both.request_for(1.0).guidance == 3.0  # out of the plain curve's reach
    assert both.request_for(5.0) == Request(1.0, 1.0)  # both reach it: the lower guidance
    assert both.answer_to(1.0) == pytest.approx(1.0)
    assert both.highest == 6.0
    noisy = Calibration({}, (curve(1.0, [4, 5, 6], spread=2), strong), 0)
    assert noisy.request_for(5.0).guidance == 3.0


def test_a_calibration_comes_back_from_json():
    before = Calibration({"checkpoint": "abc"}, (curve(1.0, [4, 5, 6], 0.5), curve(2.0, [0, 5, 9])), 120)
    after = from_json(json.loads(json.dumps(to_json(before))))
    assert to_json(after) == to_json(before)
    assert after.request_for(2.2) == before.request_for(2.2)


GOOD = to_json(Calibration({"checkpoint": "abc"}, (curve(1.0, [4, 5, 6]),), 12))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("curves"),
        lambda d: d.update(curves=[]),
        lambda d: d["curves"][0].update(requests=[*range(1001)], returns=[[1.0]] * 1001),
        lambda d: d.update(curves=[d["curves"][0] | {"guidance": 1.0 + i / 8} for i in range(21)]),
        lambda d: d["curves"].append(d["curves"][0] | {"guidance": 1e30}),
        lambda d: d["curves"].insert(0, d["curves"][0] | {"guidance": -5.0}),
        lambda d: d.update(schema=2),
        lambda d: d.update(steps="many"),
        lambda d: d.update(binding=[]),
        lambda d: d["curves"][0].update(guidance=2.0),
        lambda d: d["curves"][0].update(guidance=10**400),
        lambda d: d["curves"][0]["requests"].reverse(),
        lambda d: d["curves"][0]["requests"].pop(),
        lambda d: d["curves"][0]["returns"].__setitem__(0, []),
        lambda d: d["curves"][0]["returns"][0].__setitem__(0, float("nan")),
        lambda d: d["curves"][0]["returns"][0].__setitem__(0, 1e39),
        lambda d: d["curves"][0]["returns"][0].__setitem__(0, None),
        lambda d: d["curves"][0]["returns"][0].__setitem__(0, True),
        lambda d: d.update(curves=[d["curves"][0]] * 101),
        lambda d: d.update(curves=d["curves"] * 2),
        lambda d: d["curves"].__setitem__(0, "a text"),
    ],
)
def test_a_document_that_is_no_calibration_is_refused(change):
    document = json.loads(json.dumps(GOOD))
    change(document)
    with pytest.raises(ValueError, match=r"\w"):
        from_json(document)


def a_plan(steps=4000, guidances=(1.0, 2.0)):
    return Plan(0.0, 100.0, np.linspace(0, 100, 11), guidances, longest=10, steps=steps, scale=100.0)


def answer(request, number):
    """An environment that earns a bent function of the request, and noise that depends on the episode's number."""
    earned = 100 / (1 + math.exp(-(request.return_to_go - 50) / (40 / request.guidance)))
    return earned + np.random.default_rng(number).normal(), 7 + number % 4


def play_all(numbered, finished):
    return {number: answer(request, number) for number, request in numbered.items()}


def test_a_plan_finds_requests_that_earn_their_targets():
    plan = a_plan()
    found = Calibration({}, carry_out(plan, play_all, lambda plan: None), plan.steps_taken)
    for target in (10.0, 40.0, 75.0, 90.0):
        assert answer(found.request_for(target), 0)[0] == pytest.approx(target, abs=4)
    assert plan.steps_taken <= plan.steps
    assert list(plan.episodes) == list(range(plan.num_settled_episodes))


def test_a_plan_that_is_settled_stops_early():
    plan = a_plan(steps=1_000_000)
    carry_out(plan, lambda numbered, finished: {n: (r.return_to_go, 10) for n, r in numbered.items()}, lambda p: None)
    assert plan.steps_taken < 50_000


def test_steps_are_never_more_than_allowed():
    for steps in (260, 400, 777, 1500):
        plan = make_plan([float(p) for p in range(101)], ModelConfig(), longest=10, steps=steps)
        carry_out(plan, lambda numbered, _: {n: (r.return_to_go, 10) for n, r in numbered.items()}, lambda p: None)
        assert 130 <= plan.steps_taken <= steps


def test_too_few_steps_and_returns_that_do_not_vary_are_refused():
    with pytest.raises(ConfigError, match="give --calibration-steps 130 or more, or --no-calibration"):
        make_plan([float(p) for p in range(101)], ModelConfig(), longest=10, steps=129)
    with pytest.raises(ConfigError, match="nothing to calibrate"):
        make_plan([7.0] * 101, ModelConfig(), longest=10, steps=5000)


def test_targets_that_most_episodes_are_near_are_told_apart():
    """One episode in fifty fails badly, so the range of returns says little of the others."""
    percentiles = [-1000.0, -1000.0, *np.linspace(0, 40, 99).tolist()]

    def play(numbered, _):
        """Earns the request below 30 and no more than that, with noise of half the distance between common targets."""
        found = {}
        for number, request in numbered.items():
            noise = np.random.default_rng(number).normal(scale=10)
            found[number] = (min(request.return_to_go, 30.0) + noise, 10)
        return found

    def worst(scale):
        plan = make_plan(percentiles, ModelConfig(), longest=10, steps=100_000)
        plan.scale = scale or plan.scale
        found = Calibration({}, carry_out(plan, play, lambda plan: None), plan.steps_taken)
        targets = np.linspace(2, 28, 14).tolist()
        return max(abs(found.request_for(target).return_to_go - target) for target in targets)

    assert worst(None) < 5
    assert worst(1040.0) > 10  # measured by the whole range


def test_environments_that_fail_are_left_out_and_end_the_plan_all_the_same():
    plan = a_plan()
    curves = carry_out(
        plan,
        lambda numbered, _: {n: None if n % 3 == 0 else answer(r, n) for n, r in numbered.items()},
        lambda plan: None,
    )
    assert sum(len(returns) for curve in curves for returns in curve.returns) == sum(
        episode is not None for episode in plan.episodes.values()
    )
    with pytest.raises(ConfigError, match="nearly every episode failed"):
        carry_out(a_plan(), lambda numbered, _: dict.fromkeys(numbered), lambda plan: None)


@pytest.mark.parametrize("stop_after", [5, 30, 47])
def test_an_interrupted_plan_goes_on_from_the_episodes_that_it_has(stop_after):
    whole = a_plan()
    expected = to_json(Calibration({}, carry_out(whole, play_all, lambda plan: None), whole.steps_taken))
    kept, played = {}, []

    def interrupted(numbered, finished):
        for number, request in numbered.items():
            if len(played) == stop_after:
                raise KeyboardInterrupt
            played.append(number)
            finished(number, answer(request, number))
        return {}

    with pytest.raises(KeyboardInterrupt):
        carry_out(a_plan(), interrupted, lambda plan: kept.update(plan.episodes))
    assert len(kept) == stop_after
    again, more = a_plan(), []
    again.known = kept

    def counted(numbered, finished):
        more.extend(numbered)
        return play_all(numbered, finished)

    curves = carry_out(again, counted, lambda plan: None)
    assert to_json(Calibration({}, curves, again.steps_taken)) == expected
    assert not set(more) & set(kept)


@pytest.fixture(scope="module")
def trained(payday, tmp_path_factory):
    """A run that has learned to earn coins, without calibration."""
    config = Config(
        model=ModelConfig(width=16, num_layers=1, num_heads=2, context_length=3, dropout=0.0),
        training=TrainingConfig(steps=150, learning_rate=3e-3, warmup_steps=10, evaluate_every=0, precision="float32"),
        evaluation=EvaluationConfig(calibration=False),
    )
    return train(payday, config, tmp_path_factory.mktemp("calibration") / "run")


def earned(run, steps=3000, **play):
    return to_json(calibrate(run, PlayConfig(**play), steps))


def test_a_calibrated_run_earns_what_it_is_asked_for(trained):
    assert policy_of(trained).calibration is None
    calibrate(trained, PlayConfig(), 6000)
    policy = policy_of(trained)
    assert policy.calibration is not None
    results = evaluate(policy, trained.environment, [2.0, 5.0, 8.0], episodes=10)
    plain = evaluate(policy_of(trained, EvaluationConfig(calibration=False)), trained.environment, [2.0, 5.0, 8.0])
    error, before = (sum(abs(r.mean_return - r.target_return) for r in each) / 3 for each in (results, plain))
    assert error < 0.8
    assert error <= before + 0.1
    with pytest.raises(Exception, match="give one of them"):
        type(policy)(trained.model, guidance=2.0, calibration=policy.calibration)


def test_a_calibration_does_not_depend_on_the_number_of_environments(trained):
    assert earned(trained, num_envs=1) == earned(trained, num_envs=5) == earned(trained, num_envs=16)


def test_a_calibration_of_something_else_is_not_used_and_that_is_said(trained, capsys):
    calibrate(trained, PlayConfig(), 3000)
    assert policy_of(trained).calibration is not None
    for config, how, word in (
        (EvaluationConfig(temperature=1.0), {}, "temperature"),
        (EvaluationConfig(eval_context_length=2), {}, "context_length"),
        (EvaluationConfig(), {"precision": "bf16"}, "precision"),
        (EvaluationConfig(), {"cached": True}, "cached"),
    ):
        capsys.readouterr()
        assert policy_of(trained, config, **how).calibration is None
        assert f"calibration is not used: it was measured with a different {word} " in capsys.readouterr().err
    assert policy_of(trained, EvaluationConfig(guidance=2.0)).calibration is None
    elsewhere = replace(trained, environment=replace(trained.environment, max_episode_steps=15))
    assert policy_of(elsewhere).calibration is None
    there = read_calibration(trained)
    assert difference(there, {**there.binding, "checkpoint": "another"}) == "checkpoint"


def test_training_on_drops_the_calibration(trained, payday, tmp_path):
    folder = tmp_path / "run"
    config = replace(trained.config, training=replace(trained.config.training, steps=3))
    run = train(payday, config, folder)
    calibrate(run, PlayConfig(), 3000)
    assert (folder / "calibration-last.json").exists()
    train(payday, replace(config, training=replace(config.training, steps=4)), folder, resume=True)
    assert not (folder / "calibration-last.json").exists()


def test_training_calibrates_unless_told_not_to(payday, tmp_path):
    config = Config(
        model=ModelConfig(width=8, num_layers=1, num_heads=2, context_length=2),
        training=TrainingConfig(steps=2, evaluate_every=0),
        calibration=CalibrationConfig(calibration_steps=1000),
    )
    run = train(payday, config, tmp_path / "run")
    written = (tmp_path / "run" / "calibration-last.json").read_bytes()
    assert policy_of(run).calibration is not None
    train(payday, config, tmp_path / "run", resume=True)  # nothing is left to train, and it is calibrated already
    assert (tmp_path / "run" / "calibration-last.json").read_bytes() == written
    assert not list((tmp_path / "run").glob("*.part.json"))


def test_a_damaged_calibration_is_named(trained):
    path = trained.folder / "calibration-last.json"
    path.write_text("[")
    with pytest.raises(Exception, match=r"calibration-last.json"):
        policy_of(load_run(trained.folder))
    path.write_text('{"schema": 1}')
    with pytest.raises(ConfigError, match="dt calibrate writes it again"):
        policy_of(load_run(trained.folder))
    path.unlink()


def never_monotone(patch):
    patch.setattr(calibration_module, "monotone", lambda values, weights: values)


def naive_inverse(patch):
    def far(requests, achieved, target):
        answer = float(np.clip(target, achieved[0], achieved[-1]))
        return float(requests[np.searchsorted(achieved, answer, side="right") - 1]), answer

    patch.setattr(curves_module, "inverse", far)


def test_a_curve_ends_at_its_peak():
    """Beyond the data a model breaks down, which must not pull down what it earns at its best."""
    broken = Curve(1.0, np.arange(6.0), tuple(np.full(4, mean) for mean in (0.0, 10.0, 20.0, 30.0, 2.0, 1.0)))
    assert broken.best_request == 3.0
    assert broken.achieved.tolist() == [0, 10, 20, 30]
    whole = Calibration({}, (broken,), 0)
    assert whole.highest == 30
    assert whole.request_for(19.0).return_to_go == pytest.approx(1.9)
    assert whole.request_for(500.0).return_to_go == 3.0  # not where it breaks down


def test_a_plan_looks_for_the_top_where_a_model_breaks_down():
    def broken(numbered, _):
        """Earns what is requested up to 70, and next to nothing beyond."""
        outcomes = {}
        for number, request in numbered.items():
            noise = np.random.default_rng(number).normal(scale=3)
            earned = request.return_to_go if request.return_to_go <= 70 else 3.0
            outcomes[number] = (earned + noise, 8)
        return outcomes

    plan = a_plan()
    found = Calibration({}, carry_out(plan, broken, lambda plan: None), plan.steps_taken)
    assert found.highest == pytest.approx(60, abs=3)  # 60 is the highest of the first requests below the breakdown
    assert 55 <= found.request_for(100.0).return_to_go <= 70
    assert found.request_for(40.0).return_to_go == pytest.approx(40, abs=5)


def test_a_request_at_the_edge_of_a_jump_is_avoided():
    """At 30.1 a policy begins to stay upright; the one episode there that did so is no promise."""
    returns = [[0.0, 0.0], [10.0, 10.0], [20.0, 20.0], [5.0, 5.0, 5.0], [5.0, 35.0], [38.9], [39.0, 39.0]]
    edge = Curve(1.0, np.array([0.0, 10, 20, 30, 30.1, 30.2, 40]), tuple(map(np.array, returns)))
    assert inverse(edge.requests, edge.achieved, 38.5)[0] == pytest.approx(30.2, abs=0.1)
    assert edge.ask(38.5)[0] == Request(40.0, 1.0)
    assert edge.ask(5.0)[0] == Request(5.0, 1.0)  # a straight line where nothing jumps


def test_curves_that_fall_are_noticed(monkeypatch):
    falling = curve(1.0, [4, 6, 5, 8])
    assert (np.diff(falling.achieved) >= 0).all()
    never_monotone(monkeypatch)
    assert (np.diff(curve(1.0, [4, 6, 5, 8]).achieved) < 0).any()


def test_an_inverse_that_runs_away_on_a_plateau_is_noticed(monkeypatch):
    flat = curve(1.0, [0, 3, 3, 3, 3])
    assert flat.ask(3.0)[0] == Request(3.0, 1.0)
    naive_inverse(monkeypatch)
    assert flat.ask(3.0)[0] == Request(4.0, 1.0)


def test_token_models_are_calibrated_by_the_request_only():
    plan = make_plan([float(p) for p in range(101)], ModelConfig(conditioning="token"), longest=10, steps=10_000)
    assert plan.guidances == (1.0,)
    episodes = [Episode(Request(float(r), 1.0), r * 2.0, 3) for r in range(4)]
    (only,) = curves_of(episodes)
    assert only.achieved.tolist() == [0, 2, 4, 6]


def test_training_is_not_lost_where_it_cannot_be_calibrated(payday, tmp_path, capsys):
    """Long episodes may need more steps than a calibration may take, which is known only at the end."""
    config = Config(
        model=ModelConfig(width=8, num_layers=1, num_heads=2, context_length=2),
        training=TrainingConfig(steps=2, evaluate_every=0),
        calibration=CalibrationConfig(calibration_steps=100),
    )
    run = train(payday, config, tmp_path / "run")
    assert "not calibrated: calibration_steps 100" in capsys.readouterr().err
    assert run.policy().calibration is None


def test_targets_with_the_same_request_share_their_episodes(trained, monkeypatch):
    """A plateau answers several targets with one request; the same seeds would give the same episodes again."""
    flat = Calibration({}, (curve(1.0, [4, 5, 6]),), 0)
    policy = ReturnConditionedPolicy(trained.model, calibration=flat)
    begun = []
    begin = policy.begin
    monkeypatch.setattr(policy, "begin", lambda env, request, seed: begun.append(request) or begin(env, request, seed))
    together = evaluate(policy, trained.environment, [5.0, 7.0, 9.0], episodes=3)
    assert len(begun) == 6
    assert [result.target_return for result in together] == [5.0, 7.0, 9.0]
    apart = [evaluate(policy, trained.environment, [target], episodes=3)[0] for target in (5.0, 7.0, 9.0)]
    assert together == apart


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, None, "nine"])
def test_a_part_with_other_than_numbers_is_begun_again(tmp_path, number):
    part = tmp_path / "calibration-last.part.json"
    part.write_text(json.dumps({"binding": {}, "episodes": [[0, 5.0, 1.0, 4.0, 9]]}))
    assert _read_part(part, {}) == [[0, 5.0, 1.0, 4.0, 9]]
    part.write_text(json.dumps({"binding": {}, "episodes": [[0, 5.0, 1.0, 4.0, number]]}))
    assert _read_part(part, {}) == []
