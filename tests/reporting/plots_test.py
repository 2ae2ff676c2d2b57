"""Pictures of their own."""

from matplotlib.figure import Figure

from yxanul.reporting import plots


def test_names_of_lines_stand_beside_them(tmp_path, monkeypatch):
  saved = []
  write = Figure.savefig
  monkeypatch.setattr(Figure, 'savefig', lambda figure, *rest, **more: (saved.append(figure), write(figure, *rest, **more)))

  def draw(axes, colours):
    for name in ('best', 'strong_gpt2-lr=0.0012', 'a name longer than most'):
      axes.plot([0, 1], [1, 0], label=name)

  plots.save_png(draw, 'Lines from corner to corner', tmp_path / 'picture.png')
  plots.save_png(lambda axes, colours: axes.plot([0, 1], [1, 0]), 'One without a name', tmp_path / 'plain.png')
  (axes,), (plain,) = (figure.axes for figure in saved)
  assert plain.get_legend() is None
  legend, box = axes.get_legend().get_window_extent(), axes.get_window_extent()
  assert legend.x0 >= box.x1
  assert abs(box.width - plain.get_window_extent().width) < 0.1 * box.width  # names take no room from the lines
