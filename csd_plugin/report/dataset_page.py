"""One self-contained HTML page about a data set, with thumbnails of every clip."""

from __future__ import annotations

import base64

from csd_plugin.report.dataset import DIFFERENCE_GAIN, DatasetFacts, by_split, clips_table
from csd_plugin.report.text import html

SIGN = b"(?i)<!doctype html>"
"""Pattern of the beginning of a page."""
_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ facts.path }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #8881; --mark: #c2410c; }
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
  h1 { font-size: 1.4rem; margin-bottom: 0; overflow-wrap: anywhere; }
  h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
  p { margin: .3rem 0; }
  .problems { border-left: 4px solid var(--mark); background: var(--soft); padding: .5rem 1rem; margin: 1rem 0; }
  .problems li { overflow-wrap: anywhere; }
  .problems ul { margin: .3rem 0; padding-left: 1.2rem; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
  th, td { text-align: right; padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
  th { font-weight: 600; }
  th:first-child, td:first-child { text-align: left; }
  .clips { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
  figure { margin: 0; padding: .6rem; border: 1px solid var(--line); border-radius: 6px; }
  figure div { display: grid; grid-auto-flow: column; gap: 4px; }
  figure img { display: block; width: 100%; height: auto; }
  figcaption { font-weight: 600; margin-bottom: .3rem; overflow-wrap: anywhere; }
  figcaption .bad { color: var(--mark); font-weight: 400; }
  .legend { opacity: .75; }
</style>
<h1>{{ facts.path }}</h1>
<p>{{ facts.summary }}</p>
{% if facts.problems %}
<div class="problems"><b>Problems found: {{ facts.problems | length }}</b>
<ul>{% for problem in facts.problems %}<li>{{ problem }}</li>{% endfor %}</ul></div>
{% else %}
<p>No problems found.</p>
{% endif %}
<p class="legend">light and clean: mean RGB value of rainy and of clean frames; rain-gt: mean of their difference, and
next to it its median, in grey levels, and how many RGB values differ by more than +10 and -10; PSNR: dB of the 8-bit
luma. All from up to {{ facts.samples }} frames per clip. Pictures: rain, truth, and their difference times {{ gain }}
(grey where there is none).
{% if facts.decoded %}All frames were decoded.{% else %}For the other frames only the headers were read.{% endif %}</p>
{% for title, clips in splits %}
<h2>{{ title }} ({{ clips | length }})</h2>
<div class="wide"><table>
{% for cells in table(clips) %}{% set tag = "th" if loop.first else "td" %}
<tr>{% for cell in cells %}<{{ tag }}>{{ cell }}</{{ tag }}>{% endfor %}</tr>
{% endfor %}</table></div>
<div class="clips">
{% for clip in clips %}<figure><figcaption>{{ clip.name }}
{% if clip.problems %}<span class="bad">has problems, see above</span>{% endif %}</figcaption>
<div>{% for picture in clip.pictures %}<img src="data:image/jpeg;base64,{{ base64(picture) }}"
 alt="{{ clip.name }}: {{ ('rain', 'truth', 'difference')[loop.index0] }}">{% else %}no readable picture{% endfor %}
</div>
</figure>
{% endfor %}</div>
{% endfor %}
</html>
"""


def as_html(facts: DatasetFacts) -> str:
    """The page. Raises CSDError like `report.text.html`."""
    return html(
        _TEMPLATE,
        facts=facts,
        splits=list(by_split(facts)),
        table=clips_table,
        gain=DIFFERENCE_GAIN,
        base64=lambda picture: base64.b64encode(picture).decode(),
    )
