"""Records of step-eval, made up so that what they say is known; the right answer is 7."""

from step_eval.records import AnswerRecord, QuestionRecord, TraceRecord


def trace(trace_id=0, answer="7", correct=None, tokens=100, score=None, **more):
    values = {
        "trace_id": trace_id,
        "seed": trace_id,
        "tokens": tokens,
        "finish_reason": "stop",
        "answer": answer,
        "group": None,
        "correct": answer == "7" if correct is None and answer is not None else correct,
        "score": score,
        "positions": [],
        "scores": [],
        "prefix_hashes": [],
        "submitted_s": 0.0,
        "finished_s": 1.0,
    }
    return TraceRecord(**values | more)


def record(question_id, traces, method="sc", repeat=0, seconds=10.0, **more):
    forms = list(dict.fromkeys(t.answer for t in traces if t.answer is not None))
    for item in traces:
        item.group = None if item.answer is None else forms.index(item.answer)
    values = {
        "method": method,
        "repeat": repeat,
        "question_id": question_id,
        "truth": "7",
        "prompt_tokens": 20,
        "seconds": seconds,
        "preemptions": 0,
        "peak_kv_use": 0.5,
        "running_trace_s": 3.0,
        "waiting_trace_s": 1.0,
        "kv_capacity_tokens": 1000,
        "answers": [AnswerRecord(form, form == "7") for form in forms],
        "traces": traces,
    }
    return QuestionRecord(**values | more)
