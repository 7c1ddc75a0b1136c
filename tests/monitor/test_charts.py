import base64
import math
import re
import zlib
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guerdon.monitor import charts
from guerdon.monitor.charts import POINTS, Marker, Series, compact, line_chart, number, png, signed, span, ticks


def draw(*series, **options) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, label="a picture", **options))


def points(element) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in element.get("points").split()]


def find(svg, kind) -> list[ElementTree.Element]:
    return [e for e in svg.iter() if kind in (e.get("class") or "").split()]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.03, 0.97, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3, 7, [-4, -2, 0, 2, 4, 6, 8]),
        (0, 432, [0, 100, 200, 300, 400, 500]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (10, 10, [9, 9.5, 10, 10.5, 11]),
    ],
)
def test_ticks_are_round_and_reach_around_the_data(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_ticks_of_steps_are_whole_and_inside():
    assert ticks(0, 199, 6, whole=True) == [0, 50, 100, 150]
    assert ticks(0, 3, 6, whole=True) == [0, 1, 2, 3]
    assert ticks(7, 7, 6, whole=True) == [7, 8]


@settings(max_examples=200, deadline=None)
@example(0.0, 5e-324, 2)
@example(1e9, 1e-6, 5)
@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(2, 8))
def test_ticks_are_few_ordered_and_cover(low, span, wanted):
    found = ticks(low, low + span, wanted)
    assert 2 <= len(found) <= wanted + 3
    assert found == sorted(found)
    slack = 1e-6 * max(abs(low), abs(low + span), 1e-9)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.41349, "0.413"),
        (-0.5, "-0.500"),
        (1.0, "1"),
        (1.2, "1.20"),
        (-12.345, "-12.3"),
        (123.45, "123"),
        (1234.5, "1234"),
        (12345.0, "12.3k"),
        (4.5e6, "4.5M"),
        (3e13, "3e+13"),
        (4.1e-5, "4.1e-05"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_compact(x, text):
    assert compact(x) == text


def test_numbers_of_a_page_have_a_true_minus():
    assert [number(x) for x in (-0.5, 0.5, None)] == ["−0.500", "0.500", "–"]
    assert [signed(x) for x in (-2.0, 2.0)] == ["−2", "+2"]
    assert [span(ends) for ends in ((-0.5, 1.0), (0.1, 0.1), None)] == ["−0.500 to 1", "0.100", "–"]


def test_a_band_is_drawn_where_it_is_known():
    unknown = (math.nan, math.nan)
    svg = draw(Series("a", [0, 1, 2], [0.5, 0.5, 0.5], band=[(0.0, 1.0), unknown, (0.25, 0.75)]))
    (band,), (line,) = find(svg, "band"), find(svg, "line")
    ys = [y for _, y in points(band)]
    middle = points(line)[0][1]
    assert ys[1] == ys[4] == middle  # no band there
    assert middle - ys[0] == pytest.approx(2 * (middle - ys[2]), abs=0.2)
    assert not find(draw(Series("a", [0, 1], [0.0, 1.0], band=[unknown, unknown])), "band")


def test_a_line_goes_where_its_numbers_are():
    svg = draw(Series("a", [0, 5, 10], [0.0, 1.0, 0.5]))
    (line,) = find(svg, "line")
    (x0, y0), (x1, y1), (x2, y2) = points(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 > y2 > y1  # up is less
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2)
    labels = {e.text: float(e.get("y")) for e in find(svg, "tick") if e.get("text-anchor") == "end"}
    assert labels["1"] - 3.5 == pytest.approx(y1, abs=0.1)
    assert labels["0"] - 3.5 == pytest.approx(y0, abs=0.1)


def test_missing_and_not_finite_points_are_left_out():
    svg = draw(Series("a", [0, 1, 2, 3], [0.0, None, math.nan, 1.0]), Series("b", [0, 1, 2, 3], [None] * 4))
    (line,) = find(svg, "line")
    assert len(points(line)) == 2
    assert line_chart([Series("a", [0], [None])], label="x") == ""
    assert line_chart([], label="x") == ""


def test_a_long_series_is_drawn_as_mean_and_range():
    n = 30 * POINTS
    svg = draw(Series("a", range(n), [float(i % 2) for i in range(n)]))
    (line,), (band,) = find(svg, "line"), find(svg, "band")
    assert len(points(line)) == POINTS
    assert len({y for _, y in points(line)}) == 1  # every stretch has mean 0.5
    assert len(points(band)) == 2 * POINTS
    assert len({y for _, y in points(band)}) == 2
    assert not find(draw(Series("a", [0, 1], [0.0, 1.0])), "band")


def test_hover_names_all_values_of_a_step():
    svg = draw(Series("a", [0, 1], [0.25, 0.5]), Series("b <i>", [1], [7.0], 1))
    hover = [e.find("title").text for e in find(svg, "hit")]
    assert hover == ["step 0\na: 0.250", "step 1\na: 0.500\nb <i>: 7"]
    long = draw(Series("a", range(3 * POINTS), [float(i) for i in range(3 * POINTS)]))
    assert find(long, "hit")[1].find("title").text == "step 3 to 5\na: 4 (3 to 5)"


def test_hover_columns_cover_the_plot_without_overlap():
    svg = draw(Series("a", [0, 1, 10], [0.0, 1.0, 2.0]))
    spans = []
    for hit in find(svg, "hit"):
        left, width = map(float, re.match(r"M([\d.]+) [\d.]+h([\d.]+)v", hit.get("d")).groups())
        spans.append((left, left + width))
    assert spans == sorted(spans)
    assert all(a[1] == pytest.approx(b[0], abs=0.11) for a, b in pairwise(spans))


def test_markers_stand_at_their_step_and_only_inside():
    svg = draw(Series("a", [0, 10], [0.0, 1.0]), markers=[Marker(5, "step 5: <x>", "critical"), Marker(11, "too late")])
    (marker,) = find(svg, "marker")
    assert marker.get("class") == "marker critical"
    assert marker.find("title").text == "step 5: <x>"
    (line,) = find(svg, "line")
    ends = [x for x, _ in points(line)]
    assert float(marker.find("line").get("x1")) == pytest.approx(sum(ends) / 2, abs=0.1)


def test_labels_are_escaped():
    hostile = "</svg><script>alert(1)</script>\"'"
    svg = draw(Series(hostile, [0, 1], [0.0, 1.0]), markers=[Marker(0, hostile, '"><script>')], x_label=hostile)
    assert not [e for e in svg.iter() if e.tag == "script"]
    text = line_chart([Series(hostile, [0], [1.0])], label=hostile)
    assert ElementTree.fromstring(text).get("aria-label") == hostile


def test_lines_beyond_the_palette_differ_by_dash():
    styles = [Series("s", [], [], color).style for color in range(15)]
    assert styles[0] == "c0 d0"
    assert styles[5] == "c0 d1"
    assert len(set(styles)) == 15


def test_a_range_is_spanned_at_least():
    svg = draw(Series("a", [0, 1], [0.4, 0.5]), y_range=(0.0, 1.0))
    labels = [e.text for e in find(svg, "tick") if e.get("text-anchor") == "end"]
    assert (labels[0], labels[-1]) == ("0", "1")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e300, 1e300)), min_size=1, max_size=300))
def test_any_numbers_give_a_well_formed_picture_inside_its_frame(ys):
    text = line_chart([Series("a", range(len(ys)), ys)], label="x")
    if all(y is None for y in ys):
        assert text == ""
        return
    svg = ElementTree.fromstring(text)
    _, _, width, height = map(float, svg.get("viewBox").split())
    for x, y in points(find(svg, "line")[0]):
        assert 0 <= x <= width
        assert 0 <= y <= height


def test_png_holds_the_pixels():
    address = png([0.0, 0.5, 1.0, 7.0, -3.0, math.nan], 2, 3)
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert int.from_bytes(data[at + 8 + size : at + 12 + size], "big") == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + size
    assert chunks[b"IHDR"][:8] == (3).to_bytes(4, "big") + (2).to_bytes(4, "big")
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 128, 255, 0, 255, 0, 0])


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.0, "0"),
        (5e-7, "5e-7"),
        (-1.5e-4, "−1.5e-4"),
        (0.0015, "0.0015"),
        (0.25, "0.25"),
        (2000.0, "2000"),
        (3e4, "30k"),
    ],
)
def test_labels_of_ticks_fit_beside_the_axis(value, label):
    assert charts._tick(value) == label
    assert len(label) <= 7
