from sparsyfed.tools.drawing import draw_plot


def test_names_of_a_model_are_text_in_a_drawing() -> None:
    plot = draw_plot("title", 'at "a<script>"', lambda _: None, size=(2.0, 1.0))
    assert 'aria-label="at &quot;a&lt;script&gt;&quot;"' in plot.svg
