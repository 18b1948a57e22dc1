"""The report: the manifests of a run in, one self-contained HTML page out.

funnel.py    rows in, kept and dropped, and the time, of each stage
lengths.py   lengths of the texts
ratings.py   scores of each round
training.py  losses, rates and memory of each model's training
reading.py   pairs and answers for a person to read, chosen by hash and so the same every time
canaries.py  how many attacks on the raters succeeded
figures.py   inline SVG: score histograms, loss curves
summary.py   the run in sentences, and warnings that follow from its figures
judges.py    sections by registered judges that know the truth of a run
page.py      puts them together; page.html and page.css are the page itself
"""

from humpback_ray.report.canaries import canary_sentences
from humpback_ray.report.judges import judged_sentences, register
from humpback_ray.report.page import report, write_report
from humpback_ray.report.summary import failure_sentences

__all__ = ["canary_sentences", "failure_sentences", "judged_sentences", "register", "report", "write_report"]
