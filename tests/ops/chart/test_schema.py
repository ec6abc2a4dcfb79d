"""The chart's schema is what its commented values say, and what Moray's settings and Kubernetes' types are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft7Validator

from cluster.config import setting_keys
from cluster.settings import Settings
from ops.chart import commented, reference, schema, typed_elsewhere
from ops.chart.commented import BadValues
from ops.rollout.spec import RolloutSpec

VALUES = """\
# A file's head, apart by a blank line, belongs to no value.

# How many,
# at least one.
# @schema {minimum: 1}
count: 2

# @schema {enum: [None, NewCluster]}
strategy: None # What an upgrade does.

# Where it runs.
place:
  # By a node's labels.
  # @schema {additionalProperties: {type: string}}
  nodeSelector: {}

  # @schema {type: [string, "null"], pattern: "^[a-z]+$"}
  # A zone, or none.
  zone: null
  # A share of it.
  fill: 0.9

# Groups of pods.
groups:
  # A name.
  - name: a
    # Its tolerations.
    # @schema {items: {kubernetes: V1Toleration}}
    tolerations: []

# More groups: a name, and what a place may have.
# @schema {items: {type: object, additionalProperties: false, keysOf: place, properties: {name: {type: string}}}}
more: []

# A list whose items a note describes.
# @schema {items: {type: object}}
rules:
  - to:
      - anywhere: true
"""


def made(text: str) -> dict[str, Any]:
    return json.loads(schema.schema(commented.read(text)))


def page(text: str) -> str:
    return reference.page(schema.schema(commented.read(text)))


def problems(text: str, values: Any) -> list[str]:
    found = Draft7Validator(made(text)).iter_errors(values)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found)


def test_types_come_from_defaults_and_notes_say_more() -> None:
    top = made(VALUES)
    assert top["additionalProperties"] is False
    assert top["properties"]["count"] == {
        "description": "How many, at least one.",
        "default": 2,
        "type": "integer",
        "minimum": 1,
    }
    assert top["properties"]["strategy"]["description"] == "What an upgrade does."
    place = top["properties"]["place"]
    assert place["additionalProperties"] is False and "default" not in place
    assert place["properties"]["zone"]["type"] == ["string", "null"] and place["properties"]["zone"]["default"] is None
    assert place["properties"]["fill"]["type"] == "number"
    group = top["properties"]["groups"]["items"]
    assert group["additionalProperties"] is False
    assert group["properties"]["name"]["description"] == "A name."


def test_the_defaults_pass_and_a_slip_is_named() -> None:
    assert problems(VALUES, commented.yaml.safe_load(VALUES)) == []
    assert problems(VALUES, {"global": {"anything": 1}}) == []  # Helm hands it down to each chart of a release
    assert problems(VALUES, {"coutn": 1}) == [": Additional properties are not allowed ('coutn' was unexpected)"]
    assert "is not one of" in problems(VALUES, {"strategy": "Recreate"})[0]
    assert problems(VALUES, {"count": 0})[0].startswith("count: ")
    toleration = {"key": "gpu", "operator": "Exists", "tolerationSeconds": 5}
    assert problems(VALUES, {"groups": [{"name": "a", "tolerations": [toleration]}]}) == []
    assert "'efect' was unexpected" in problems(VALUES, {"groups": [{"name": "a", "tolerations": [{"efect": ""}]}]})[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", "values.yaml:1: a has no comment"),
        ("# Why.\na: null\n", "values.yaml:2: a is null: say its types"),
        ("# Why.\na: {}\n", "values.yaml:2: a: say what it may hold"),
        ("# Why.\na: []\n", "values.yaml:2: a: say what it may hold"),
        ("# Why.\n# @schema minimum 1\na: 1\n", "values.yaml:2: write `# @schema"),
        (
            "# Why.\n# @schema {items: {kubernetes: V1Tolerance}}\na: []\n",
            "values.yaml:3: a: the Kubernetes API has no",
        ),
        ("# Why.\n# @schema {from: setings}\na: {}\n", "values.yaml:3: a: from: setings is neither"),
        (
            "# Why.\n# @schema {from: settings, without: [model.pat]}\na: {}\n",
            "values.yaml:3: a: model.pat is no setting",
        ),
        ("# Why.\na: 1\n# Why.\na: 2\n", "a is there twice"),
        ("- 1\n", "no map of values"),
        ("a: [\n", "no YAML"),
        ("# Why.\n# @schema {items: {keysOf: b, properties: {}}}\na: []\n", "keysOf names b, which is no value"),
    ],
)
def test_values_that_leave_something_open_are_refused(text: str, said: str) -> None:
    with pytest.raises(BadValues) as refused:
        made(text)
    assert said in str(refused.value)


def test_keys_of_another_map_are_taken_over_without_its_defaults() -> None:
    keys = made(VALUES)["properties"]["more"]["items"]["properties"]
    assert keys["fill"] == {"description": "A share of it.", "type": "number"} and keys["name"] == {"type": "string"}
    assert problems(VALUES, {"more": [{"name": "a", "zone": None}]}) == []
    assert problems(VALUES, {"more": [{"name": "a", "zones": None}]}) != []


def test_settings_are_morays_less_what_the_chart_fills() -> None:
    text = "# Moray's.\n# @schema {from: settings, without: [model.version]}\nsettings: {}\n"
    settings = made(text)["properties"]["settings"]
    keys = {f"{group}.{name}" for group, each in settings["properties"].items() for name in each["properties"]}
    assert keys == set(setting_keys())
    assert problems(text, {"settings": Settings().model_dump(mode="json")}) == []
    assert problems(text, {"settings": {"model": {"version": 1}}}) == []  # the chart says better what is wrong with it
    assert "settings.model.name" in page(text) and "settings.model.version" not in page(text)
    assert problems(text, {"settings": {"router": {"max_queue": 1, "ttft_slo_s": None}}}) == []
    assert problems(text, {"settings": {"engine": {"extra": {"whatever": [1]}}}}) == []
    for wrong in (
        {"rooter": {}},
        {"router": {"max_queu": 1}},
        {"router": {"max_queue": 0}},
        {"router": {"policy": "fifo"}},
        {"router": {"ttft_slo_s": 0}},
        {"experts": {"expert_parallel": "4"}},
        {"log": {"level": "LOUD"}},
        {"rollout": {"steps": ["a"]}},
    ):
        assert problems(text, {"settings": wrong}), wrong


def test_every_setting_says_what_it_is() -> None:
    tree = typed_elsewhere.settings(())
    undescribed = [
        f"{group}.{name}"
        for group, each in tree["properties"].items()
        for name, of in each["properties"].items()
        if not of.get("description")
    ]
    assert undescribed == []
    assert "anyOf" not in json.dumps(tree) and "$ref" not in json.dumps(tree)


def test_a_rollouts_fields_are_those_of_a_user_config() -> None:
    text = "# How.\n# @schema {from: rollout}\nrollout: {}\n"
    fields = made(text)["properties"]["rollout"]["properties"]
    assert set(fields) == set(RolloutSpec.__struct_fields__) - {"version"}
    assert problems(text, {"rollout": {"steps": [0.1], "gates": {"errors": 0.1}}}) == []
    assert problems(text, {"rollout": {"gates": {"errors": 2}}}) and problems(text, {"rollout": {"version": "v2"}})


def test_draft_7_is_what_it_is() -> None:
    Draft7Validator.check_schema(made(VALUES))
    Draft7Validator.check_schema(typed_elsewhere.settings(()))
    Draft7Validator.check_schema(typed_elsewhere.rollout())


def test_the_reference_has_a_row_for_every_value() -> None:
    made_of = page(VALUES)
    assert "| `count` | integer | `2` | How many, at least one. |" in made_of
    assert '| `strategy` | `"None"` \\| `"NewCluster"` | `"None"` | What an upgrade does. |' in made_of
    assert "| `place.zone` | string or null | `null` | A zone, or none. |" in made_of
    assert "| `groups[].tolerations` | list of V1Toleration | `[]` | Its tolerations. |" in made_of
    assert "| `place.nodeSelector` | map | `{}` | By a node's labels. |" in made_of
    assert "`place`" not in made_of and "\n## place\n\nWhere it runs.\n" in made_of
