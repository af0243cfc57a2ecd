"""What can be configured, and how it is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from zooplatform.errors import ConfigError
from zooplatform_sne.config import (
    CONFIGS,
    ENCODERS,
    MemberConfig,
    SneConfig,
    TrainingConfig,
    build_encoder,
)


@pytest.mark.parametrize("name", CONFIGS)
def test_named_configurations_are_written_out_and_read_again(name: str) -> None:
    config = SneConfig.parse(CONFIGS[name])
    described = json.loads(json.dumps(config.describe()))
    assert SneConfig.parse(described) == config
    for member in described["members"]:
        assert {"encoder", "count", "weight", "epochs", "learning_rate", "loss"} <= set(member)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_named_encoder_can_be_built(name: str) -> None:
    for member in SneConfig.parse(CONFIGS[name]).members:
        assert build_encoder(member.encoder, member.options).dim > 0


@pytest.mark.parametrize("encoder", ENCODERS)
def test_options_reach_the_encoder(encoder: str) -> None:
    member = MemberConfig.parse({"encoder": encoder, "dim": 24})
    assert build_encoder(encoder, member.options).dim == 24


def test_nothing_given_is_best() -> None:
    assert SneConfig.parse({}) == SneConfig.parse(CONFIGS["best"])
    assert SneConfig.parse({"base": "debug"}) == SneConfig.parse(CONFIGS["debug"])


def test_keys_beside_members_are_for_all_that_know_them() -> None:
    members = [{"encoder": "statistics"}, {"encoder": "propagation", "epochs": 3}]
    config = SneConfig.parse({"members": members, "epochs": 7, "units": 8, "combine": "stack"})
    assert [member.training.epochs for member in config.members] == [7, 7]
    assert config.members[1].options["units"] == 8
    assert "units" not in config.members[0].options
    assert config.combine == "stack"


def test_defaults_are_those_of_the_classes() -> None:
    member = MemberConfig.parse({})
    assert (member.encoder, member.count, member.training) == ("statistics", 1, TrainingConfig())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"epoch": 3}, r"Unknown key 'epoch'. Known: .*base.*epochs.*Did you mean 'epochs'\?"),
        ({"base": "fast"}, "Unknown base 'fast'. Known: debug, paper, weights, best."),
        ({"members": []}, "members is .*; give a list of at least one table."),
        ({"members": ["statistics"]}, "A member is a table of keys, not 'statistics'."),
        ({"members": [{"encoder": "tree"}]}, "Unknown encoder 'tree'. Known: statistics, prop"),
        ({"members": [{"unit": 3, "encoder": "propagation"}]}, "Did you mean 'units'"),
        ({"members": [{"count": 0}]}, "count is 0; use a whole number from 1 on."),
        ({"members": [{"weight": 0}]}, "weight is 0; use a number above 0."),
        ({"epochs": "many"}, "epochs is 'many'; use a whole number, not negative."),
        ({"epochs": True}, "epochs is True; use a whole number"),
        ({"epochs": 0}, "epochs is 0; use a whole number from 1 on."),
        ({"learning_rate": float("nan")}, "learning_rate is nan; use a number"),
        ({"learning_rate": 0}, "learning_rate is 0; use a number above 0."),
        ({"ema": 1.0}, "ema is 1; use a number from 0 to below 1."),
        ({"loss": "l1"}, "loss is 'l1'; use one of auto, bce, mse, huber, rank-huber."),
        ({"schedule": "step"}, "schedule is 'step'; use one of onecycle, cosine, constant."),
        ({"combine": "vote"}, "combine is 'vote'; use one of mean, stack."),
        ({"logit_clip": 0.5}, "logit_clip lies between 0 and 0.5."),
        ({"base": "weights", "statistics": 1}, "statistics is 1; use true or false."),
        ({"encoder": "chunk"}, "Unknown key 'encoder'"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        SneConfig.parse(given)
