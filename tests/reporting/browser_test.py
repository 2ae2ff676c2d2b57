"""Both pages in a real browser: nothing overflows, names stand clear of curves, and pictures show what they should."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from tests.reporting.conftest import write_run
from yxanul.reporting import page
from yxanul.reporting.comparison import write_comparison
from yxanul.reporting.report import write_report

FLAGS = (
  '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --hide-scrollbars '
  '--disable-component-update --disable-sync --allow-file-access-from-files --virtual-time-budget=5000'
)


@pytest.fixture(scope='module')
def browse(tmp_path_factory):
  """A function that runs headless Chromium on a file and returns what it prints."""
  chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
  if chromium is None:
    pytest.skip('needs chromium, not found on PATH (Debian: apt-get install chromium)')
  profile = tmp_path_factory.mktemp('profile')

  def run(path: Path, *flags: str) -> str:
    command = [chromium, *FLAGS.split(), f'--user-data-dir={profile}', *flags, f'file://{path}']
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

  return run


@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, Path]:
  """A finished run's report, and the comparison of it with one that began."""
  folder = tmp_path_factory.mktemp('pages')
  runs = [write_run(folder / 'one'), write_run(folder / 'another_run_with_a_long_name', finished=False)]
  lines = (runs[1] / 'metrics.jsonl').read_text().splitlines(keepends=True)
  worse = [json.loads(line) for line in lines[:60]]
  for line in worse:
    line |= {key: line[key] * 1.1 for key in ('loss', 'bpb_train', 'val_bpb') if key in line}
  (runs[1] / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in worse))
  return {'report': write_report(runs[0]), 'comparison': write_comparison(runs, folder / 'comparison')}


MEASURE = """
  const d = this.contentDocument, w = d.documentElement.clientWidth, out = [], plots = d.querySelectorAll('figure svg');
  for (const e of d.body.querySelectorAll(':not(.wide *):not(svg *)')) {
    const wide = e.clientWidth && e.scrollWidth > e.clientWidth + 1 && e.className != 'wide';
    if (wide || e.getBoundingClientRect().right > w + 1) out.push(e.tagName + '.' + e.className);
  }
  for (const e of plots) if (e.getBoundingClientRect().height < 150) out.push('a flat plot');
  for (const name of d.querySelectorAll("svg text[style*='--mark']")) {  // a name that a curve crosses
    const box = name.getBoundingClientRect();
    for (const line of name.closest('svg').querySelectorAll("path[style*='--train'], path[style*='--held']")) {
      if (!line.getTotalLength || line.closest('defs')) continue;
      const size = line.getTotalLength(), place = line.getScreenCTM();
      for (let i = 0; i <= 2000; i++) {
        const p = line.getPointAtLength(size * i / 2000).matrixTransform(place);
        if (p.x > box.left && p.x < box.right && p.y > box.top + 2 && p.y < box.bottom - 2) {
          out.push(name.textContent + ' is crossed');
          break;
        }
      }
    }
  }
  const found = {width: w, scroll: d.documentElement.scrollWidth, out: out, plots: plots.length};
  document.body.dataset.found = JSON.stringify(found);
"""


@pytest.mark.parametrize('width', [390, 1280])
@pytest.mark.parametrize(('name', 'plots'), [('report', 8), ('comparison', 7)])
def test_nothing_overflows_and_no_name_is_crossed(browse, pages, tmp_path, name, plots, width):
  """Loads the page in a frame of that width and measures every element against it (wide tables scroll in their own box)."""
  style = f'width:{width}px;height:900px;border:0'
  source = f'<body><iframe src="file://{pages[name]}" style="{style}" onload="{html.escape(MEASURE)}"></iframe>'
  (tmp_path / 'frame.html').write_text(source)
  output = browse(tmp_path / 'frame.html', '--window-size=1400,900', '--dump-dom')
  found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', output).group(1)))
  assert found == {'width': width, 'scroll': width, 'out': [], 'plots': plots}


def share(picture: np.ndarray, colour: str) -> float:
  """Of the pixels, those of that colour, edges that fade into it left out."""
  wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
  return float((np.abs(picture[:, :, :3] * 255 - wanted).max(axis=2) <= 3).mean())


@pytest.mark.parametrize(('dark', 'colours'), [(False, page.LIGHT), (True, page.DARK)], ids=['day', 'night'])
@pytest.mark.parametrize('name', ['report', 'comparison'])
def test_a_screenshot_shows_the_page_by_day_and_by_night(browse, pages, tmp_path, name, dark, colours):
  """The pictures are what a person looks at; here their colours are: paper, cards, text and every curve in its own."""
  shot = tmp_path / 'page.png'
  scheme = '--blink-settings=preferredColorScheme=' + ('0' if dark else '1')
  browse(pages[name], f'--screenshot={shot}', '--window-size=1280,2600', scheme)
  picture = image.imread(shot)
  assert picture.shape[:2] == (2600, 1280)
  assert share(picture, colours['paper']) > 0.2
  assert share(picture, colours['surface']) > 0.2
  curves = ('train', 'held', 'mark') if name == 'report' else ('run-1', 'run-2')
  for role in ('ink', *curves):
    assert share(picture, colours[role]) > 1e-4, role
  # Text and cards fill the page down to its end, so nothing was left unrendered.
  rows = (np.abs(picture - picture[0, 0]).max(axis=2) > 0.02).any(axis=1)
  assert max(np.diff(np.flatnonzero(np.append(rows, True)))) < 150
