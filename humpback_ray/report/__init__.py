"""The report: the manifests of a run in, one self-contained HTML page out.

funnel.py    what each stage took in, kept and dropped; how long it took; how long the texts are
reading.py   which pairs and answers a person should read, chosen by hash and so the same every time
canaries.py  how many attacks on the raters reached their goal
figures.py   inline SVG: score histograms, loss curves
summary.py   the run in sentences, and warnings where the figures call for one
truth.py     on the toy web: what the judge measured
findings.py  of several toy runs: the paper's claims, with their intervals
page.py      puts them together; page.html and page.css are the page itself
"""

from humpback_ray.report.canaries import canary_sentences
from humpback_ray.report.funnel import ratings, rounds
from humpback_ray.report.page import findings_page, report
from humpback_ray.report.summary import failure_sentence
from humpback_ray.report.truth import truth_sentences

__all__ = [
    "canary_sentences", "failure_sentence", "findings_page", "ratings", "report", "rounds", "truth_sentences",
]  # fmt: skip
