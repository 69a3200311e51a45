"""Packed weights in a file: the same bits, made again when anything they came from changes, never half written."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import EOS, SHAPES, START, random_t5, with_tau
from safetensors.torch import load_file, save_file

import kdtw_fast
from kdtw_fast import NativeT5, SingleModelDecoder, model, packed, weights
from kdtw_fast.families import describe
from kdtw_fast.packed import PackedFile
from kdtw_fast.weights import read_folder, tensor_reader

VOCAB = 43
TOKENS = [START, 5, 9, 30, 7]


def logits(native: NativeT5) -> bytes:
    return native.decode_logits([4, 8, EOS], TOKENS, from_teacher=[False, True, False, True, True]).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    student = with_tau(random_t5(SHAPES[1], VOCAB, seed=4), VOCAB - 1, beta_scale=1.0, seed=2)
    student.save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A call after which no tensor of a checkpoint can be read."""

    class Sealed:
        def __init__(self, file: Any):
            self._file = file

        def __getattr__(self, name: str) -> Any:
            assert name != "get_tensor", "a tensor was to be read"
            return getattr(self._file, name)

        def get_tensor(self, key: str) -> Any:
            raise AssertionError(f"tensor {key} was read")

    real = weights.safe_open
    return lambda: monkeypatch.setattr(weights, "safe_open", lambda *args, **options: Sealed(real(*args, **options)))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=lambda shape: f"d{shape.d_model}")
def test_weights_from_the_file_are_the_same(shape: Any, dtype: str, tmp_path: Path, sealed: Callable[[], None]) -> None:
    """At the first load and at the next, which reads no tensor and packs nothing."""
    with_tau(random_t5(shape, VOCAB, seed=3), VOCAB - 1, beta_scale=1.0, seed=2).save_pretrained(tmp_path)
    plain = NativeT5.from_pretrained(tmp_path, dtype=dtype)
    assert not list(tmp_path.glob("*.packed")) and not list(tmp_path.glob(".*"))
    first = NativeT5.from_pretrained(tmp_path, dtype=dtype, cache=True)
    sealed()
    second = NativeT5.from_pretrained(tmp_path, dtype=dtype, cache=True)
    assert logits(first) == logits(second) == logits(plain)
    assert first.num_bytes == second.num_bytes == plain.num_bytes
    assert second.dtype == dtype and second.tau_token_id == VOCAB - 1
    assert [file.name for file in tmp_path.glob(".*")] == [f".kdtw_fast-{dtype}.packed"]
    outputs = [
        SingleModelDecoder(m).generate([[5, 6, EOS]], max_new_tokens=9).sequences.tolist() for m in (plain, second)
    ]
    assert outputs[0] == outputs[1]


def test_all_simd_levels_pack_the_same_bytes(folder: Path) -> None:
    before = kdtw_fast.build_info()["simd"]
    try:
        for dtype in ("fp32", "bf16", "int8"):
            packed = []
            for level in kdtw_fast.build_info()["simd_levels"]:
                kdtw_fast._core.set_simd(level)
                packed.append([blob.tobytes() for blob in NativeT5.from_pretrained(folder, dtype=dtype).core.blobs])
            assert all(blobs == packed[0] for blobs in packed)
    finally:
        kdtw_fast._core.set_simd(before)


def test_the_file_is_mapped_and_let_go(folder: Path) -> None:
    def mapped() -> bool:
        return ".kdtw_fast-int8.packed" in Path("/proc/self/maps").read_text()

    native = NativeT5.from_pretrained(folder, dtype="int8", cache=True)
    assert mapped()
    assert all(not blob.flags.owndata and not blob.flags.writeable for blob in native.core.blobs)
    decoder = SingleModelDecoder(native)
    del native
    gc.collect()
    assert mapped() and decoder.generate([[5, EOS]], max_new_tokens=3).sequences is not None
    del decoder
    gc.collect()
    assert not mapped()


def change_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["shared.weight"][5, 3] += 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["scale_decoder_outputs"] = True
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("change", [change_weight, change_config])
def test_what_changed_is_packed_again(folder: Path, change: Callable[[Path], None]) -> None:
    old = logits(NativeT5.from_pretrained(folder, dtype="bf16", cache=True))
    change(folder)
    new = logits(NativeT5.from_pretrained(folder, dtype="bf16", cache=True))
    assert new != old and new == logits(NativeT5.from_pretrained(folder, dtype="bf16"))


@pytest.mark.parametrize("packed_before", [False, True])
def test_a_checkpoint_replaced_while_it_is_read_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed_before: bool
) -> None:
    """Old weights are not written under the new file's hash, nor is a new file's cache joined with an old config."""
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    change_weight(newer)
    if packed_before:
        NativeT5.from_pretrained(newer, dtype="bf16", cache=True)
        os.replace(newer / ".kdtw_fast-bf16.packed", folder / ".kdtw_fast-bf16.packed")
    real = model.read_generation

    def replaced(*args: Any) -> Any:
        os.replace(newer / "model.safetensors", folder / "model.safetensors")
        return real(*args)

    monkeypatch.setattr(model, "read_generation", replaced)
    with pytest.raises(OSError, match=r"changed while its model was loaded.*model\.safetensors"):
        NativeT5.from_pretrained(folder, dtype="bf16", cache=True)
    monkeypatch.setattr(model, "read_generation", real)
    assert packed_before or not list(folder.glob(".*.packed"))
    kept = logits(NativeT5.from_pretrained(folder, dtype="bf16", cache=True))
    assert kept == logits(NativeT5.from_pretrained(folder, dtype="bf16"))


def test_special_tokens_of_the_generation_config_choose_anew(folder: Path) -> None:
    """Of int8, whose probe reads them."""
    files = {dtype: folder / f".kdtw_fast-{dtype}.packed" for dtype in ("bf16", "int8")}

    def load() -> dict[str, int]:
        for dtype in files:
            NativeT5.from_pretrained(folder, dtype=dtype, cache=True)
        return {dtype: path.stat().st_mtime_ns for dtype, path in files.items()}

    first = load()
    assert load() == first
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    second = load()
    assert second["bf16"] == first["bf16"] and second["int8"] > first["int8"]


def test_a_copy_with_other_times_is_the_same_checkpoint(folder: Path, sealed: Callable[[], None]) -> None:
    expected = logits(NativeT5.from_pretrained(folder, cache=True))
    for file in (folder / "config.json", folder / "model.safetensors"):
        os.utime(file, (1, 1))
    sealed()
    assert logits(NativeT5.from_pretrained(folder, cache=True)) == expected


def test_one_file_for_one_way_to_pack(folder: Path, tmp_path: Path) -> None:
    """A path that held another format is written anew; so is one that was made with more config fields ignored."""
    path = tmp_path / "weights"
    for dtype in ("int8", "bf16", "int8"):
        native = NativeT5.from_pretrained(folder, dtype=dtype, cache=path)
        assert native.dtype == dtype and logits(native) == logits(NativeT5.from_pretrained(folder, dtype=dtype))
    config = json.loads((folder / "config.json").read_text()) | {"novelty": 3}
    (folder / "config.json").write_text(json.dumps(config))
    NativeT5.from_pretrained(folder, cache=path, ignore_config_fields=["novelty"])
    with pytest.raises(ValueError, match="novelty"):
        NativeT5.from_pretrained(folder, cache=path)


def test_a_broken_file_is_written_anew(folder: Path) -> None:
    expected = logits(NativeT5.from_pretrained(folder, dtype="int8", cache=True))
    path = folder / ".kdtw_fast-int8.packed"
    whole = path.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]  # in the header
    longest = whole[:8] + b"\xff" * 8 + whole[16:]
    for broken in (b"", whole[:7], whole[:60], whole[: len(whole) // 2], whole[:-1], whole + b"x", flipped, longest):
        path.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert logits(NativeT5.from_pretrained(folder, dtype="int8", cache=True)) == expected
        assert path.read_bytes() == whole
    assert len(list(folder.glob(".kdtw*"))) == 1


def test_a_file_that_cannot_be_written_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "weights", folder / "config.json" / "weights", tmp_path):
        with pytest.raises(OSError, match="packed weights cannot be written") as caught:
            NativeT5.from_pretrained(folder, cache=path)
        assert caught.value.filename == str(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["student"]


def test_shards(tmp_path: Path, sealed: Callable[[], None]) -> None:
    random_t5(SHAPES[3], VOCAB, seed=6).save_pretrained(tmp_path, max_shard_size="10KB")
    expected = NativeT5.from_pretrained(tmp_path, cache=True).decode_logits([4, EOS], TOKENS)
    sealed()
    again = NativeT5.from_pretrained(tmp_path, cache=True).decode_logits([4, EOS], TOKENS)
    np.testing.assert_array_equal(again, expected)


def test_blobs_that_do_not_fit_are_refused(folder: Path) -> None:
    native = NativeT5.from_pretrained(folder, dtype="int8")
    config, tensors, _, _ = read_folder(folder, "little")
    read = tensor_reader(describe(config, tensors, "little"), tensors, "little", {})
    blobs = native.core.blobs
    off = np.zeros(blobs[0].size + 128, np.uint8)
    off = off[-off.ctypes.data % 64 + 4 :][: blobs[0].size]
    cases = [(blobs[:-1], f"only {len(blobs) - 1}"), ([blobs[0][:-64], *blobs[1:]], str(blobs[0].size - 64))]
    cases.append(([off, *blobs[1:]], "cache line"))
    for bad, message in cases:
        with pytest.raises(ValueError, match=message):
            kdtw_fast._core.Transformer(native.spec, "cpu", read, bad)
    again = kdtw_fast._core.Transformer(native.spec, "cpu", read, blobs)
    assert [blob.tobytes() for blob in again.blobs] == [blob.tobytes() for blob in blobs]


CUT = """
import os, signal, sys
import numpy as np
from kdtw_fast import NativeT5, SingleModelDecoder, _core

folder = sys.argv[1]
path = folder + "/.kdtw_fast-fp32.packed"

def refused(call):
    try:
        call()
    except OSError as error:
        assert path in str(error) and "cut or changed" in str(error), error
        return True
    return False

native = NativeT5.from_pretrained(folder, cache=True)
decoder = SingleModelDecoder(native)
whole = decoder.generate([[5, 6, 1]], max_new_tokens=9, min_new_tokens=9).sequences.tolist()
written = []

def cut(row, position, token, owner):
    written.append(token)
    if position == 2:
        os.truncate(path, 0)

assert refused(lambda: decoder.generate([[5, 6, 1]], max_new_tokens=9, min_new_tokens=9, streamer=cut))
assert written == whole[0][1 : 1 + len(written)] and len(written) < 9, "a token that no weights made was handed out"
for call in (lambda: decoder.generate([[5, 1]]), lambda: native.decode_logits([5, 1], [0])):
    assert refused(call)
again = SingleModelDecoder(NativeT5.from_pretrained(folder, cache=True))
assert again.generate([[5, 6, 1]], max_new_tokens=9, min_new_tokens=9).sequences.tolist() == whole

file = _core.MappedFile(path)  # written over, with the same length
with open(path, "r+b") as other:
    other.write(b"another")
os.utime(path, (1, 1))
assert refused(file.check)
print("zeros", int(np.abs(_core.MappedFile(path).bytes).sum() > 0), flush=True)
import mmap
with open(folder + "/other", "w+b") as other:  # what is not ours ends the process as before
    other.write(bytes(8192))
    other.flush()
    pages = mmap.mmap(other.fileno(), 8192)
    os.truncate(other.name, 0)
    print(pages[5000])
"""


def test_a_file_that_is_cut_while_it_is_in_use(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CUT, str(folder)], capture_output=True, text=True)
    assert done.stdout == "zeros 1\n", done.stderr
    assert done.returncode == -signal.SIGBUS


def test_who_asks_at_once_packs_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = PackedFile.write

    def counted(self: PackedFile, *args: Any) -> None:
        written.append(self.path)
        time.sleep(0.1)
        write(self, *args)

    monkeypatch.setattr(PackedFile, "write", counted)
    with ThreadPoolExecutor(4) as pool:
        models = list(pool.map(lambda _: NativeT5.from_pretrained(folder, cache=True), range(4)))
    assert len(written) == 1 and len({logits(model) for model in models}) == 1
    assert not [name for name in os.listdir(folder) if "lock" in name]


def test_a_lock_that_is_not_let_go_holds_nobody_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_LONGEST_WAIT", 0.2)
    with (folder / "config.json").open("rb") as config:
        fcntl.flock(config, fcntl.LOCK_EX)
        NativeT5.from_pretrained(folder, cache=True)
    assert list(folder.glob(".*.packed"))
