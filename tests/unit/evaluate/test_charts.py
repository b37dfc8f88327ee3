"""Charts have few points, use the page's colors and load nothing."""

import pytest

from finetune_trainer.evaluate.charts import Series, downsampled, histogram, line_chart, moving_mean, tick_text


def test_a_long_curve_is_downsampled_to_means():
    points = [(float(step), float(step % 2)) for step in range(10_000)]
    few = downsampled(points, 400)
    assert len(few) <= 400
    assert [y for _, y in few] == pytest.approx([0.5] * len(few), abs=0.03)


def test_a_short_curve_keeps_its_points():
    assert downsampled([(1.0, 2.0), (2.0, 3.0)]) == [(1.0, 2.0), (2.0, 3.0)]


def test_the_moving_mean_uses_only_earlier_points():
    assert moving_mean([(0, 0.0), (1, 2.0), (2, 4.0)], 2) == [(0, 0.0), (1, 1.0), (2, 3.0)]


def test_a_chart_uses_the_colors_of_the_page():
    text = line_chart("Loss", [Series("training", [(0, 1.0), (1, 0.5)])], marks=[(0.5, "attempt 2")])
    assert text.startswith('<svg viewBox="0 0 345.6 165.6" role="img" aria-label="Loss">')
    for name in ("muted", "rule", "blue", "red"):
        assert f"var(--{name})" in text
    assert "#0a000" not in text
    assert "http" not in text
    assert "<style" not in text


def test_a_histogram_has_labeled_edges():
    text = histogram("Lengths", (0, 10, 20, 30), (5, 0, 2), x_label="tokens")
    for word in (">0<", ">10<", ">30<", ">tokens<"):
        assert word in text


def test_a_title_is_escaped():
    assert 'aria-label="a &amp; &lt;b&gt;"' in line_chart("a & <b>", [Series("x", [(0, 1.0)])])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.5, "0.5"), (40, "40"), (2e-4, "2e-4"), (1.5e-4, "1.5e-4"), (-5e-5, "-5e-5"), (2e7, "2e7")],
)
def test_ticks_are_formatted_like_learning_rates(value: float, text: str) -> None:
    assert tick_text(value) == text
