"""Settings of the adapter: what is refused, and how a request opts in."""

import pytest

from step_infer.client.trace import Sampling
from step_infer.errors import InputError
from step_infer.settings import AdapterConfig, RequestOptions, StepSettings


def test_settings_survive_the_way_through_additional_config():
    settings = StepSettings(scorer="s.safetensors", min_keep=2, allow_mismatch=("tokenizer_hash",))
    config = AdapterConfig({"step": settings.to_dict()})
    assert StepSettings.from_additional_config(config) == settings
    assert StepSettings.from_additional_config({"step": settings.to_dict()}) == settings


def test_the_compile_cache_key_does_not_depend_on_the_scorer():
    first, second = AdapterConfig({"step": {"scorer": "a"}}), AdapterConfig({})
    assert first.compute_hash() == second.compute_hash()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scorer": "x", "min_keep": 0}, "min_keep a whole number >= 1, found 0"),
        ({"scorer": "x", "min_keep": True}, "min_keep"),
        ({"scorer": "x", "min_steps": 1.5}, "min_steps"),
        ({"scorer": "x", "resume_free": 2}, "resume_free"),
        ({"scorer": "x", "aggregator": "median"}, "mean, last, min, ema"),
        ({"scorer": "x", "scorr": 1}, "found 'scorr'"),
        ({}, "Expected step setting scorer"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(InputError, match=message):
        StepSettings.from_additional_config({"step": values})


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, {"step": "x"}])
def test_missing_settings_say_what_to_give(config):
    with pytest.raises(InputError, match="additional_config="):
        StepSettings.from_additional_config(config)


def test_a_request_opts_in_by_object_json_text_or_group_name():
    assert RequestOptions.from_extra_args(None) is None
    assert RequestOptions.from_extra_args({"other": 1}) is None
    expected = RequestOptions("q1", min_keep=2)
    assert RequestOptions.from_extra_args({"step": {"group": "q1", "min_keep": 2}}) == expected
    as_text = '{"group": "q1", "min_keep": 2}'
    assert RequestOptions.from_extra_args({"step": as_text}) == expected
    assert RequestOptions.from_extra_args({"step": "q1"}) == RequestOptions("q1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "found 3"),
        ("{bad", "found '{bad'"),
        ({"grup": "a"}, "found 'grup'"),
        ({"group": 5}, "group to be a text"),
        ({"group": ""}, "a group name as step option, found a blank one"),
        (" ", "a group name as step option, found a blank one"),
        ({"group": "a", "min_keep": -1}, "min_keep"),
        ({"group": "a", "aggregator": "x"}, "aggregator"),
        ({"window": 5, "stop_below": "low"}, "stop_below a finite number, found 'low'"),
        ({"window": 5, "stop_below": True}, "stop_below a finite number"),
        ({"window": 5, "stop_below": -(10**400)}, "stop_below a finite number"),
    ],
)
def test_bad_request_options_are_named(value, message):
    with pytest.raises(InputError, match=message):
        RequestOptions.from_extra_args({"step": value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": "1"}, "temperature out of numbers, found '1'"),
        ({"max_tokens": 2.5}, "max_tokens out of whole numbers, found 2.5"),
        ({"temperature": float("nan")}, "temperature >= 0, found nan"),
    ],
)
def test_bad_sampling_is_named(values, message):
    with pytest.raises(InputError, match=message):
        Sampling(**values)
