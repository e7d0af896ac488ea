"""The safetensors container: what the library writes we read and the reverse; what it refuses we refuse."""

import hashlib
import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file, save

from builders.refusals import refused
from lingualift.adapters.tensorfile import (
    DTYPES,
    TensorFile,
    TensorSpec,
    all_finite,
    as_float32,
    write_tensors,
)
from lingualift.errors import UserError

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def build(header, payload=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


def as_bytes(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("code", TORCH)
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4), (2, 1, 3)])
def test_what_the_library_writes(tmp_path, code, shape):
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3).to(TORCH[code])
    (tmp_path / "x").write_bytes(save({"a": tensor, "b": tensor.clone()}, {"format": "pt"}))
    file = TensorFile(tmp_path / "x")
    assert file.metadata == {"format": "pt"}
    for name in "ab":
        assert file.specs[name] == TensorSpec(name, code, shape)
        assert file.read(name).tobytes() == as_bytes(tensor)


@pytest.mark.parametrize("code", TORCH)
def test_what_we_write_the_library_reads(tmp_path, code):
    shapes = {"b": (3, 5), "a": (), "c": (7,)}
    tensors = {name: (torch.randn(shape) * 3).to(TORCH[code]) for name, shape in shapes.items()}
    specs = [TensorSpec(name, code, shape) for name, shape in shapes.items()]
    arrays = (np.frombuffer(as_bytes(x), DTYPES[code]).reshape(x.shape) for x in tensors.values())
    digest = write_tensors(tmp_path / "x", specs, arrays)
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[name], x) for name, x in tensors.items())
    assert digest == hashlib.sha256((tmp_path / "x").read_bytes()).hexdigest()
    with safe_open(tmp_path / "x", "pt") as file:
        assert file.metadata() == {"format": "pt"}


HEADERS = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "length beyond the file": build({}, length=99),
    "huge length": build({}, length=2**63),
    "not JSON": build(b"{nope"),
    "not UTF-8": build(b"\xff\xfe{}"),
    "a list": build([]),
    "deep nesting": build(b"[" * 20_000),
    "a name twice": build(
        b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}", b"x" * 8
    ),
    "metadata of numbers": build({"__metadata__": {"a": 1}}),
    "metadata a list": build({"__metadata__": []}),
    "entry no object": build({"a": 3}),
    "no dtype": build({"a": {"shape": [2], "data_offsets": [0, 8]}}, b"x" * 8),
    "a key too many": build({"a": entry(more=1)}, b"x" * 8),
    "unknown dtype": build({"a": entry("F13")}, b"x" * 8),
    "dtype no text": build({"a": entry([])}, b"x" * 8),
    "negative shape": build({"a": entry(shape=(-2,))}, b"x" * 8),
    "shape of floats": build({"a": entry(shape=(2.0,))}, b"x" * 8),
    "shape of truths": build({"a": entry("U8", (True,), (0, 1))}, b"x"),
    "shape no list": build({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, b"x" * 8),
    "forty axes": build({"a": entry("U8", (1,) * 40, (0, 1))}, b"x"),
    "three offsets": build({"a": entry(offsets=(0, 8, 9))}, b"x" * 8),
    "offsets reversed": build({"a": entry(offsets=(8, 0))}, b"x" * 8),
    "offsets beyond": build({"a": entry(offsets=(8, 16))}, b"x" * 8),
    "wrong size": build({"a": entry(shape=(3,))}, b"x" * 8),
    "overlap": build({"a": entry(), "b": entry(offsets=(4, 12))}, b"x" * 12),
    "gap": build({"a": entry(), "b": entry(offsets=(12, 20))}, b"x" * 20),
    "bytes left over": build({"a": entry()}, b"x" * 9),
    "bytes missing": build({"a": entry()}, b"x" * 7),
    "invalid escape": build(rb'{"a\ud800":' + json.dumps(entry()).encode() + b"}", b"x" * 8),
    "letter of control": build(b'{"a\x01":' + json.dumps(entry()).encode() + b"}", b"x" * 8),
    "an infinite number of axes' length": build({"a": entry(shape=(0, 1e30), offsets=(0, 0))}),
    "digits without end": build(
        b'{"a":{"dtype":"F32","shape":[0,' + b"9" * 4000 + b'],"data_offsets":[0,0]}}'
    ),
    "more than numpy can hold": build({"a": entry(shape=(0, 2**63), offsets=(0, 0))}),
    "metadata twice": build(b'{"__metadata__":{"a":"1"},"__metadata__":{"a":"2"}}'),
    "a key of metadata twice": build(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "half a letter in the metadata": build(rb'{"__metadata__":{"a":"\ud800"}}'),
    "a dtype twice": build(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"x" * 8),
    "deep in an entry": build(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "astronomic shape": build({"a": entry("U8", (2**62, 2**62), (0, 2**124))}),
}


@pytest.mark.parametrize("case", HEADERS)
def test_damage_is_refused(tmp_path, case):
    (tmp_path / "x").write_bytes(HEADERS[case])
    with refused("/x", mend="restore"):
        TensorFile(tmp_path / "x")


def test_a_header_over_the_limit(tmp_path):
    (tmp_path / "x").write_bytes(build({}, length=32_000_001) + b" " * 16)
    with (tmp_path / "x").open("ab") as file:
        file.truncate(32_000_100)
    with refused("/x", "32000001"):
        TensorFile(tmp_path / "x")


@given(st.binary(max_size=200), st.integers(0, 130))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_we_accept_nothing_that_the_library_refuses(tmp_path_factory, noise, place):
    whole = save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)})
    data = whole[:place] + noise + whole[place + len(noise) :]
    path = tmp_path_factory.mktemp("x", numbered=True) / "x"
    path.write_bytes(data)
    try:
        file = TensorFile(path)
    except UserError:
        return
    try:
        found = load(data)
    except SafetensorError as error:
        raise AssertionError(data) from error
    assert found.keys() == file.specs.keys()


SIZES = st.integers(0, 3) | st.sampled_from([-1, 2**31, 2**63, 10**30, 1.0, 1e30, True, None, "2"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "F4", "F13", "f32", 5, None]),
        "shape": st.lists(SIZES, max_size=3) | st.sampled_from([None, 2, "x", [[]]]),
        "data_offsets": st.tuples(SIZES, SIZES).map(list) | st.lists(SIZES, max_size=3),
    },
    optional={"more": st.none()},
)
PLAIN = st.builds(
    lambda code, size, begin: entry(code, (size,), (begin, begin + size * {"U8": 1, "F32": 4}[code])),
    st.sampled_from(["U8", "F32"]),
    st.integers(0, 3),
    st.sampled_from([0, 0, 1, 4]),
)
PAIRS = st.lists(
    st.tuples(
        st.sampled_from(
            ['"a"', '"b"', r'"\u0061"', r'"\ud800"', r'"\ud83d\ude00"', '"a\x01"', "a", '"__metadata__"']
        ),
        (PLAIN | ENTRIES | st.dictionaries(st.sampled_from("ab"), st.sampled_from(["x", 1, None]))).map(
            lambda value: json.dumps(value)
        ),
    ),
    max_size=3,
)


@given(PAIRS, st.integers(0, 16), st.sampled_from(["", " ", "\n", "x", "\x00"]))
@settings(max_examples=600, deadline=None, derandomize=True)
def test_no_header_is_taken_that_the_library_refuses(tmp_path_factory, pairs, size, after):
    text = "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}" + after
    data = build(text.encode(), b"\x00" * size)
    path = tmp_path_factory.mktemp("x", numbered=True) / "x"
    path.write_bytes(data)
    try:
        file = TensorFile(path)
    except UserError:
        return
    with safe_open(path, "numpy") as theirs:
        assert set(theirs.keys()) == set(file.specs)
        for name in file.specs:
            assert file.read(name).tobytes() == b"\x00" * file.specs[name].nbytes


@pytest.mark.parametrize("last", ["n119999", "n120000"])
def test_a_header_of_very_many_names_takes_no_time(tmp_path, last):
    row = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    text = "{" + ",".join(f'"{name}":{row}' for name in [*(f"n{i}" for i in range(120_000)), last]) + "}"
    (tmp_path / "x").write_bytes(build(text.encode()))
    began = time.process_time()
    if last == "n119999":
        with refused("/x", "'n119999'", "twice"):
            TensorFile(tmp_path / "x")
    else:
        assert len(TensorFile(tmp_path / "x").specs) == 120_001
    assert time.process_time() - began < 5  # a look at each for each takes minutes


def test_a_missing_file_and_a_missing_tensor(tmp_path):
    with refused("/none", "No such file", mend="path"):
        TensorFile(tmp_path / "none")
    (tmp_path / "x").write_bytes(save({"a": torch.ones(2)}))
    with refused("/x", "no tensor 'b'"):
        TensorFile(tmp_path / "x").read("b")


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16"])
def test_finiteness(code):
    ones = np.ones(100, DTYPES[code])
    assert all_finite(ones)
    assert all_finite(np.full(1000, 6e4).astype(DTYPES[code])), "a sum that overflows hides nothing"
    for value in (np.nan, np.inf, -np.inf):
        bad = ones.copy()
        bad[37] = value
        assert not all_finite(bad)
    pair = ones.copy()
    pair[:2] = np.inf, -np.inf
    assert not all_finite(pair)


def test_a_sum_that_overflows_float32_is_still_finite():
    assert all_finite(np.full(4, 3e38, np.float32))


def test_bfloat16_widens_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    found = as_float32(bits.view(DTYPES["BF16"]))
    expected = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(found, expected, equal_nan=True)
    single = np.ones(3, np.float32)
    assert as_float32(single) is single


@pytest.mark.parametrize(
    ("specs", "arrays"),
    [
        ([TensorSpec("a", "F32", (2,))], [np.ones(3, np.float32)]),
        ([TensorSpec("a", "F32", (2,))], [np.ones(2, np.float64)]),
        ([TensorSpec("a", "F32", (2,))], []),
        ([TensorSpec("a", "F32", (2,))], [np.ones(2, np.float32)] * 2),
        ([TensorSpec("a", "F32", (2,))] * 2, [np.ones(2, np.float32)] * 2),
    ],
)
def test_a_stream_that_is_not_as_announced(tmp_path, specs, arrays):
    with pytest.raises(ValueError, match=r"announced|argument"):
        write_tensors(tmp_path / "x", specs, arrays)
