"""Pages for people, made of files that are written already; a page needs nothing but itself.

pictures, carpet   what a worker draws of a run while its volumes pass
figures            those pictures and their figures in ``sub-X/figures/``
results            what is on disk of a participant, read back
charts             places of points and lines, in shares of a plot
page               templates, escaping, what a browser may do
participant        ``sub-X.html``
cohort, group      ``group.html``
"""
