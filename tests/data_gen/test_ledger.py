"""The demo world: questions, reasoner, tokenizer and training batches."""

import itertools
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_gen.ledger.__main__ import main
from data_gen.ledger.questions import (
    MODULUS,
    SPLITS,
    TERMS,
    draw_numbers,
    iter_questions,
    question_text,
    split_of,
)
from data_gen.ledger.reasoner import Odds, Reasoner
from data_gen.ledger.stream import TraceStream
from data_gen.ledger.tokenizer import (
    IM_END,
    VOCABULARY,
    build_tokenizer,
    encode_array,
    prompt_text,
)
from step_infer.client.answers import extract_boxed
from step_infer.client.prompt import SYSTEM_PROMPT, chat_prompt
from step_infer.errors import InputError
from step_infer.scorer.boundary import BoundaryRule

NO_MISTAKES = Odds(forget=0, forget_15=0, forget_17=0, slip=0, false_alarm=0)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def some_traces(count, seed=0, odds=None):
    rng = random.Random(seed)
    reasoner = Reasoner(odds)
    for _ in range(count):
        numbers = draw_numbers("test", rng)
        yield numbers, reasoner.trace(numbers, rng)


def standing_steps(text):
    """Read a trace back: the last version of each step as (first, second, result)."""
    steps = {}
    thinking = text.split("</think>")[0]
    for paragraph in thinking.removesuffix("\n\n").split("\n\n"):
        if redo := re.fullmatch(r"Wait, S(\d+) is wrong\. Redo S\1\.", paragraph):
            assert int(redo[1]) in steps
            steps = {k: v for k, v in steps.items() if k < int(redo[1])}
            continue
        head, *columns, result = paragraph.split("\n")
        number, x, y = re.fullmatch(r"S(\d+) (\d{3})\+(\d{3})", head).groups()
        carry, written = "0", ""
        for column, a, b in zip(columns, reversed(x), reversed(y), strict=True):
            read = re.fullmatch(r"(\d)\+(\d)\+(\d)=(\d+) w(\d) c(\d)", column).groups()
            assert read[:3] == (a, b, carry)
            assert int(a) + int(b) + int(carry) == int(read[3])
            carry, written = read[5], read[4] + written
        assert result == f"={written}"
        assert int(number) == len(steps) + 1
        steps[int(number)] = (int(x), int(y), int(written))
    return [steps[k] for k in sorted(steps)]


def test_splits_share_no_question_whatever_the_seed():
    seen = {}
    for split, seed in itertools.product(SPLITS, range(3)):
        for question in itertools.islice(iter_questions(split, seed), 300):
            assert seen.setdefault(question.numbers, split) == split
            assert split_of(question.numbers) == split


def test_every_split_has_its_share_of_all_questions():
    rng = random.Random(0)
    splits = [split_of([rng.randrange(100, 1000) for _ in range(TERMS)]) for _ in range(4000)]
    shares = {split: splits.count(split) / len(splits) for split in SPLITS}
    assert shares["test"] == pytest.approx(4 / 64, abs=0.02)
    assert shares["scorer-train"] == pytest.approx(8 / 64, abs=0.02)


def test_questions_are_the_same_for_the_same_seed_only_and_never_repeat():
    first = list(itertools.islice(iter_questions("test", 5), 500))
    assert first == list(itertools.islice(iter_questions("test", 5), 500))
    assert first[0].numbers != next(iter_questions("test", 6)).numbers
    assert len({q.numbers for q in first}) == len({q.id for q in first}) == 500


def test_answer_is_the_sum_without_leading_zeros():
    for question in itertools.islice(iter_questions("train"), 300):
        assert question.answer == str(sum(question.numbers) % MODULUS)


def test_unknown_split_names_the_known_ones():
    with pytest.raises(InputError, match="train, scorer-train, test, found 'dev'"):
        next(iter_questions("dev"))


def test_command_writes_questions_as_jsonl(tmp_path, capsys):
    out = tmp_path / "q.jsonl"
    with pytest.raises(SystemExit) as exit_info:
        main(["--split", "test", "--count", "7", "--seed", "3", "--out", str(out)])
    assert exit_info.value.code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    expected = list(itertools.islice(iter_questions("test", 3), 7))
    assert [line["id"] for line in lines] == [q.id for q in expected]
    assert [line["question"] for line in lines] == [q.text for q in expected]
    assert [line["answer"] for line in lines] == [q.answer for q in expected]
    assert "7 test questions" in capsys.readouterr().out


@pytest.mark.parametrize("bad", [["--count", "0"], ["--split", "dev"], ["--count", "many"]])
def test_command_answers_a_bad_flag_with_one_line_and_status_2(tmp_path, capsys, bad):
    with pytest.raises(SystemExit) as exit_info:
        main(["--out", str(tmp_path / "q.jsonl"), *bad])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_trace_reads_back_and_ends_in_the_answer_of_its_own_steps():
    for numbers, trace in some_traces(400):
        steps = standing_steps(trace.text)
        assert [y for _, y, _ in steps] == list(numbers[1:])
        assert steps[0][0] == numbers[0]
        assert all(x == before[2] for (x, _, _), before in zip(steps[1:], steps, strict=False))
        assert extract_boxed(trace.text) == str(trace.answer) == str(steps[-1][2])
        assert trace.correct == (trace.answer == sum(numbers) % MODULUS)
        assert trace.redos == trace.text.count("Wait") <= Odds().max_redos


def test_reasoner_without_mistakes_is_always_right_and_never_goes_back():
    for _, trace in some_traces(50, odds=NO_MISTAKES):
        assert trace.correct
        assert trace.redos == 0


def test_carries_are_forgotten_as_often_as_the_odds_say():
    forgot = {17: [0, 0], 15: [0, 0], 10: [0, 0]}
    odds = Odds(slip=0, careful=1)
    for _, trace in some_traces(1500, odds=odds):
        for step in re.findall(r"S\d+ .*\n(.*)\n(.*)\n.*\n=", trace.text):
            for column in step:
                total, carry = re.search(r"=(\d+) w\d c(\d)", column).groups()
                kind = next((k for k in forgot if int(total) >= k), None)
                if kind:
                    forgot[kind][0] += carry == "0"
                    forgot[kind][1] += 1
    shares = {kind: hits / count for kind, (hits, count) in forgot.items()}
    assert shares[17] == pytest.approx(odds.forget_17, abs=0.03)
    assert shares[15] == pytest.approx(odds.forget_15, abs=0.03)
    assert shares[10] == pytest.approx(odds.forget, abs=0.01)


def test_reasoner_is_deterministic():
    first = [trace for _, trace in some_traces(20, seed=4)]
    assert first == [trace for _, trace in some_traces(20, seed=4)]
    assert first != [trace for _, trace in some_traces(20, seed=5)]


def test_world_is_hard_enough_to_learn_from_and_majority_helps():
    rng = random.Random("ledger/statistics/0")
    reasoner = Reasoner()
    questions = list(itertools.islice(iter_questions("test"), 300))
    tokens = {True: [], False: []}
    by_majority = with_a_right_trace = 0
    for question in questions:
        traces = [reasoner.trace(question.numbers, rng) for _ in range(64)]
        for trace in traces:
            tokens[trace.correct].append(len(encode_array(trace.text)) + 1)  # one ends the turn
        counts = Counter(trace.answer for trace in traces)
        tied = [answer for answer, count in counts.items() if count == max(counts.values())]
        by_majority += (int(question.answer) in tied) / len(tied)
        with_a_right_trace += any(trace.correct for trace in traces)
    both = tokens[True] + tokens[False]
    assert 0.45 < len(tokens[True]) / len(both) < 0.62
    assert 0.85 < by_majority / len(questions) < 0.98
    assert with_a_right_trace / len(questions) > 0.97
    assert np.mean(tokens[False]) > np.mean(tokens[True])
    assert 800 < np.mean(both) < 1000


TEXTS = [
    "",
    "\n\n\n",
    "\n\n\n\n",
    " a  b .",
    "<think>\n\n</think>\n",
    "\\boxed{7}<|im_end|>",
    "".join(map(chr, range(32, 127))),
    SYSTEM_PROMPT,
]


def test_both_tokenizers_agree_and_decode_restores_the_text(tokenizer):
    traces = [
        prompt_text(question_text(numbers), system) + trace.text + IM_END
        for (numbers, trace), system in zip(some_traces(60), itertools.cycle(["", SYSTEM_PROMPT]))
    ]
    for text in [*TEXTS, *traces]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == encode_array(text).tolist()
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["é", "\t\r\x07", "x√2\n\n≈😀", "\x00\x01\x7f"])
def test_other_characters_are_unknown_one_by_one(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == encode_array(text).tolist()
    assert tokenizer.unk_token_id in ids
    assert tokenizer.encode("√<", add_special_tokens=False)[-1] != tokenizer.unk_token_id


def test_random_ascii_survives_both_tokenizers(tokenizer):
    rng = random.Random(0)
    pieces = [*VOCABULARY[:-1], *"<|>/n\n\n\n"]
    for _ in range(200):
        text = "".join(rng.choices(pieces, k=30))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == encode_array(text).tolist()
        assert tokenizer.decode(ids) == text


def test_marks_are_single_tokens_and_thinking_marks_stay_in_the_text(tokenizer):
    for mark in ("\n\n", "<think>", "</think>", "<|im_start|>", "<|im_end|>"):
        assert len(tokenizer.encode(mark, add_special_tokens=False)) == 1
    ids = tokenizer.encode("a</think>\n\nb<|im_end|>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a</think>\n\nb"
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) == len(VOCABULARY)


@pytest.mark.parametrize("system", ["", SYSTEM_PROMPT])
def test_chat_template_makes_the_training_prompt(tokenizer, system):
    assert (
        chat_prompt(tokenizer, "1+2", system) == encode_array(prompt_text("1+2", system)).tolist()
    )
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "1+2"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == prompt_text("1+2")


def test_boundaries_are_the_ends_of_paragraphs(tokenizer):
    rule = BoundaryRule.for_tokenizer(tokenizer)
    for _, trace in some_traces(20):
        ids = encode_array(trace.text + IM_END).tolist()
        thinking = trace.text.split("</think>")[0]
        assert len(rule.positions(ids)) == thinking.count("\n\n")


def first_batches(count, **settings):
    return list(itertools.islice(iter(TraceStream(8192, **settings)), count))


def same(batches, others):
    return all(
        a.ids_BT.equal(b.ids_BT) and a.prompt_B.equal(b.prompt_B) and a.length_B.equal(b.length_B)
        for a, b in zip(batches, others, strict=True)
    )


def test_stream_repeats_for_a_seed_and_differs_between_seeds_and_ranks():
    batches = first_batches(3, seed=1)
    assert same(batches, first_batches(3, seed=1))
    assert not same(batches, first_batches(3, seed=2))
    assert not same(batches, first_batches(3, seed=1, rank=1))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 5])
def test_stream_continues_where_it_was_cut_off(workers, start):
    def batches(count, start):
        stream = TraceStream(4096, start=start)
        return list(
            itertools.islice(DataLoader(stream, batch_size=None, num_workers=workers), count)
        )

    assert same(batches(7, 0)[start:], batches(7 - start, start))


def test_batches_hold_whole_prompts_and_responses_within_the_budget(tokenizer):
    systems = 0
    for batch in first_batches(20):
        ids_BT = batch.ids_BT.numpy()
        assert ids_BT.dtype == np.uint8
        assert ids_BT.size <= 8192
        for ids_T, prompt, length in zip(ids_BT, batch.prompt_B, batch.length_B, strict=True):
            text = tokenizer.decode(ids_T[:prompt].tolist())
            assert text.endswith("<|im_start|>assistant\n<think>\n")
            systems += SYSTEM_PROMPT in text
            numbers = [int(n) for n in re.search(r"user\n([\d+]+) mod", text)[1].split("+")]
            assert split_of(numbers) == "train"
            response = tokenizer.decode(ids_T[prompt:length].tolist())
            assert response.startswith("S1 ")
            assert response.endswith("}<|im_end|>")
            assert not ids_T[length:].any()
    assert systems > 0
