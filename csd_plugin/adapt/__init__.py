"""A network for a camera, from rainy frames alone: a teacher cleans some of them, and a small network learns from that.

shots.py     which frames of the videos are used, and which of these are held back
teacher.py   one or several networks that clean them
cache.py     rainy and cleaned frames on disk, as a data set of pairs
batches.py   crops of them, and of other pairs against forgetting
learning.py  the student's steps, fitted to the clock
scoring.py   how near the student is to its teacher, and how good on pairs with truth
run.py       all of it, from videos to a checkpoint
page.py      what came of it, for people
"""
