"""The look of report.html: its style sheet and its template (Jinja, everything escaped unless it is our own SVG).

No script, no font and no image from elsewhere: the page must read the same offline in ten years.
"""

from collections.abc import Mapping

import jinja2

# Colours by role: the page's, and those of a plot that stands alone.
LIGHT = {
  'paper': '#f6f4ee', 'surface': '#fffefb', 'ink': '#1b2127', 'muted': '#666a6d', 'line': '#e2ded2', 'band': '#f2efe5',
  'accent': '#0d6657', 'on-accent': '#ffffff', 'train': '#0d6657', 'held': '#c4480e', 'bar': '#3f8779', 'mark': '#8a7a3d',
  'toy': '#fbf1d3', 'toy-ink': '#5e4a06',
  'run-1': '#0d6657', 'run-2': '#d2570f', 'run-3': '#4a5fc1', 'run-4': '#a3801a', 'run-5': '#b0377f', 'run-6': '#2b93b8',
  'run-7': '#7a4a2b', 'run-8': '#6c7278',
}  # fmt: skip
DARK = {
  'paper': '#121518', 'surface': '#1a1e22', 'ink': '#e8e5dd', 'muted': '#9aa0a4', 'line': '#2d3338', 'band': '#20252a',
  'accent': '#55c4ae', 'on-accent': '#0c1513', 'train': '#55c4ae', 'held': '#ff9a66', 'bar': '#3f9484', 'mark': '#c4ad5c',
  'toy': '#332a10', 'toy-ink': '#f0dc9b',
  'run-1': '#55c4ae', 'run-2': '#ff9a66', 'run-3': '#93a5ff', 'run-4': '#dcb94a', 'run-5': '#f08bc3', 'run-6': '#6cc9ea',
  'run-7': '#c99a78', 'run-8': '#aab0b5',
}  # fmt: skip


def _variables(colours: Mapping[str, str]) -> str:
  return ' '.join(f'--{role}: {colour};' for role, colour in colours.items())


CSS = f"""
:root {{
  color-scheme: light dark;
  {_variables(LIGHT)}
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ {_variables(DARK)} }}
}}
"""
CSS += """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 var(--sans);
  font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 48px 32px 64px; }
section { margin-top: 56px; }
h1, h2 { font-family: var(--serif); font-weight: 600; letter-spacing: -0.01em; line-height: 1.15; margin: 0;
  text-wrap: balance; }
h1 { font-size: clamp(34px, 6vw, 54px); overflow-wrap: anywhere; }
h2 { font-size: 26px; padding-top: 14px; border-top: 2px solid var(--ink); }
p { margin: 0; max-width: 76ch; text-wrap: pretty; }
h2 + p { margin-top: 6px; color: var(--muted); }
.eyebrow { font-size: 12.5px; font-weight: 600; letter-spacing: 0.09em; text-transform: uppercase; color: var(--accent);
  margin-bottom: 8px; }
.note { margin-top: 18px; padding: 12px 16px; border-left: 4px solid var(--mark); background: var(--toy);
  color: var(--toy-ink);
  border-radius: 0 6px 6px 0; max-width: 76ch; }
.note + .note { margin-top: 8px; }
.hero { display: grid; grid-template-columns: minmax(240px, 5fr) 7fr; gap: 24px 56px; align-items: center; margin-top: 36px; }
.big { font: 600 clamp(64px, 11vw, 104px)/1 var(--serif); letter-spacing: -0.03em; color: var(--accent); display: block; }
.hero .unit { font-size: 19px; font-weight: 600; display: block; margin-top: 6px; }
.hero p { color: var(--muted); font-size: 14.5px; margin-top: 2px; }
.scale { display: grid; grid-template-columns: max-content 1fr max-content; gap: 10px 14px; align-items: center;
  font-size: 14.5px; }
.scale .track { height: 14px; }
.scale i { display: block; height: 100%; border-radius: 0 4px 4px 0; background: var(--line); min-width: 2px; }
.scale .own { font-weight: 600; color: var(--accent); }
.scale .own + .track i { background: var(--accent); }
.scale .value { text-align: right; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px; background: var(--line);
  border: 1px solid var(--line); border-radius: 10px; overflow: hidden; margin: 40px 0 0; }
.tiles div { background: var(--surface); padding: 14px 16px 15px; }
.tiles dt { font-size: 13px; color: var(--muted); }
.tiles dd { margin: 2px 0 0; font-size: 24px; font-weight: 600; letter-spacing: -0.01em; white-space: nowrap; }
.tiles small { display: block; font-size: 12.5px; font-weight: 400; color: var(--muted); letter-spacing: 0;
  white-space: normal; line-height: 1.35; }
.ribbon { display: grid; grid-template-columns: 76px 1fr; gap: 8px 12px; align-items: center; margin-top: 20px;
  font-size: 14px; }
.ribbon span { color: var(--muted); }
.ribbon > div { display: flex; gap: 2px; height: 34px; border-radius: 6px; overflow: hidden; }
.ribbon b { flex: 0 1 0; min-width: 2px; display: grid; place-items: center; font-size: 12.5px; font-weight: 600;
  overflow: hidden;
  background: color-mix(in oklab, var(--accent) var(--depth), var(--line)); color: var(--ink); }
.ribbon b.deep { color: var(--on-accent); }
.plots { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px; margin-top: 22px; }
figure { margin: 0; background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px 12px; min-width: 0; }
figcaption { font-weight: 600; font-size: 15.5px; margin-bottom: 8px; line-height: 1.35; }
figcaption span { display: block; font-weight: 400; font-size: 13.5px; color: var(--muted); }
figcaption i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; background: var(--train);
  vertical-align: middle; margin-right: 5px; }
figcaption i.held { width: 8px; height: 8px; border-radius: 50%; background: var(--held); margin-left: 12px; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text[style*='--mark'] { paint-order: stroke; stroke: var(--surface); stroke-width: 3px; }
figure svg text { font-family: var(--sans) !important; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; margin-top: 20px; background: var(--surface); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th, td { padding: 8px 14px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-size: 12.5px; font-weight: 600; color: var(--muted); vertical-align: bottom; }
tbody tr:last-child td { border-bottom: 0; }
tfoot td { border-top: 2px solid var(--ink); border-bottom: 0; font-weight: 600; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--surface); text-align: left; }
.samples { margin-top: 20px; background: var(--surface); border: 1px solid var(--line); border-radius: 10px; }
.samples blockquote { margin: 0; padding: 18px 24px;
  font: 16.5px/1.6 var(--serif); white-space: pre-wrap; overflow-wrap: anywhere; }
.samples blockquote + blockquote { border-top: 1px solid var(--line); }
.samples mark { background: none; color: var(--held); font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 20px; margin-top: 20px; }
.facts table, .config table { font-size: 14px; }
td.name { white-space: normal; overflow-wrap: anywhere; min-width: 24ch; }
td.words, th.words { white-space: normal; text-align: left; min-width: 26ch; }
.facts td, .config td { white-space: normal; overflow-wrap: anywhere; text-align: left; padding: 6px 14px;
  vertical-align: top; position: static; }
.facts td:first-child, .config td:first-child { color: var(--muted); width: 40%; }
.facts > div, .config > div { background: var(--surface); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; }
.facts h3, .config h3 { font-size: 13px; margin: 0; padding: 10px 14px; border-bottom: 1px solid var(--line); }
.key { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 16px 0 0; padding: 0; list-style: none; font-size: 14.5px; }
.key i { display: inline-block; width: 18px; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: 7px; }
i.run { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px; }
.differing td { font-family: var(--mono); font-size: 12.5px; }
details { margin-top: 20px; }
summary { cursor: pointer; font-weight: 600; padding: 4px 0; }
summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; border-radius: 4px; }
.config { display: grid; gap: 16px; margin-top: 14px; }
.config td { font-family: var(--mono); font-size: 12.5px; }
footer { margin-top: 64px; padding-top: 16px; border-top: 1px solid var(--line); color: var(--muted); font-size: 13.5px; }
@media (max-width: 760px) {
  main { padding: 28px 16px 48px; }
  section { margin-top: 44px; }
  .hero, .plots { grid-template-columns: minmax(0, 1fr); }
  .hero { gap: 28px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tiles div:first-child { grid-column: 1 / -1; }
  .tiles dd { font-size: 21px; }
  figure { padding: 14px 10px 8px; }
  figcaption { padding: 0 4px; }
  th, td { padding: 7px 10px; }
  .ribbon { grid-template-columns: 1fr; gap: 4px; }
  .samples blockquote { padding: 16px; font-size: 15.5px; }
}
@media print {
  :root { --paper: #fff; --surface: #fff; }
  figure, .wide, blockquote { break-inside: avoid; }
}
"""


def template(source: str) -> jinja2.Template:
  """A page that escapes what it is given and knows no missing name."""
  environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  return environment.from_string(source)


TEMPLATE = template("""\
{% macro pairs(group) %}
<div><h3>{{ group.name }}</h3><table>
{% for key, value in group.rows %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}
</table></div>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} · Yxanul</title>
<style>{{ css }}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">Yxanul · training run</p>
<h1>{{ name }}</h1>
{% if note %}<p class="note">{{ note }}</p>{% endif %}
{% if unfinished %}<p class="note">{{ unfinished }}</p>{% endif %}
</header>

<div class="hero">
<div>
<span class="big">{{ headline.value }}</span>
<span class="unit">bits per byte</span>
<p>{{ headline.caption }}</p>
</div>
{% if marks %}
<div class="scale" role="group" aria-label="Bits per byte beside what compressors need; shorter is better">
{% for mark in marks %}
<span{% if loop.first %} class="own"{% endif %}>{{ mark.name }}</span>
<span class="track"><i style="width: {{ mark.percent }}%"></i></span>
<span class="value">{{ mark.value }}</span>
{% endfor %}
</div>
{% endif %}
</div>

<dl class="tiles">
{% for tile in tiles %}
<div><dt>{{ tile.name }}</dt>
<dd>{{ tile.value }}{% if tile.more %} <small>{{ tile.more }}</small>{% endif %}</dd></div>
{% endfor %}
</dl>

{% if stages %}
<section>
<h2>Curriculum</h2>
<p>Each stage trains on longer rows than the one before. The strips show how tokens and time are divided among the lengths.</p>
<div class="ribbon" aria-hidden="true">
{% for strip in strips %}
<span>{{ strip.name }}</span>
<div>{% for part in strip.parts %}<b style="flex-grow: {{ part.share }}; --depth: {{ part.depth }}%"
 {% if part.deep %}class="deep"{% endif %}>{{ part.label }}</b>{% endfor %}</div>
{% endfor %}
</div>
<div class="wide"><table>
<thead><tr>{% for heading in stage_headings %}<th scope="col">{{ heading }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in stages %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
<tfoot><tr>{% for cell in stage_total %}<td>{{ cell }}</td>{% endfor %}</tr></tfoot>
</table></div>
</section>

<section>
<h2>Learning</h2>
<p>{{ learning_note }}</p>
<div class="plots">
{% for plot in learning %}
<figure><figcaption>{{ plot.title }}<span><i></i>training
{% if has_evaluations %}<i class="held"></i>held out{% endif %}
</span></figcaption>{{ plot.svg }}</figure>
{% endfor %}
</div>
</section>

<section>
<h2>Speed</h2>
<p>Averages over each stage’s training steps; evaluations and checkpoints are not in them.</p>
<div class="plots">
{% for plot in speed %}
<figure><figcaption>{{ plot.title }}<span>{{ plot.caption }}</span></figcaption>{{ plot.svg }}</figure>
{% endfor %}
</div>
</section>

<section>
<h2>Optimizer</h2>
<div class="plots">
{% for plot in optimizer %}
<figure><figcaption>{{ plot.title }}<span>{{ plot.caption }}</span></figcaption>{{ plot.svg }}</figure>
{% endfor %}
</div>
</section>
{% endif %}

{% if samples %}
<section>
<h2>Samples</h2>
<p>Written by the model at the end of the run; prompts are coloured.</p>
<div class="samples">
{% for sample in samples %}
<blockquote>
{%- for part in sample %}{% if part.prompt %}<mark>{{ part.text }}</mark>{% else %}{{ part.text }}{% endif %}{% endfor -%}
</blockquote>
{% endfor %}
</div>
</section>
{% endif %}

<section>
<h2>How it ran</h2>
{% if facts %}
<div class="facts">
{% for fact in facts %}
{{ pairs(fact) }}
{% endfor %}
</div>
{% endif %}
<details>
<summary>The whole configuration</summary>
<div class="config">
{% for group in config %}
{{ pairs(group) }}
{% endfor %}
</div>
</details>
</section>

<footer>Made from config.json, metrics.jsonl, result.json and samples.txt of this run, which hold every figure shown here.
Bits per byte count the held-out text’s own UTF-8 bytes, so they compare across tokenizers; token perplexities do not.</footer>
</main>
</body>
</html>
""")
