"""The template of a comparison's page, in the style of a run's own."""

from yxanul.reporting import page

TEMPLATE = page.template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ names | join(', ') }} · Yxanul</title>
<style>{{ css }}</style>
</head>
{% macro key() %}
<ul class="key">
{% for name in names %}<li><i style="background: var(--run-{{ loop.index }})"></i>{{ name }}</li>{% endfor %}
</ul>
{% endmacro %}
{% macro figures_of(plots) %}
<div class="plots">
{% for plot in plots %}
<figure><figcaption>{{ plot.title }}</figcaption>{{ plot.svg }}</figure>
{% endfor %}
</div>
{% endmacro %}
<body>
<main>
<header>
<p class="eyebrow">Yxanul · {{ names | length }} runs compared</p>
<h1>{{ names | join(', ') }}</h1>
{% if not same_text %}<p class="note">These runs were scored on different held-out text: their bits per byte say nothing
about one another.</p>{% endif %}
{% if note %}<p class="note">{{ note }}</p>{% endif %}
</header>

<section>
<h2>What they came to</h2>
<p>The target is {{ target }} held-out bits per byte, the best that every run reached; the time to it counts training steps
alone. Ratios and differences are against the first run.</p>
<div class="wide"><table>
<thead><tr><th scope="col"></th>
{% for name in names %}
<th scope="col"><i class="run" style="background: var(--run-{{ loop.index }})"></i>{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>{% for heading, cells in figures %}
<tr><td>{{ heading }}</td>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
</section>

<section>
<h2>Held-out text</h2>
<p>Bits per byte compare across tokenizers.
{% if lengths_differ %}Text is scored in rows of the length being trained, the last time in the longest rows.{% endif %}</p>
{{ key() }}
{{ figures_of(held_out) }}
</section>

<section>
<h2>Training</h2>
<p>Pale: as logged. Firm: a running mean over a fiftieth of the lines. Losses are in nats a token, which compare only where
the tokenizer is the same.</p>
{{ key() }}
{{ figures_of(training) }}
</section>

<section>
<h2>Where they differ</h2>
{% if differing %}
<div class="wide"><table class="differing">
<thead><tr><th scope="col">field</th>{% for name in names %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for field, values in differing %}
<tr><td>{{ field }}</td>{% for value in values %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
{% else %}
<p>Nowhere: the configurations are the same.</p>
{% endif %}
</section>

<footer>Made from config.json, metrics.jsonl and result.json of each run. Every plot is also a PNG beside this page.</footer>
</main>
</body>
</html>
""")
