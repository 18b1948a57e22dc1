"""The report: the manifests of a run in, one self-contained HTML page out.

funnel.py    what each stage took in, kept and dropped; how long it took
lengths.py   how long the texts are
ratings.py   the scores of each round
training.py  what each model's training came to
reading.py   which pairs and answers a person should read, chosen by hash and so the same every time
canaries.py  how many attacks on the raters reached their goal
figures.py   inline SVG: score histograms, loss curves
summary.py   the run in sentences, and warnings where the figures call for one
judges.py    what somebody registered who knows what is true of the run
page.py      puts them together; page.html and page.css are the page itself
"""

from humpback_ray.report.canaries import canary_sentences
from humpback_ray.report.judges import judged_sentences, register
from humpback_ray.report.page import report, write_report
from humpback_ray.report.summary import failure_sentences

__all__ = ["canary_sentences", "failure_sentences", "judged_sentences", "register", "report", "write_report"]
