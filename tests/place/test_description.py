"""The file a user writes: what is wrong gets one sentence with what, where and what next."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airserve.place.description import DescriptionError, Factory, read, schema

FACTORY = Path(__file__).parents[2] / "examples/factory/factory.yaml"
AGAIN = "  - {<<: *usual, name: again}\n"


def test_the_example_reads():
    factory = read(FACTORY)
    assert factory.network.cell.prbs == 273
    assert factory.network.cell.slot_ms == 0.5
    assert [s.name for s in factory.servers()] == ["mast", "region"]


def test_a_slice_without_a_budget_has_the_tightest_promise_in_it(tmp_path):
    text = FACTORY.read_text().replace("name: video,", "name: video, five_qi: 82,")
    file = tmp_path / "factory.yaml"
    file.write_text(text)
    control, video = read(file).network.slices
    assert (control.budget_ms, control.quality.five_qi) == (50, 9)
    assert (video.budget_ms, video.quality.priority) == (9, 19)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("latency_ms: 50", "latency: 50", r"line \d+: unknown key 'latency' in .*promise; perhaps latency_ms"),
        ("latency_ms: 50", 'latency_ms: "50 ms"', "latency_ms"),
        ("carrier_ghz: 3.5", "carrier_ghz: 3500", "carrier_ghz"),
        ("min: 30", "min: 90", r"min shares add up to 110 % \(control 20 \+ video 90\)"),
        ("dedicated: 10, min: 20", "dedicated: 30, min: 20", "dedicated <= min <= max"),
        ("slice: video", "slice: vidoe", "slice 'vidoe', which does not exist; perhaps video"),
        ("device: camera", "device: mast", "kind edge; a device is wanted: sensor, camera"),
        ("bandwidth_mhz: 100", "bandwidth_mhz: 55", "55 does not exist at 30 kHz"),
        ("tdd: DDDSU", "tdd: DDDD", "has no slot in which devices could send data"),
        ("name: mast, kind: edge", "name: camera, kind: edge", "two sites are named camera"),
        ("rate_hz: 5", "rate_hz: -5", "rate_hz is -5"),
        ("percentile: 99", "percentile: 0.99", "percentile is 0.99; write 99 for the 99th"),
        ("devices: 20", "", "lacks the key 'devices'"),
        ("speed: 0.1}", "speed: 0.1, delay_ms: 3}", "stands at the radio"),
        ("dedicated: 10, min", "five_qi: 81, dedicated: 10, min", "5QI 81 is not standardised"),
        (
            "rate_hz: 5",
            "rate_hz: 5\n    arrival: sometimes",
            "arrival 'sometimes' is unknown; choose periodic",
        ),
        ("rate_hz: 5", "rate_hz: 5\n    arrival: {}", r"services.0.arrival is {}: it should be a valid string"),
        ("rate_hz: 5", "rate_hz: 5\n    arrival: {trace: a.csv, poisson: 1}", "arrival is .* should be a valid string"),
        ("rate_hz: 5", "rate_hz: .inf", "rate_hz is Infinity: it should be a finite number"),
        ("scenario: inf-dh", "scenario: inf-dh, inactivity_ms: .inf", "inactivity_ms is Infinity"),
        ("scenario: inf-dh", "scenario: inf-dh, drx_inactivity_ms: .nan", "drx_inactivity_ms is NaN"),
        ("scenario: inf-dh", "scenario: inf-dh, sr_period_ms: .inf", "sr_period_ms is Infinity"),
        ("scenario: inf-dh", "scenario: inf-dh, inactivity_ms: 1.0e+300", "should be less than or equal to 86400000"),
        ("rate_hz: 5", "rate_hz: 5\n    transport: sctp", "transport"),
        ("rate_hz: 5", "rate_hz: 5\n    devices_of: inspec", "in devices_of names service 'inspec', which does not"),
        ("rate_hz: 5", "rate_hz: 5\n    channel: {priority: 0}", r"channel.priority is 0: it should be greater"),
        (
            "rate_hz: 5",
            "rate_hz: 5\n    channel: {prio: 1}",
            "unknown key .prio. in services.0.channel; perhaps",
        ),
        (
            "speed: 0.3",
            "speed: 1.0e-300",
            "network.sites.2.speed is 1e-300: it should be greater than or equal to 0.000001",
        ),
        ("delay_ms: 1}", "delay_ms: 1, queue_kb: 5}", "a link without a rate has no queue"),
        ("  sites:", "  rules: [{service: inspectt}]\n  sites:", "rule names service 'inspectt', which does not exist"),
        ("scenario: inf-dh", "scenario: inf-dh, slicing: best", "no slice policy is named 'best'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, old, new, says):
    text = FACTORY.read_text()
    assert old in text
    file = tmp_path / "factory.yaml"
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(DescriptionError, match=says) as error:
        read(file)
    assert str(error.value).startswith(f"{file}, line ")
    assert "\n" not in str(error.value)


def test_the_line_is_the_right_one(tmp_path):
    lines = FACTORY.read_text().splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "max_accuracy_drop: 0.01" in line)
    file = tmp_path / "f.yaml"
    file.write_text(FACTORY.read_text().replace("max_accuracy_drop: 0.01", "accuracy: 0.01"))
    with pytest.raises(DescriptionError, match=f"line {number}: unknown key 'accuracy'"):
        read(file)


SIZES = "devices: 1, rate_hz: 1, bytes_up: 5, bytes_down: 5, compute_ms: 8"


@pytest.mark.parametrize(
    ("old", "new", "at", "says"),
    [
        ("    device: camera", "    device: mats", "device: mats", "service recognise names site 'mats'"),
        ("    device: camera", "    device: mast", "device: mast", "is asked from mast"),
        ("    slice: video", "    slice: vidoe", "slice: vidoe", "service recognise names slice 'vidoe'"),
        ("name: recognise", "name: inspect", "- name: inspect", "two services are named inspect"),
        ("    rate_hz: 1", "    rate_hz: 1\n    carrier: 3", "carrier: 3", "service recognise is on carrier 3"),
        ("    rate_hz: 1", "    rate_hz: 1\n    devices_of: x", "devices_of: x", "recognise in devices_of names"),
        ("    rate_hz: 1", "    rate_hz: 1\n    pin: {\n      sites: [x]}", "sites: [x]", "recognise names site 'x'"),
        ("    rate_hz: 1", "    rate_hz: 1\n    arrival: now", "arrival: now", "arrival 'now' is unknown"),
        ("    rate_hz: 1", "    rate_hz: 1\n    ue: new", "ue: new", "'new'"),
        ("speed: 0.2", "speed: 1.0e-9", "1.0e-9", "network.sites.3.speed is 1e-09"),
        ("services:", f"services:\n  - {{{SIZES}0000000, name: a,\n slice: video, site: mast}}", "0000000", "a day at"),
        ("min: 30", "min: 90", "min: 90", "the slices' min shares add up to 110 %"),
        ("name: video", "name: control", "sst: 1", "two slices are named control"),
        ("name: region", "name: mast", "kind: cloud", "two sites are named mast"),
        ("services:", "  rules:\n  - {service: inspect}\n  - {service: inspct}\nservices:", "inspct", "'inspct'"),
        ("services:", "  rules:\n  - {slice: video}\n  - {forward: mats}\nservices:", "mats", "names forward 'mats'"),
        ("  slices:", "    - {name: hall}\n  slices:", "- {name: hall}", "two cells are named hall"),
        ("  slices:", "    - {name: yard, scenario: uma}\n  slices:", "yard", "cells hall and yard have"),
    ],
)
def test_what_holds_of_no_part_alone_has_its_line_too(tmp_path, old, new, at, says):
    head, found, rest = FACTORY.read_text().rpartition(old)
    text = head + new + rest
    assert found
    lines = text.splitlines()
    number = max(i for i, line in enumerate(lines, 1) if at in line)
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(DescriptionError, match=f"line {number}: .*{says}"):
        read(tmp_path / "f.yaml")


HALL = "name: hall, "


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (HALL, HALL + "special: [10, 2], ", "network.cells.0.special is [10, 2]: it takes 3 values."),
        (HALL, HALL + "special: [1, 2, 3, 4], ", "special is [1, 2, 3, 4]: it should have at most 3 items, not 4."),
        (HALL, HALL + "carriers: 0, ", "network.cells.0.carriers is 0: it should be greater than or equal to 1."),
        (HALL, HALL + "carriers: [], ", "network.cells.0.carriers is []: it should have at least 1 item, not 0."),
        (HALL, HALL + "carriers: {a: 1}, ", 'network.cells.0.carriers is {"a": 1}: it should be a valid integer.'),
        (HALL, HALL + "carriers: [{carier_ghz: 3}], ", "in network.cells.0.carriers.0; perhaps carrier_ghz?"),
        (HALL, HALL + "carriers: [{}, {carrier_ghz: 99}], ", "network.cells.0.carriers.1.carrier_ghz is 99: it should"),
        (
            "name: hall",
            "name: röbots",
            'name is "röbots": it takes the letters a to z, digits and hyphens, and does not',
        ),
        ("name: hall", "name: " + 41 * "r", 'rrr": it should have at most 40 characters.'),
        ('sd: "000001"', 'sd: "12"', 'sd is "12": it takes six hexadecimal digits.'),
        ("services:\n  -", "services:\n   ", "it should be a list."),
        ("device: camera", "device: mats", "which does not exist; perhaps mast?"),
        (
            "rate_hz: 1\n",
            "rate_hz: 1\n    devices_of: recognise\n",
            "service recognise has devices_of 'recognise', which is the service itself; name one that has devices of "
            "its own: inspect.",
        ),
        (
            "services:\n",
            f"services:\n  - {{name: a, slice: video, site: mast, devices_of: b, {SIZES}}}\n"
            f"  - {{name: b, slice: video, site: mast, devices_of: inspect, {SIZES}}}\n",
            "service a has devices_of 'b', which has devices_of too; name one that has devices of its own: inspect, "
            "recognise.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_words(tmp_path, old, new, says):
    text = FACTORY.read_text().replace(old, new, 1)
    if says.endswith("a list."):
        text = text.partition("  - name: recognise")[0]
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(DescriptionError) as told:
        read(tmp_path / "f.yaml")
    assert says in str(told.value)
    assert says.endswith((".", "?")) is str(told.value).endswith(says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no description"),
        ("a: [", "not YAML"),
        ("- 1", "holds no description"),
        ("services: 5", "lacks the key 'network'"),
        ("network: [2024-02-28: 1]", r"network is \[{.*2024.*}\]: it should have keys, each with a value"),
        ("network: &all [*all]", r"network is \[\[\.\.\.\]\]: it should have keys"),
        ("network: {}\nservices:\n- name: 2024-02-30", "line 3: not YAML: day is out of range for month"),
        ("[" * 500, "not YAML: "),
        ("services: []\nnetwork: {}\nservices: []", "line 3: services stands twice; write it once"),
        ("network:\n  sites: [{delay_ms: 20, delay_ms: 2}]", "line 2: delay_ms stands twice; write it once"),
    ],
)
def test_files_that_are_no_description(tmp_path, text, says):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(DescriptionError, match=says):
        read(file)


def test_what_is_merged_may_be_set_again(tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text(FACTORY.read_text().replace("- name: inspect", "- &usual\n    name: inspect", 1) + AGAIN)
    assert [one.name for one in read(file).services][-1] == "again"


def test_a_missing_file():
    with pytest.raises(DescriptionError, match="cannot be read"):
        read("nowhere.yaml")


def test_sizes_in_place_of_a_model_need_all_four(tmp_path):
    text = FACTORY.read_text()
    text += "  - {name: backups, devices: 1, rate_hz: 1, slice: video, bytes_up: 5, site: mast}\n"
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(DescriptionError, match="backups has no model; give `model`, or all of bytes_up"):
        read(file)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"compute_ms": 1e300}, "compute_ms is 1e\\+300: it should be less than or equal to 86400000"),
        ({"compute_ms": 86_000_000}, "computes 2.86667e\\+08 ms at mast, whose speed is 0.3; a day at most"),
        ({"bytes_up": 2**63}, "bytes_up is 9223372036854775808: it should be less than or equal to 100000000000"),
        ({"bytes_down": 10**12}, "bytes_down is 1000000000000: it should be less than or equal to 100000000000"),
    ],
)
def test_sizes_and_times_have_an_end(tmp_path, change, says):
    sizes = {"bytes_up": 5, "bytes_down": 5, "compute_ms": 1, "site": "mast", **change}
    keys = ", ".join(f"{key}: {value}" for key, value in sizes.items()).replace("1e+300", "1.0e+300")
    file = tmp_path / "f.yaml"
    file.write_text(FACTORY.read_text() + f"  - {{name: backups, devices: 1, rate_hz: 1, slice: video, {keys}}}\n")
    with pytest.raises(DescriptionError, match=says):
        read(file)


def test_a_trace_may_be_written_as_a_mapping(tmp_path):
    text = FACTORY.read_text().replace("rate_hz: 5", "rate_hz: 5\n    arrival: {trace: a.csv}", 1)
    file = tmp_path / "f.yaml"
    file.write_text(text)
    assert read(file).services[0].arrival == "trace: a.csv"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mangled_file_never_ends_in_a_traceback(tmp_path_factory, data):
    text = FACTORY.read_text()
    a = data.draw(st.integers(0, len(text)))
    b = data.draw(st.integers(a, min(len(text), a + 40)))
    file = tmp_path_factory.mktemp("m") / "f.yaml"
    file.write_text(
        text[:a] + data.draw(st.text(st.characters(codec="utf-8"), max_size=10)) + text[b:], encoding="utf-8"
    )
    try:
        assert isinstance(read(file), Factory)
    except DescriptionError as error:
        assert "\n" not in str(error)


def test_schema_names_every_key():
    text = str(schema())
    for key in ("carrier_ghz", "max_accuracy_drop", "dedicated", "speed"):
        assert key in text
