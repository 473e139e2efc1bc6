"""The account of what was kept and dropped."""

from dataclasses import replace

from native_reasoning.data import content_hash, load_examples, with_dropped

ROWS = [{"question": f"q{i}", "answer": f"a{i}", "id": i} for i in range(10)]


def test_the_lines_tell_the_whole_story():
    rows = [*ROWS, ROWS[0], {"question": "q0", "answer": "other"}, *[{"question": "q"}] * 7]
    data = load_examples(rows)
    assert data.report.lines() == (
        "the list of rows: 11 of 19 rows kept (question -> answer; not used: id)",
        "  7 missing_column: the row lacks a column (row 13, row 14, row 15, row 16, row 17, ...)",
        "  1 duplicate: the row repeats an earlier prompt and answer (row 11)",
        "  1 repeated_prompt: kept, with another answer (row 12)",
    )
    assert data.report.count("missing_column") == 7
    assert data.report.count("null") == 0
    assert len(data) == data.report.kept == 11


def test_several_shapes_are_counted():
    data = load_examples([{"prompt": "p", "completion": "c"}, *ROWS])
    assert data.report.lines() == (
        "the list of rows: 11 of 11 rows kept (question -> answer: 10, prompt -> completion: 1)",
    )


def test_only_the_first_places_are_named():
    report = with_dropped(load_examples(ROWS).report, "too_long_answer", range(1, 9))
    assert (report.kept, report.count("too_long_answer")) == (2, 8)
    assert len(report.dropped[0].places) == 5
    report = with_dropped(report, "too_long_answer", [9])
    assert (report.kept, report.count("too_long_answer")) == (1, 9)


def test_the_hash_is_of_the_texts_alone():
    one = load_examples(ROWS).examples
    assert content_hash(one) == content_hash(replace(e, line=99, row_id=5) for e in one)
    assert content_hash(one) != content_hash(one[::-1])
    assert content_hash(one) != content_hash([replace(one[0], answer="other"), *one[1:]])
    assert content_hash(()) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
