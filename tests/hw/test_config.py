"""Configurations check themselves; what identifies the hardware is in their hash."""

from dataclasses import replace

import pytest

from celosia.hw.config import CONFIGS, AcceleratorConfig, ConfigError, get_config

BASE = CONFIGS["ulx3s-85f"]


def test_named_configurations():
    assert {name: config.macs // 2 for name, config in CONFIGS.items()} == {
        "tiny": 8, "ulx3s-25f": 16, "ulx3s-45f": 64, "ulx3s-85f": 128, "ulx3s-85f-64m": 128, "up5k": 8}
    assert [CONFIGS[name].multipliers for name in ("ulx3s-25f", "ulx3s-45f", "ulx3s-85f", "up5k")] == [22, 70, 140, 8]
    assert CONFIGS["ulx3s-85f-64m"].memory_bytes == 64 << 20


@pytest.mark.parametrize(("field", "value"), [
    ("outputs", 32), ("outputs", True), ("inputs", 4), ("drain_lanes", 8), ("tile_pixels", 48), ("tile_pixels", 1024), ("stage_pixels", 512), ("map_words", 13313),
    ("map_words", 16896), ("weight_words", 128), ("parameter_words", 1024), ("max_burst", 8), ("memory_bytes", 1 << 28), ("clock_mhz", 0), ("clock_mhz", float("nan")),
    ("clock_mhz", "fast"), ("drain_multipliers", 1), ("name", 5), ("board", None),
])
def test_values_are_checked(field, value):
    with pytest.raises(ConfigError, match=rf"{field} must be .*, not {value!r}"):
        replace(BASE, **{field: value})


@pytest.mark.parametrize(("field", "value"), [
    ("in_order", 1), ("outputs", 4), ("inputs", 16), ("drain_lanes", 4), ("drain_multipliers", True), ("memory_bytes", 128 << 10), ("memory_bytes", 5000),
    ("memory_bytes", 0),
])
def test_values_of_an_in_order_engine_are_checked(field, value):
    with pytest.raises(ConfigError, match=rf"config 'up5k': {field} must be .*, not {value!r}"):
        replace(CONFIGS["up5k"], **{field: value})


def test_an_in_order_engine_has_memory_where_it_has_no_buffers():
    assert CONFIGS["up5k"].memory_bytes + CONFIGS["up5k"].buffer_bytes == 128 << 10
    assert replace(CONFIGS["up5k"], map_words=512, memory_bytes=112 << 10).hash != CONFIGS["up5k"].hash
    with pytest.raises(ConfigError, match=r"memory_bytes must be a multiple of 4096 in 4096…98304 if in_order, not 114688"):
        replace(CONFIGS["up5k"], memory_bytes=112 << 10)


def test_hashes_of_engines_that_are_built():
    """A field that is added must not change them."""
    assert {name: f"{CONFIGS[name].hash:08x}" for name in ("tiny", "ulx3s-25f", "ulx3s-85f")} == {"tiny": "33f696c4", "ulx3s-25f": "cb6941d1", "ulx3s-85f": "5fac7af5"}


def test_the_hash_is_of_the_hardware():
    for changes in ({"name": "x"}, {"board": "none"}, {"clock_mhz": 125.0}, {"memory_bytes": 1 << 20}):
        assert replace(BASE, **changes).hash == BASE.hash
    for changes in ({"outputs": 8}, {"inputs": 8}, {"map_words": 8192}, {"max_burst": 16}, {"drain_multipliers": False}):
        assert replace(BASE, **changes).hash != BASE.hash


def test_files(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("outputs = 8\nmax_burst = 16\n")
    config = get_config(path)
    assert (config.name, config.outputs, config.max_burst) == ("mine", 8, 16) and AcceleratorConfig.from_json(config.to_json()) == config
    for text, message in (("outputs = ", "mine.toml: cannot be read"), ("output = 8", "unknown field 'output'; known: .*outputs"), ("outputs = 3", "outputs must be")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            get_config(path)
    with pytest.raises(ConfigError, match="cannot be read: .*No such file"):
        get_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="config 'huge' is not known; choose tiny, .* or name a .toml file"):
        get_config("huge")
