"""The table of estimators and the settings it stands behind."""

from __future__ import annotations

import pytest

from covary.errors import CovaryError
from covary.features.observables import OBSERVABLES
from covary.features.sampled.extractor import plan_of
from covary.features.sampled.samplers import PRESETS, sampler_named
from covary.scoring.couplings import COUPLINGS
from covary.scoring.scores import SCORES
from covary.settings import (
    ESTIMATORS,
    EXTRACTORS,
    GradientSettings,
    SampledSettings,
    Settings,
    TextSettings,
    estimator_named,
    settings_classes,
)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_defaults_name_what_the_tables_hold_and_settings_take_them(name):
    estimator, settings = estimator_named(name), Settings.checked(estimator=name)
    assert estimator.observable in OBSERVABLES
    assert estimator.score in SCORES
    assert estimator.coupling in COUPLINGS
    found = (settings.observable, settings.score, settings.coupling)
    assert found == (estimator.observable, estimator.score, estimator.coupling)
    assert settings.sampled == (estimator.preset is not None)
    if estimator.preset is not None:
        assert estimator.needs_sampling == sampler_named(PRESETS[estimator.preset].sampler).needs_gradient
    assert Settings(**settings.model_dump()) == settings
    own = Settings.checked(estimator=name, score="mean", coupling="covariance", observable=None)
    assert (own.score, own.coupling, own.observable) == ("mean", "covariance", estimator.observable)


def test_paper_is_the_published_chain_read_at_every_tenth_draw():
    plan = plan_of(Settings.checked(estimator="paper"))
    published = PRESETS["paper"]
    assert plan.resolved() == published.resolved()
    assert (plan.steps, plan.burn_in, plan.chains, plan.minibatch, plan.batchnorm) == (2000, 250, 1, 256, "drift")
    assert plan.draws == 175
    assert plan_of(Settings.checked(estimator="paper", thinning=1, draws=1750)) == published


def test_every_sampling_setting_reaches_the_plan():
    plan = plan_of(
        Settings.checked(
            estimator="sgld", draws=7, chains=3, burn_in=5, thinning=2, batchnorm="drift", seed=4,
            constants={"step_size": 1e-6, "nbeta": 0.0},
        )
    )  # fmt: skip
    assert (plan.draws, plan.chains, plan.burn_in, plan.thinning, plan.batchnorm, plan.seed) == (7, 3, 5, 2, "drift", 4)
    assert (plan.resolved().step_size, plan.resolved().nbeta) == (1e-6, 0.0)
    assert plan_of(Settings.checked(estimator="gaussian", sigma=0.02)).resolved().sigma == 0.02
    with pytest.raises(CovaryError, match="unknown setting of rmsprop_sgld 'sigma'"):
        plan_of(Settings.checked(estimator="paper", sigma=0.02))
    with pytest.raises(CovaryError, match="takes no draws"):
        plan_of(Settings())


def test_layerwise_draws_are_read_by_the_profile():
    assert Settings.checked(estimator="gaussian", layerwise=True).score == "profile"
    assert Settings.checked(estimator="gaussian", layerwise=True, score="mean").score == "mean"


ARGUMENTS = {
    "draws": 9, "chains": 2, "burn_in": 1, "thinning": 3, "sigma": 0.1, "batchnorm": "drift",
    "constants": {"nbeta": 0.0}, "layerwise": True, "half_draws": True, "draws_at_once": 2, "compiled": True,
    "stop_when_stable": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_would_do_nothing_is_refused(name):
    with pytest.raises(CovaryError, match=f"{name} says nothing to the estimator first-order; expected gaussian"):
        Settings.checked(**{name: ARGUMENTS[name]})
    Settings.checked(estimator="gaussian", **{name: ARGUMENTS[name]})


def test_contradictions_are_refused():
    for values, words in (
        ({"estimator": "peper"}, "unknown estimator 'peper'; expected one of: first-order, gaussian, paper, sgld"),
        ({"draws": 3}, "draws is 3; expected a number greater than or equal to 4"),
        ({"batchnorm": "off"}, "batchnorm is 'off'; expected 'drift' or 'frozen'"),
        ({"compiled": True, "draws_at_once": 4}, "compiled passes take one draw at a time"),
        ({"preconditioner": "diagonal"}, "preconditioner says nothing to the estimator gaussian; expected first-order"),
        ({"stop_when_stable": 1.5}, "stop_when_stable is 1.5"),
    ):
        with pytest.raises(CovaryError) as refused:
            Settings.checked(**{"estimator": "gaussian", **values})
        assert words in str(refused.value)


def test_every_sampled_setting_is_tried():
    assert {*ARGUMENTS, "kind", "estimator", "output", "channels_last"} == set(SampledSettings.model_fields)


OLD = {
    "observable": "margin", "space": "all", "score": "combined", "coupling": "cosine", "fpr": 0.01, "per_class": False,
    "allow_missing_classes": False, "metric": "identity", "damping": 0.1, "half_rows": False, "seed": 0, "output": None,
    "device": "cpu", "batch_size": 64, "amp": None, "channels_last": False, "engine": "hooks",
    "estimator": "first-order", "draws": None, "chains": 1, "burn_in": None, "thinning": None, "sigma": None,
    "batchnorm": None, "constants": {}, "layerwise": False, "half_draws": False, "draws_at_once": 1, "compiled": False,
    "stop_when_stable": None,
}  # fmt: skip


def test_settings_saved_before_the_union_are_read():
    assert Settings(**OLD).extractor == GradientSettings()
    kept = Settings(**{**OLD, "metric": "diagonal", "damping": 0.3}).extractor
    assert kept == GradientSettings(preconditioner="diagonal", damping=0.3)
    sampled = Settings(**{**OLD, "estimator": "sgld", "draws": 9, "score": "class-max", "channels_last": True})
    assert sampled.extractor == SampledSettings(estimator="sgld", draws=9, channels_last=True)


def test_a_setting_is_given_to_the_extractor_by_name_or_with_it():
    by_name = Settings.checked(estimator="gaussian", draws=20)
    assert by_name == Settings.checked(extractor=SampledSettings(estimator="gaussian", draws=20))
    assert by_name == Settings.checked(extractor={"kind": "sampled", "estimator": "gaussian", "draws": 20})
    texts = Settings.checked(extractor="text", pooling="sum")
    assert texts.extractor == TextSettings(pooling="sum")
    assert (texts.score, texts.observable) == ("combined", "margin")


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_what_no_extractor_of_the_kind_reads_cannot_be_written_down(kind):
    others = {name for own in settings_classes().values() for name in own.model_fields} - set(
        settings_classes()[kind].model_fields
    )
    values = {**ARGUMENTS, "estimator": "sgld", "pooling": "sum", "groups": "none", "max_new_tokens": 3,
              "max_length": 9,
              "dtype": "bfloat16", "adapter": "fresh:2", "judge": "prompt", "at_equal_length": False,
              "side": "left", "preconditioner": "diagonal", "damping": 0.4,
              "engine": "exact", "evidence": "thorough", "output": "y", "channels_last": True}  # fmt: skip
    for name in others - {"estimator"}:
        with pytest.raises(CovaryError, match=f"{name} says nothing to"):
            Settings.checked(extractor=kind, **{name: values[name]})
    with pytest.raises(CovaryError, match="unknown setting 'anything'"):
        Settings.checked(extractor=kind, anything=1)
