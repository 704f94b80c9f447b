"""Compiled programs, executed instruction by instruction in every order their tokens allow, give golden's bytes."""

from dataclasses import replace

import numpy as np
import pytest
from networks import network_of, random_codes, random_layer, random_network, random_parts, random_phases, random_scaled
from on_machine import run_on_machine

from celosia.host.compile import compile, plan_network
from celosia.host.device import open_device
from celosia.host.errors import CompileError, NoRoomError
from celosia.host.geometry import WHOLE_MAP, make_geometry
from celosia.host.pack import pack_weights
from celosia.hw import isa
from celosia.hw.config import CONFIGS, AcceleratorConfig, get_config
from celosia.hw.control import EngineControl
from celosia.hw.isa import Base, Opcode, Unit, decode
from celosia.hw.network import Pool, Residual
from celosia.hw.program import Program, ProgramError
from celosia.hw.tensor_file import read_tensors, write_tensors
from celosia.sim.golden import execute
from celosia.sim.machine import MachineError


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f", "ulx3s-85f"])
@pytest.mark.parametrize("seed", range(16))
def test_random_networks(config, seed):
    network, batch = random_network(seed, largest=16 if config == "tiny" else 40), 1 + seed % 3
    program = compile(network, config, batch)
    codes = random_codes(network, batch, seed)
    for order in (0, seed + 1):
        np.testing.assert_array_equal(run_on_machine(program, [codes], order)[0], execute(network, [codes])[0])


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f", "ulx3s-85f"])
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", [random_parts, random_phases, random_scaled])
def test_parts_and_wholes(config, kind, seed):
    network, batch = kind(seed, largest=12 if config == "tiny" else 24), 1 + seed % 3
    program, codes = compile(network, config, batch), random_codes(network, batch, seed)
    for order in (0, seed + 1):
        got, want = run_on_machine(program, [codes], order), execute(network, [codes])
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)


def residual_network():
    rng = np.random.default_rng(3)
    shape = (16, 48, 24)
    first = random_layer(rng, "a", "x", shape, 16, (3, 3), padding=(1, 1, 1, 1))
    second = random_layer(rng, "b", "a", shape, 16, (3, 3), padding=(1, 1, 1, 1))
    third = random_layer(rng, "c", "b", shape, 16, (3, 3), padding=(1, 1, 1, 1), residual=Residual(tensor="a", multiplier=40000, shift=15))
    last = random_layer(rng, "d", "c", shape, 8, (1, 1))
    return network_of([replace(layer, low=-128, high=127) for layer in (first, second, third, last)], shape, rng)


def test_a_residual_sum_replaces_its_summand():
    program = compile(residual_network(), "tiny")
    assert program.sizes[Base.MAPS] == 2 * 16 * 48 * 24, "a and c share one place, b has the other"


def test_parts_take_no_memory_of_their_own():
    network = replace(random_parts(4), outputs=["y"])
    program = compile(network, "tiny")
    wholes = [tensor.planes * 8 * tensor.shape[1] * tensor.shape[2] for tensor in map(network.tensors.get, ("joined", "grid"))]
    assert program.sizes[Base.MAPS] == sum(-(-size // 512) * 512 for size in wholes)


# Weights follow parameters in their queue, so what waits for weights has its parameters; and `tiny` holds all parameters of this network.
@pytest.mark.parametrize("edge", [e for e in isa.EDGES if set(e) != {Unit.WEIGHT, Unit.DRAIN}], ids=lambda e: f"{e[0].name}-{e[1].name}")
def test_every_kind_of_token_matters(edge):
    """Without the tokens of one edge, some order gives wrong bytes: the order is drawn at random, and tokens are what restrains it."""
    network = random_scaled(4) if edge == (Unit.STORE, Unit.WEIGHT) else residual_network()
    program, codes = compile(network, "tiny"), random_codes(network, 1, 1)
    words = []
    for word in program.words():
        opcode, fields = isa.decode(word)
        unit = isa.unit_of(opcode)
        wait = [u for u in Unit if fields["wait"] >> u & 1 and (u, unit) != edge]
        post = [u for u in Unit if fields["post"] >> u & 1 and (unit, u) != edge]
        rest = {k: v for k, v in fields.items() if k not in ("opcode", "wait", "post")}
        words.append(isa.encode(opcode, wait=wait, post=post, **rest))
    want = execute(network, [codes])[0]
    assert any((run_on_machine(program, [codes], seed, words)[0] != want).any() for seed in range(1, 6))


def test_tokens_name_existing_edges_only():
    program = compile(random_network(5), "tiny")
    words = program.words()
    words[-1:] = [isa.encode(Opcode.LOAD_WEIGHTS, post=[Unit.STORE], beats=4), words[-1]]
    with pytest.raises(MachineError, match="no tokens go from WEIGHT to STORE"):
        run_on_machine(program, [random_codes(program.network, 1, 0)], 0, words)


def test_the_same_network_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        compile(random_network(7), "ulx3s-25f", 2).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_program_survives_its_file(tmp_path):
    network = random_network(11)
    program = compile(network, "tiny", 2)
    program.save(tmp_path / "p.celp")
    loaded, codes = Program.load(tmp_path / "p.celp"), random_codes(network, 2, 5)
    np.testing.assert_array_equal(run_on_machine(loaded, [codes], 0)[0], execute(network, [codes])[0])
    assert loaded.bases() == program.bases() and loaded.stores == program.stores
    with pytest.raises(ProgramError, match="compile it with --config ulx3s-85f"):
        loaded.check_config(get_config("ulx3s-85f"))


def test_a_program_knows_the_memory_it_needs():
    program = compile(random_network(5), "tiny", 8)
    end = 0
    for base, start in sorted(program.bases().items(), key=lambda item: item[1]):
        assert start == end, "regions follow each other"
        end = start + -(-program.sizes[base] // 4096) * 4096
    assert end == program.memory_bytes and any(size % 4096 for size in program.sizes.values())
    fitting = 1 << (program.memory_bytes - 1).bit_length()
    program.check_config(replace(program.config, memory_bytes=fitting))
    message = f"needs {program.memory_bytes:,} bytes of memory, config 'tiny' has {fitting // 2:,}"
    with pytest.raises(ProgramError, match=message):
        program.check_config(replace(program.config, memory_bytes=fitting // 2))


@pytest.mark.parametrize("damage", [
    lambda header: header.update(instructions=10**6), lambda header: header.update(instructions=-1), lambda header: header["sizes"].update(INPUT=8),
    lambda header: header.update(inputs=[]),
    lambda header: header["stores"].pop(), lambda header: header["config"].update(outputs=3), lambda header: header.update(config=3),
])
def test_a_damaged_program_is_refused(tmp_path, damage):
    path = tmp_path / "p.celp"
    compile(random_network(3, largest=10), "tiny").save(path)
    header, arrays = read_tensors(path, "celp", ProgramError)
    damage(header)
    write_tensors(path, "celp", header, arrays)
    with pytest.raises(ProgramError, match=r"p\.celp: is damaged .*compile it again"):
        Program.load(path)


def test_more_instructions_than_the_engine_counts_are_refused():
    program = compile(random_network(3, largest=10), "tiny")
    largest = (1 << EngineControl().members["length"].shape) - 1
    assert replace(program, instructions=largest).instructions == largest
    with pytest.raises(ProgramError, match="program random has 16,777,216 instructions, the engine counts 16,777,215 at most; compile it for a smaller batch"):
        replace(program, instructions=largest + 1)


def test_a_map_too_large_for_the_instructions_names_the_layer():
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "big", "x", (8, 1030, 1030), 8, (1, 1), stride=(2, 2))], (8, 1030, 1030), rng)
    with pytest.raises(CompileError, match="layer big: map area 1060900 exceeds the engine's 1048575"):
        compile(network, "ulx3s-85f")


def test_a_network_too_large_for_the_memory_names_the_bytes():
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "a", "x", (64, 40, 40), 64, (3, 3))], (64, 40, 40), rng)
    small = AcceleratorConfig.from_json(CONFIGS["ulx3s-25f"].to_json() | {"name": "small", "memory_bytes": 1 << 16})
    with pytest.raises(CompileError, match=r"network random: needs [\d,]+ bytes .* config 'small' has 65,536"):
        compile(network, small)


def test_a_row_too_large_for_the_scratchpad_names_the_layer():
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "wide", "x", (512, 9, 60), 8, (9, 3))], (512, 9, 60), rng)
    with pytest.raises(CompileError, match="layer wide: one output row needs more than the 16384 bytes"):
        compile(network, "tiny")


# Shapes at the ends of what instructions hold: each has been wrong, or refused without need.
@pytest.mark.parametrize("config, shape, outputs, kernel, attributes", [
    ("ulx3s-85f", (8, 20, 130), 8, (1, 1), {"pool": Pool(kernel=(9, 3), stride=(2, 2), padding=(4, 1, 4, 1))}),  # nine rows exceed the staging buffer
    ("ulx3s-25f", (8, 15, 15), 12, (1, 1), {"pool": Pool(kernel=(15, 15), stride=(15, 15))}),
    ("ulx3s-85f", (16384, 1, 1), 10, (1, 1), {}),  # 2,048 planes
    ("tiny", (3, 64, 32), 20, (16, 16), {"stride": (16, 16)}),  # fits once the host has folded it
    ("ulx3s-25f", (3, 80, 80), 9, (40, 40), {"stride": (40, 40)}),
], ids=str)
def test_large_shapes(config, shape, outputs, kernel, attributes):
    rng = np.random.default_rng(6)
    network = network_of([random_layer(rng, "a", "x", shape, outputs, kernel, **attributes)], shape, rng)
    program, codes = compile(network, config), random_codes(network, 1, 3)
    np.testing.assert_array_equal(run_on_machine(program, [codes], 1)[0], execute(network, [codes])[0])


@pytest.mark.parametrize("shape, attributes, problem", [
    ((8, 40, 40), {"pool": Pool(kernel=(2, 2), stride=(2, 16))}, "pooling stride 16 exceeds the engine's 15"),
    ((8, 40, 40), {"pool": Pool(kernel=(16, 2), stride=(2, 2))}, "pooling kernel 16 exceeds the engine's 15"),
    ((16, 40, 40), {"stride": (1, 16)}, "stride 16 exceeds the engine's 15"),
    ((16, 5, 20), {"padding": (0, 3000, 0, 0), "stride": (1, 2)}, "padding 3000 exceeds the engine's 2047"),
    ((16, 5, 200), {"padding": (0, 2, 0, 2000), "stride": (1, 2)}, "last window's column 2196 exceeds the engine's 2047"),
    ((16, 5, 2048), {"stride": (1, 2)}, "map width 2048 exceeds the engine's 2047"),
])
def test_what_no_instruction_holds_names_layer_and_limit(shape, attributes, problem):
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "odd", "x", shape, 8, (1, 3), **attributes)], shape, rng)
    with pytest.raises(CompileError, match=f"layer odd: {problem}; keep it on the host"):
        compile(network, "ulx3s-85f")


def test_a_map_of_more_pixels_than_a_load_brings_is_refused():
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "a", "x", (16, 17, 1024), 8, (16, 8), stride=(1, 8))], (16, 17, 1024), rng)
    with pytest.raises(CompileError, match="layer a: one output row needs more than the 262128 bytes"):
        compile(network, AcceleratorConfig(name="large", map_words=16384))


def test_a_network_without_layers_is_refused():
    network = replace(random_network(1), layers=[], outputs=["x"])
    with pytest.raises(CompileError, match="network random: has no layers"):
        compile(network, "tiny")


@pytest.mark.parametrize("batch", [0, 2000, 1.5])
def test_a_bad_batch_is_refused(batch):
    with pytest.raises(CompileError, match="option batch: must be a whole number"):
        compile(random_network(1), "tiny", batch)


def test_tiles_fit_their_buffers():
    for seed in range(30):
        network, config = random_network(seed, largest=60), get_config(["ulx3s-25f", "ulx3s-85f"][seed % 2])
        for plan in plan_network(network, config, 2):
            _, height, width = plan.geometry.out
            stored = np.zeros((2, height, width), np.int64)
            for tile in (tile for chunk in plan.chunks for tile in chunk.tiles):
                assert tile.pixels <= config.tile_pixels
                stored[slice(*tile.images), slice(*tile.out_rows), slice(*tile.out_columns)] += 1
            assert (stored == 1).all(), "every pixel is stored once"


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f"])
@pytest.mark.parametrize("kind", [random_network, random_parts, random_phases, random_scaled])
def test_no_plan_is_better_than_the_bound(config, kind):
    for seed in range(40):
        for plan in plan_network(kind(seed), get_config(config), 1 + seed % 3):
            assert plan.bound <= max(plan.compute, plan.memory)


def test_the_bound_where_neither_maps_nor_weights_fit():
    """Of 256 KiB of maps 200 KiB fit: the rest comes again for each further 64 KiB of 1 MiB of weights, which is less than all weights but 64 KiB."""
    rng = np.random.default_rng(0)
    network, config = network_of([random_layer(rng, "a", "x", (4096, 1, 1), 256, (1, 1))], (4096, 1, 1), rng), get_config("ulx3s-85f")
    [plan] = plan_network(network, config, 64)
    maps, weights = 64 * 4096, 4096 * 256
    assert plan.bound == (maps + weights + 15 * (maps - 204800) + 64 * 256) * 100 // 250 + 1 <= plan.memory


@pytest.mark.parametrize("config", ["tiny", "ulx3s-85f", "up5k"])
def test_average_pooling_loads_its_weights_once(config):
    rng = np.random.default_rng(4)
    network = network_of([random_layer(rng, "a", "x", (50, 7, 7), 50, (7, 7), op="avg_pool", groups=50)], (50, 7, 7), rng)
    program, codes = compile(network, config), random_codes(network, 1, 2)
    [plan] = plan_network(network, program.config, 1)
    step_words, loads = plan.geometry.step_words, 2 * max(program.config.inputs // program.config.outputs, 1)
    # of one channel word, and of the last, whose channels are fewer
    assert program.code_offset <= 64 // 4 * 32 + loads * 49 * step_words * program.config.inputs + 512
    np.testing.assert_array_equal(run_on_machine(program, [codes], 3)[0], execute(network, [codes])[0])


@pytest.mark.parametrize("config", ["tiny", "ulx3s-85f"])
def test_blocks_of_channels_share_equal_parameters(config):
    """Those of 100 channels' sums, of which the last four stand alone, in one load."""
    rng = np.random.default_rng(4)
    layer = random_layer(rng, "a", "x", (100, 3, 3), 100, (3, 3), op="avg_pool", groups=100)
    layer = replace(layer, **{name: np.full_like(value, value[0]) for name, value in (("bias", layer.bias), ("multiplier", layer.multiplier), ("shift", layer.shift))})
    network = network_of([layer], (100, 3, 3), rng)
    program, codes = compile(network, config), random_codes(network, 1, 2)
    loads = [fields for opcode, fields in map(isa.decode, program.words()) if opcode == Opcode.LOAD_WEIGHTS and fields["target"] == isa.Target.PARAMETERS]
    block = plan_network(network, program.config, 1)[0].geometry.block
    assert [load["beats"] for load in loads] == [2 * block]
    for order in (0, 3):
        np.testing.assert_array_equal(run_on_machine(program, [codes], order)[0], execute(network, [codes])[0])


@pytest.mark.parametrize("config", ["tiny", "ulx3s-25f", "ulx3s-85f"])
@pytest.mark.parametrize("kind", [random_network, random_parts, random_phases, random_scaled])
def test_equal_weights_count_once(config, kind):
    """Zeros may count more often."""
    for seed in range(8):
        for geometry in (plan.geometry for plan in plan_network(kind(seed), get_config(config), 1)):
            packed = [pack_weights(geometry, first) for block in range(geometry.blocks) for first in geometry.parts(block)]
            different = {weights.tobytes() for weights in packed if weights.any()}
            assert 0 <= geometry.weight_bytes - sum(map(len, different)) <= sum(weights.size for weights in packed if not weights.any())


def test_one_channel_has_one_word_a_block():
    rng = np.random.default_rng(0)
    network = network_of([random_layer(rng, "a", "x", (1, 60, 60), 1, (15, 15))], (1, 60, 60), rng)
    [plan] = plan_network(network, get_config("ulx3s-85f"), 1)
    assert plan.geometry.fold or plan.geometry.diagonal
    geometry = make_geometry(get_config("ulx3s-85f"), network, network.layers[0], 1, WHOLE_MAP)
    assert geometry.diagonal and geometry.weight_bytes == len(pack_weights(geometry, 0)) == 15 * 15 * 16


def test_loads_of_earlier_layers_come_first():
    """The first map before the second layer's weights, of which the buffer has room for all."""
    rng = np.random.default_rng(0)
    layers = [random_layer(rng, name, source, (16, 10, 10), 16, (1, 1)) for name, source in (("a", "x"), ("b", "a"))]
    program, first = compile(network_of(layers, (16, 10, 10), rng), "ulx3s-85f", 1), {}
    for index, (opcode, _) in enumerate(map(decode, program.words())):
        if opcode in (Opcode.LOAD_MAP, Opcode.LOAD_WEIGHTS):
            first.setdefault((opcode, int(program.layers[index])), index)
    assert first[Opcode.LOAD_WEIGHTS, 0] < first[Opcode.LOAD_MAP, 0] < first[Opcode.LOAD_WEIGHTS, 1] < first[Opcode.LOAD_MAP, 1]


def test_loads_do_not_run_ahead_beyond_what_a_token_counter_holds():
    """Many images in few words each: without a limit, hundreds of map loads would be done before the first is used."""
    rng = np.random.default_rng(6)
    network = network_of([random_layer(rng, "a", "x", (16, 40, 2), 16, (1, 1), stride=(2, 2))], (16, 40, 2), rng)
    program, codes = compile(network, "ulx3s-85f", 32), random_codes(network, 32, 2)
    np.testing.assert_array_equal(run_on_machine(program, [codes], 4)[0], execute(network, [codes])[0])


def test_small_tiles_do_not_pile_up_beyond_what_a_token_counter_holds():
    """The staging buffer holds 341 of these, three pixels each."""
    rng = np.random.default_rng(6)
    network = network_of([random_layer(rng, "a", "x", (16, 1, 3), 12288, (1, 1))], (16, 1, 3), rng)
    program, codes = compile(network, "ulx3s-85f"), random_codes(network, 1, 2)
    np.testing.assert_array_equal(run_on_machine(program, [codes], 1)[0], execute(network, [codes])[0])


def test_channels_of_a_depthwise_layer_are_cut_where_a_row_of_all_has_no_room():
    rng = np.random.default_rng(5)
    shape = (100, 26, 40)  # of 104,000 bytes; the scratchpad of `tiny` has 16,384
    pool = random_layer(rng, "pool", "x", shape, 100, (26, 14), stride=(1, 13), groups=100)
    network = network_of([replace(pool, low=-128, high=127), random_layer(rng, "after", "pool", (100, 1, 3), 8, (1, 1))], shape, rng)
    for batch, order in ((1, 0), (2, 3)):
        program, codes = compile(network, "tiny", batch), random_codes(network, batch, 5)
        np.testing.assert_array_equal(run_on_machine(program, [codes], order)[0], execute(network, [codes])[0])
    [chunk, *_] = plan_network(network, get_config("tiny"), 1)[0].chunks
    assert chunk.words[1] - chunk.words[0] < 100 // 4


def test_linear_layers_at_the_end_stay_on_the_host_where_the_memory_has_no_room(tmp_path):
    rng, config = np.random.default_rng(7), replace(get_config("tiny"), name="small", memory_bytes=1 << 16)
    shape = (8, 12, 12)
    layers = [random_layer(rng, "conv", "x", shape, 16, (3, 3)), random_layer(rng, "wide", "conv", (16, 10, 10), 40, (10, 10)),
              random_layer(rng, "last", "wide", (40, 1, 1), 10, (1, 1))]
    network = network_of([layers[0], *(replace(layer, op="linear") for layer in layers[1:])], shape, rng)
    program = compile(network, config, 2)
    assert [layer.name for layer in program.network.layers] == ["conv"] and [layer.name for layer in program.host.layers] == ["wide", "last"]
    program.save(tmp_path / "small.celp")
    loaded = Program.load(tmp_path / "small.celp")
    images = rng.standard_normal((3, *shape)).astype(np.float32)
    whole = compile(network, replace(config, memory_bytes=1 << 20), 2)
    assert whole.host is None
    with open_device("golden", config) as small, open_device("cycle", whole.config) as large:
        one, other = small.run(loaded, images), large.run(whole, images)
    assert one.codes[0].shape == (3, 10, 1, 1)
    for got, want in ((one.codes, other.codes), (one.outputs, other.outputs)):
        np.testing.assert_array_equal(got[0], want[0])
    convolution = network_of(layers, shape, rng)
    with pytest.raises(NoRoomError, match="network random: needs"):
        compile(convolution, config, 2)
