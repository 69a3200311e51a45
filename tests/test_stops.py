"""Texts and tokens at which outputs stop: what comes out is what would have come without them, cut at one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, chain_t5, path_table, random_pair
from test_cli import make_tokenizer
from test_decoding_oracle import METHODS, random_case
from test_families import V, random_model

from kdtw_fast import NativeModel, Owner, SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.selftest.agreement import as_array


class Letters:
    """A tokenizer of which every id is a letter, and some are two: texts end inside of tokens."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        skipped = (0, 1, 2) if skip_special_tokens else ()
        return "".join(chr(97 + i % 7) * (1 + i % 2) for i in ids if i not in skipped)

    def batch_decode(self, rows: Any, skip_special_tokens: bool = True) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]

    def get_vocab(self) -> dict[str, int]:
        return {}


def cut_at(ids: list[int], texts: list[str], tokens: list[int], forced: int) -> int | None:
    """How many of the outputs remain, the plain way; None = all."""
    for count in range(forced + 1, 1 + len(ids)):
        if any(stop in Letters().decode(ids[forced:count]) for stop in texts) or ids[count - 1] in tokens:
            return count
    return None


@pytest.mark.parametrize("method", METHODS)
def test_an_output_is_cut_where_it_stops(method: str) -> None:
    """Tokens, owners, teachers and log-probabilities; also inside of drafts that were accepted, and of a last one."""
    stopped = inside = 0
    for index in range(40):
        decoder, _, settings, text = random_case(method, ["noisy", "swapped", "same"][index % 3], 700 + index)
        rng = np.random.default_rng([METHODS.index(method), index])
        vocab = min(model.vocab_size for model in (decoder.model, *decoder.teachers))
        decoder.tokenizer = Letters()
        settings = settings | {"output_logprobs": True, "min_new_tokens": 0}
        whole = decoder.generate(**settings)
        texts = ["".join(chr(97 + i) for i in rng.integers(0, 7, size=2)) for _ in range(int(rng.integers(0, 3)))]
        tokens = rng.integers(3, vocab - 1, size=int(rng.integers(0 if texts else 1, 4))).tolist()
        out = decoder.generate(**settings, stop=texts, stop_token_ids=tokens)
        for r, ids in enumerate(whole.output_ids):
            count = cut_at(ids, texts, tokens, len(settings.get("forced_tokens", ())))
            kept = len(ids) if count is None else count
            assert out.output_ids[r] == ids[:kept], text
            assert (out.finish_reasons[r] == "stop") == (count is not None)
            stopped += count is not None
            ends_draft = kept < len(ids) and int(whole.owners[r, whole.spans[r]][kept]) == Owner.ACCEPTED
            inside += count is not None and ends_draft
            for name in ("owners", "teacher_index", "student_logprobs", "teacher_logprobs"):
                mine, others = (as_array(getattr(each, name))[r] for each in (out, whole))
                mine, others = mine[out.spans[r]], others[whole.spans[r]][:kept]
                if name == "teacher_logprobs":  # no pass reads what is written last, where it stops before one would
                    others = np.where(np.isnan(mine), mine, others)
                np.testing.assert_array_equal(mine, others, text)
            owners = out.owners[r, out.spans[r]].tolist()
            assert out.accepted[r] == owners.count(Owner.ACCEPTED)
            written = sum(owner in (Owner.TEACHER, Owner.CORRECTED) for owner in owners)
            assert float(out.teacher_fraction[r]) == pytest.approx(written / kept)
            if method not in ("plain",):
                assert out.drafted[r] == out.rolled_back[r] + sum(o in (Owner.STUDENT, Owner.ACCEPTED) for o in owners)
    assert stopped > 10
    assert inside > 0 or not set(METHODS[3:6]) & {method}


def test_nothing_is_written_behind_a_stop_of_what_needs_no_check() -> None:
    """Rows stop at once: no pass reads what would be cut."""
    decoder = SingleModelDecoder(chain_t5(path_table([2, 3, 4, 5, 6, 7, 8, 9], 20)), tokenizer=Letters())
    for stop in ({"stop_token_ids": [4]}, {"stop": "ddee"[:3]}):
        out = decoder.generate([[5, EOS], [6, EOS]], max_new_tokens=8, output_reads=True, **stop)
        assert out.finish_reasons == ["stop", "stop"] and out.student_passes == int(out.lengths[0])


def test_texts_are_cut_where_the_stop_begins() -> None:
    tokenizer = make_tokenizer()
    ids = {word: tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("this", "package", "holds", "docs")}
    path = [*ids.values(), EOS]
    decoder = SingleModelDecoder(chain_t5(path_table(path, len(tokenizer))), tokenizer=tokenizer)
    assert decoder("die doku").texts == ["this package holds docs"]
    for stop, text, count in [
        ("pack", "this ", 2),
        (" package", "this", 2),
        (["holds", "package h"], "this ", 3),
        ("age hol", "this pack", 3),
        ("nothing", "this package holds docs", 5),
        (["this"], "", 1),
    ]:
        out = decoder("die doku", stop=stop)
        assert (out.texts, int(out.lengths[0])) == ([text], count), stop
        streamed = next(iter(decoder.stream(["die doku"], stop=stop)))
        assert (streamed.texts, streamed.output_ids) == ([text], out.output_ids)
        seen: list[int] = []
        decoder("die doku", stop=stop, streamer=lambda r, p, token, owner, seen=seen: seen.append(token))
        assert seen == out.output_ids[0]
    out = decoder("die doku", stop_token_ids=[ids["holds"]])
    assert (out.texts, out.output_ids) == (["this package"], [path[:3]])
    out = decoder("die doku", stop_token_ids=[ids["docs"]], stop="package h")
    assert (out.texts, out.output_ids) == (["this "], [path[:3]])


def test_stop_tokens_are_ends_of_transformers() -> None:
    """Also what min_new_tokens does to them."""
    stopped = 0
    for kind in ("t5", "llama"):
        for seed in range(10):
            model = random_model(kind, seed)
            rng = np.random.default_rng(seed)
            source = rng.integers(3, V, size=4).tolist()
            tokens = rng.integers(3, V, size=8).tolist()
            settings = {"max_new_tokens": 12, "min_new_tokens": int(rng.integers(0, 5))}
            theirs = model.generate(
                torch.tensor([source]), do_sample=False, eos_token_id=[1, *tokens], pad_token_id=0, **settings
            )[0].tolist()[1 if kind == "t5" else 4 :]
            decoder = SingleModelDecoder(model)
            out = decoder.generate([source], stop_token_ids=tokens, **settings)
            assert out.output_ids[0] == theirs
            stopped += out.finish_reasons == ["stop"]
    assert stopped >= 5


def test_lossless_speculative_decoding_stops_as_the_teacher_alone() -> None:
    student, teacher = (NativeModel.from_model(random_model("llama", seed)) for seed in (1, 2))
    tokenizer: Any = Letters()
    alone = SingleModelDecoder(teacher, tokenizer=tokenizer)
    drafts = [SpeculativeDecoder(student, teacher, draft_length=k, tokenizer=tokenizer) for k in (1, 5, 9)]
    for seed in range(12):
        rng = np.random.default_rng(seed)
        rows = [rng.integers(3, V, size=4).tolist() for _ in range(3)]
        stops = {"stop": "".join(chr(97 + i) for i in rng.integers(0, 7, size=2)), "max_new_tokens": 15}
        expected = alone.generate(rows, **stops)
        for decoder in drafts:
            out = decoder.generate(rows, **stops)
            assert (out.output_ids, out.finish_reasons) == (expected.output_ids, expected.finish_reasons)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"stop": ""}, ValueError, "stop must be texts that are not empty"),
        ({"stop": ["a", ""]}, ValueError, "stop must be texts that are not empty"),
        ({"stop": [4]}, TypeError, "stop must be texts"),
        ({"stop": 4}, TypeError, "stop must be a text or a list of texts"),
        ({"stop": "a"}, ValueError, "stop needs a tokenizer; pass tokenizer=… to the decoder"),
        ({"stop_token_ids": 4}, TypeError, "stop_token_ids must be a list of ids"),
        ({"stop_token_ids": [99]}, ValueError, "stop_token_ids's id must be in 0..42, got 99"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], error: type[Exception], said: str) -> None:
    decoder = SingleModelDecoder(random_pair("noisy", 0, 43)[1])
    with pytest.raises(error) as raised:
        decoder.generate([[5, EOS]], **options)
    assert said in str(raised.value)


def test_an_exception_of_the_tokenizer_comes_out_and_leaves_the_decoder_usable() -> None:
    class Broken(Letters):
        def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
            raise OSError("broken")

    decoder = SingleModelDecoder(random_pair("noisy", 0, 43)[1], tokenizer=Broken())
    with pytest.raises(OSError, match="broken"):
        decoder.generate([[5, EOS]], stop="a")
    assert decoder.generate([[5, EOS]]).lengths[0] > 0


def test_devices_stop_too(simulated: str) -> None:
    decoder = SingleModelDecoder(chain_t5(path_table([2, 3, 4, 5, 6, EOS], 20)), device=simulated, tokenizer=Letters())
    assert decoder.generate([[5, EOS]], stop_token_ids=[4]).output_ids == [[2, 3, 4]]
    text = Letters().decode([3, 4])
    assert decoder.generate([[5, EOS]], stop=text).output_ids == [[2, 3, 4]]
